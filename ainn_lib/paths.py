"""Where things lie: the one place that knows the folders of a checkout.

A wheel holds data, notebooks/app.ipynb and figures/data inside the package.
"""

import os
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  #: of the checkout, or the folder in which the package is installed
IN_CHECKOUT = not (PACKAGE / "data").is_dir()
_HOME = ROOT if IN_CHECKOUT else PACKAGE
NOTEBOOKS = _HOME / "notebooks"
#: figures and their numbers; `ainn reproduce` lets its notebooks work on a copy
FIGURES = Path(os.environ.get("AINN_FIGURES", _HOME / "figures"))
RESULTS = FIGURES / "data"  #: measured numbers, one JSON file for each figure or table
MEASURED = RESULTS / "rd"  #: measured rate-distortion curves
PUBLISHED = _HOME / "data" / "published"  #: rate-distortion points that others published
REGISTRY = _HOME / "data" / "registry"  #: names and checksums of the data sets' images
RECIPES = _HOME / "data" / "recipes"
REFINED = _HOME / "data" / "refined"  #: the embedded photos as files of effort 3
WEIGHTS = _HOME / "data" / "weights"
STYLE = PACKAGE / "style.mplstyle"


def weight_folders() -> list[Path]:
    """Where weights are looked for: the folders of $AINN_WEIGHTS, then the project's own."""
    named = os.environ.get("AINN_WEIGHTS", "").split(os.pathsep)
    return [*(Path(p) for p in named if p), WEIGHTS]
