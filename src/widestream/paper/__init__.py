"""The arithmetic of the RMT paper (arXiv 2506.22696): what it prints, and what follows. No torch.

printed.py          what the paper prints
resources.py        parameters, FLOPs and memory in closed form; shown by resources_table.py, figure_1.py
moments.py          mean and variance through an exchange, Tables 1 and 2
errata.py           where the two differ: figures in errata_*.py, words in templates/; writes docs/errata.md
"""
