"""The arithmetic of the RMT paper (arXiv 2506.22696): what it prints, and what follows. No torch."""
