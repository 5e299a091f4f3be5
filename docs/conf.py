"""Sphinx: everything comes from the docstrings and from the pages beside this file.

Nothing is fetched, so that the documentation builds anywhere: references into flask_atm are
checked (``-n``), those into other libraries are shown as they are.
"""

from importlib.metadata import version as installed

project = "flask-atm"
author = "The flask-atm authors"
copyright = f"2026, {author}"
version = release = installed("flask-atm")

extensions = ["sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
default_role = None
nitpick_ignore_regex = [
    (r"py:.*", r"(?!flask_atm\b).*"),
    (r"py:class", r"flask_atm\.\w+\.[A-Z]"),  # type variables
]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"

html_theme = "alabaster"
html_theme_options = {
    "description": "Access token management for Flask",
    "fixed_sidebar": True,
    "page_width": "1100px",
}
html_show_sourcelink = False
html_copy_source = False
