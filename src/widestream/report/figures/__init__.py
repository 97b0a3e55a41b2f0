"""Pictures of comparisons, as SVG that takes its colours from the page or the theme around it.

For others: the figures themselves (`svg.Chart`, `bar_chart.BarChart`, `forest_plot.Forest`), `drawing.draw` for pages,
`svg.render` and `svg.standalone` for files, `readme_picture.write_picture`.
"""
