"""Sphinx: `python -m sphinx -W docs site` makes a site that is read without internet."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator

import monai_dpmm

project = "monai-dpmm"
author = "the monai-dpmm developers"
copyright = f"2026, {author}"
version = release = monai_dpmm.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_argparse_cli",
    "sphinx_copybutton",
]
myst_enable_extensions = ["colon_fence", "dollarmath", "attrs_inline"]
myst_heading_anchors = 3

autodoc_default_options = {
    "members": True,
    "member-order": "bysource",
    "exclude-members": "array_transform",
}
autodoc_typehints_format = "short"
default_role = "code"
python_maximum_signature_line_length = 88
python_use_unqualified_type_names = True
napoleon_use_ivar = True
add_module_names = False

html_theme = "furo"
html_title = f"monai-dpmm {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sphinx = False


def _inline_math(self: HTML5Translator, node: nodes.math) -> None:
    """A formula as MathML, which browsers draw themselves: no script, and none from elsewhere."""
    self.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block_math(self: HTML5Translator, node: nodes.math_block) -> None:
    self.body.append(f"<div class='math'>{convert(node.astext(), display='block')}</div>")
    raise nodes.SkipNode


def _unambiguous(
    app: Sphinx, what: str, name: str, of: Any, options: Any, lines: list[str]
) -> None:
    """Keep a letter from starting a numbered list, and a property's shape from being a type."""
    lines[:] = [re.sub(r": ([A-Z])\.$", r": \\\1.", line) for line in lines]
    if what == "property":
        lines[0] = re.sub(r": (?=\()", ", ", lines[0])


def setup(app: Sphinx) -> None:
    """Register the writer of formulas, and what reads docstrings before napoleon does."""
    app.add_html_math_renderer("mathml", (_inline_math, None), (_block_math, None))
    app.connect("autodoc-process-docstring", _unambiguous, priority=400)


html_math_renderer = "mathml"
