"""The parts every model shares: the decoder loop, attention, MLP, norms, positions, parameter roles."""
