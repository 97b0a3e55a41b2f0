"""Measurements that are more than a row of training runs; each measures, and makes its section of a page.

moments             how mean, variance and correlation move through a decoder: closed forms, measured, in training
mup                 the coordinate check: does a recipe transfer over widths?
tune                the search of muP settings on a small model
"""
