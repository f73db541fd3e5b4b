"""The main job: measure the embedded photos, draw every figure and execute every notebook again. ``make reproduce`` runs it."""

import sys
import tempfile
import time
from pathlib import Path

import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError
from tqdm import tqdm

from .architecture import save_figures
from .codecs import CODECS
from .curves import MEASURED, OURS
from .evaluate import embedded, evaluate, workers
from .model import AINN
from .provenance import ROOT
from .weights import available

CELL_TIMEOUT = 900  # seconds


def execute(path: Path, output: Path | None = None) -> nbformat.NotebookNode:
    """Run a notebook from top to bottom and store it, outputs and widget state included, in ``output`` (default: in place).

    A notebook that fails is not stored. Raises nbclient's `CellExecutionError`, or `RuntimeError` for an error that a
    widget's callback left in its output, which would otherwise pass unseen.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3", store_widget_state=True,
                            resources={"metadata": {"path": str(path.parent)}})
    client.execute()
    if errors := widget_errors(notebook):
        raise RuntimeError(f"{path.name}: a widget's callback failed: {errors[0]}")
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps would change with every run
    nbformat.write(notebook, output or path)
    return notebook


def widget_errors(notebook: nbformat.NotebookNode) -> list[str]:
    """Errors in the outputs of the notebook's stored widgets: an exception in a callback fails no cell."""
    state = notebook.metadata.get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    return [f"{output.get('ename')}: {output.get('evalue')}" for model in state.values()
            for output in model.get("state", {}).get("outputs", ()) or () if output.get("output_type") == "error"]


def measure_embedded(folder: Path = MEASURED) -> None:
    """Measure every codec and our weights on the embedded photos: one JSON file each, embedded-NAME.json."""
    with tempfile.TemporaryDirectory() as scratch, workers() as pool:
        images = embedded(scratch)
        ours = [name for name in available() if name in OURS]  # not those of an ablation, nor the user's
        for kind, name in [*(("codec", name) for name in CODECS), *(("model", name) for name in ours)]:
            evaluate(images, "embedded", kind, name, folder / f"embedded-{name}.json", pool=pool)


def main() -> int:
    """Measure the embedded photos, draw the figures of the architecture, execute all notebooks in order; the exit status."""
    began = time.monotonic()
    measure_embedded()
    print(f"embedded photos measured: {time.monotonic() - began:.0f} s")
    with torch.device("meta"):  # the drawings need the paper's sizes, not 863 MB of weights
        save_figures(AINN(), ROOT / "figures")
    notebooks = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    for path in (bar := tqdm(notebooks, unit="notebook")):
        bar.set_description(path.stem)
        began = time.monotonic()
        try:
            execute(path)
        except (CellExecutionError, CellTimeoutError, RuntimeError) as error:
            print(f"{path.name} failed:\n{error}", file=sys.stderr)
            return 1
        tqdm.write(f"{path.name}: {time.monotonic() - began:.0f} s")
    print(f"{len(notebooks)} notebooks executed; figures are in {ROOT / 'figures'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
