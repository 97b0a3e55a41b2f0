"""Questions answered by many runs: seeds, searches, one record.

spec.py             a study from YAML; plan.py: an arm as runs; run.py: what comes next; record.py: what was decided
demo.py, zoo.py     the two studies with a verb of their own; comparison.py: how they end
corpus.py, archive.py       their data; results to keep
page/               the page of all studies, from records and run folders
"""
