"""Sphinx builds the documentation site from this folder: ``make docs``.

The site loads nothing from the network: formulas are MathML, fonts are the reader's own.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from bench import __version__  # noqa: E402

project = "progressive-bench"
version = release = __version__
html_title = f"{project} {__version__}"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "docs.site.mathml",
    "docs.site.reference",
]
exclude_patterns = ["tools", "site", "speed", "deploy", "figures"]
suppress_warnings = ["myst.header"]  # pages taken over from the repository's top level begin lower

myst_fence_as_directive = ["math"]  # GitHub shows the same fence as a formula
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
napoleon_numpy_docstring = False

html_theme = "furo"
html_static_path = ["site/static"]
html_css_files = ["site.css"]
html_math_renderer = "mathml"
html_show_sphinx = False
html_theme_options = {
    "light_css_variables": {"color-brand-primary": "#1f5fa8", "color-brand-content": "#1f5fa8"},
    "dark_css_variables": {"color-brand-primary": "#8ab8f0", "color-brand-content": "#8ab8f0"},
}
