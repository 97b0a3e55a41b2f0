"""Figures as Vega-Lite specifications, drawn alike in pages and into files.

For others: what figures show (`chart.Chart`, `chart.Switched`, `rows.BarChart`, `rows.Forest`), `drawing.Drawer` for
pages, `pictures.write_pictures` for files, `readme_picture.write_picture` for the picture of a comparison.
"""
