"""The book (`make book`): the notebooks as they are committed, and the pages of this folder.

Everything that a page needs lies beside it: it can be read offline.
"""

import json

project = "A-INN Lab"
author = "A-INN Lab"
copyright = "A-INN Lab, MIT licence"
html_title = "A-INN Lab"
extensions = ["myst_nb", "sphinx-mathjax-offline"]
include_patterns = ["index.md", "docs/*.md", "notebooks/[0-9]*.ipynb"]
myst_enable_extensions = ["dollarmath", "amsmath", "html_image"]
myst_heading_anchors = 3
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # sliders need a kernel; each has a picture above it
nb_render_markdown_format = "myst"
html_theme = "sphinx_book_theme"
html_context = {"default_mode": "auto"}
html_static_path = ["_static"]
html_css_files = ["book.css"]
html_theme_options = {"show_toc_level": 2, "use_download_button": False, "home_page_in_toc": True,
                      "navbar_persistent": []}
html_show_copyright = False
html_copy_source = False
html_last_updated_fmt = None
WIDGET = "application/vnd.jupyter.widget-view+json"


def without_widgets(app, name, source):
    """Take out what needs a kernel; fold the first cell, of imports."""
    if not name.startswith("notebooks/"):
        return
    notebook = json.loads(source[0])
    notebook["metadata"].pop("widgets", None)
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    cells[0]["metadata"]["tags"] = ["hide-input"]
    for cell in cells:
        cell["outputs"] = [o for o in cell["outputs"] if WIDGET not in o.get("data", {})]
    source[0] = json.dumps(notebook)


def setup(app):
    app.connect("source-read", without_widgets)
