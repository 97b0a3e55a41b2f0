"""Matched comparisons of runs: tables, figures, one HTML file. Reads run folders only."""

from widestream.report.comparison import Comparison, compare
from widestream.report.figures.picture import write_picture
from widestream.report.html import write_report
from widestream.report.table import print_table

__all__ = ["Comparison", "compare", "print_table", "write_picture", "write_report"]
