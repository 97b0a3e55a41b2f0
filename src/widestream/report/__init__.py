"""Matched comparisons of runs in words, numbers and pictures; reads run folders only and never imports torch.

For others: `compare` and what shows a comparison, listed below; `page.render_page`, `terminal.print_tables`,
`table.Table`, `formats` and `search_record.load_search` for those who make pages and tables of their own. The rooms:
`stats` (numbers), `figures` (charts as specifications), `templates` (words and markup of every HTML page, and the
script that draws), `vendor` (the libraries that it draws with).
"""

from widestream.report.compare_page import write_report
from widestream.report.comparison import Choice, Comparison, compare
from widestream.report.figures.readme_picture import write_picture
from widestream.report.run_rows import to_csv, write_csv
from widestream.report.terminal import print_table

__all__ = ["Choice", "Comparison", "compare", "print_table", "to_csv", "write_csv", "write_picture", "write_report"]
