"""Text to tokens to batches: sources, tokenizers, shards with a manifest, and an order that keeps no state."""
