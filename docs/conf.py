# Copyright 2026 The cavmae-sync-hf authors. Licensed under the Apache License, Version 2.0.
"""Settings of the documentation: `make docs` builds it into docs/_build/html."""

from importlib import metadata

project = "cavmae-sync-hf"
author = "The cavmae-sync-hf authors"
copyright = f"2026, {author}"
release = version = metadata.version("cavmae-sync-hf")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode", "sphinx_copybutton"]
myst_enable_extensions = ["colon_fence", "fieldlist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"cavmae-sync-hf {release}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_theme_options = {"navigation_with_keys": True}

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_default_options = {"members": True, "show-inheritance": True}
# Docstrings are plain text with Markdown's single backticks, which are literals here.
default_role = "code"
napoleon_numpy_docstring = False
napoleon_use_ivar = True


def fences_to_blocks(app, what, name, obj, options, lines):
    """Docstrings show code as transformers' do, in Markdown's fences; Sphinx reads reStructuredText."""
    result, fenced = [], False
    for line in lines:
        if line.strip().startswith("```"):
            fenced = not fenced
            result += [line[: len(line) - len(line.lstrip())] + "::", ""] if fenced else [""]
        else:
            result.append("    " + line if fenced else line)
    lines[:] = result


def setup(app):
    # Before napoleon, which would take the fences for text.
    app.connect("autodoc-process-docstring", fences_to_blocks, priority=400)
