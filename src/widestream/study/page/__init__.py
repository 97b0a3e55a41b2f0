"""The page of all studies, from records and run folders.

For others: `studies_page.write_studies` makes the page, `results` reads records (`RECORD` is how their names end).
`sections.Section` is a part of the page: `analyses` makes those of studies, by the kind of analysis, `record_sections`
those of other measurements.
"""
