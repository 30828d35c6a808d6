"""Sphinx configuration: MyST pages, numpydoc docstrings, the furo theme."""

import os
from importlib.metadata import version as version_of

project = "saff"
author = "the saff developers"
copyright = "the saff developers"
release = version = version_of("saff")

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.mathjax",
    "sphinx.ext.viewcode",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

# The build needs no network; where there is one, names of other projects become links.
if os.environ.get("READTHEDOCS") or os.environ.get("SAFF_DOCS_ONLINE"):
    extensions.append("sphinx.ext.intersphinx")
intersphinx_mapping = {
    "numpy": ("https://numpy.org/doc/stable/", None),
    "python": ("https://docs.python.org/3/", None),
    "ray": ("https://docs.ray.io/en/latest/", None),
    "scipy": ("https://docs.scipy.org/doc/scipy/", None),
    "skimage": ("https://scikit-image.org/docs/stable/", None),
    "torch": ("https://docs.pytorch.org/docs/stable/", None),
}

myst_enable_extensions = ["amsmath", "colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3  # [text](#heading) links down to this level

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # numpydoc's sections say type, shape and range
autosummary_generate = True
numpydoc_show_class_members = False  # autodoc lists them already
numpydoc_xref_param_type = False

html_theme = "furo"
html_title = f"saff {release}"


def setup(app):
    # numpydoc 1.11 gives a type alias the signature of the class behind it, and Sphinx 9 stops
    # there; a constant has none, and the handler that answers first is heard.
    app.connect(
        "autodoc-process-signature",
        lambda app, what, *_: (None, "") if what in {"data", "type"} else None,
        priority=1,
    )
