"""The site: what Sphinx is told. `make docs` builds it; docs/made.py makes what code can make."""

from __future__ import annotations

import sys
from pathlib import Path

import sinkscope

sys.path.insert(0, str(Path(__file__).parent))

project = "sinkscope"
author = "sinkscope contributors"
copyright = author
release = version = sinkscope.__version__

extensions = [
    "myst_nb",
    "docstrings",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
]
exclude_patterns = ["_build", "made/pictures"]
root_doc = "index"

myst_enable_extensions = ["colon_fence", "deflist", "attrs_block"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # notebooks are pages as they were run; tests run them
nb_ipywidgets_js: dict[str, dict[str, str]] = {}  # which would come from a CDN
nb_render_markdown_format = "myst"
suppress_warnings = ["misc.highlighting_failure"]  # of notebook cells with magics

highlight_language = "none"  # a fence without a language is a drawing or plain text
default_role = "py:obj"  # a name in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # they stand in the signature of a source file; Args says the same in words
autodoc_preserve_defaults = True
add_module_names = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False

html_theme = "furo"
html_title = "sinkscope"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_extra_path = ["made/extra"]  # the explorer page, whole
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#0b5394", "color-brand-content": "#0b5394"},
    "dark_css_variables": {"color-brand-primary": "#8ab8ec", "color-brand-content": "#8ab8ec"},
}
copybutton_prompt_text = "$ "
