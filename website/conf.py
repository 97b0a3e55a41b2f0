"""Sphinx's configuration. `website/build_site.py` gathers the pages and calls Sphinx with it."""

project = "widestream"
copyright = "the widestream developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

smartquotes = False  # "--" is an option here, not a dash

html_theme = "furo"
html_title = "widestream"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"

myst_heading_anchors = 4
myst_enable_extensions = ["attrs_inline"]

autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
python_display_short_literal_types = True
python_maximum_signature_line_length = 100
napoleon_use_rtype = False
default_role = "literal"  # docstrings are read as text, where single backticks are code
