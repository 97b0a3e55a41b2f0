"""Two models on the same downstream items: paired tests, and where one of them wins.

pairs.py      every task's difference, with intervals over items and over seeds
slices.py     the difference by length, frequency and place of the answer
section.py    sentences, tables, charts, rows and the page
"""
