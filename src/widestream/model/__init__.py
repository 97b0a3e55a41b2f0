"""From a configuration to a decoder: blocks around a stream, a way through its depth, and what that costs."""
