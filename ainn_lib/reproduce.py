"""``ainn reproduce``: measure, draw and execute everything again, and compare.

The work is done on copies in ``build/reproduce``; the checkout stays as it is.
"""

import functools
import hashlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import torch
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError

from .codec.files import atomic_write
from .codec.weights import available, load_pretrained
from .measure.agreement import compare, table
from .measure.classical import CODECS
from .measure.evaluate import embedded, evaluate, workers
from .measure.figures import save
from .measure.results import write_results
from .network.model import AINN
from .paths import FIGURES, NOTEBOOKS, PACKAGE, PUBLISHED, RESULTS, ROOT, WEIGHTS
from .provenance import provenance
from .studies.account import ACCOUNT, measure_account
from .style import OURS, figure_style
from .ui.drawings import here, overview
from .ui.explorers import POSITIONS

PLACE = ROOT / "build" / "reproduce"
SECONDS = RESULTS / "reproduce.json"  #: of each step, when `main` last updated the checkout
DONE = "done.json"  #: in the place of work: seconds of the steps that are done
MADE = ("*.png", "*.pdf", "*.csv", "*.tex", "embedded-*.json", "figure6.json",
        ACCOUNT.name)  #: in `FIGURES`
CELL_TIMEOUT = 900  # seconds
FAILURES = (CellExecutionError, CellTimeoutError, RuntimeError, OSError)


def main(update: bool = False, place: Path = PLACE) -> int:
    """Run all steps that are not done, print the comparison, and return the exit status.

    A step that fails does not stop the others. What was done is kept in ``place`` until all steps
    have succeeded; after a change of code, weights, numbers or notebooks everything is done anew.

    Args:
        update: afterwards copy figures, numbers and notebooks into the checkout.
        place: the folder to work in.

    Returns:
        0 where all steps succeeded, and what they made agrees with what is committed (or, with
        ``update``, has replaced it).
    """
    key = _key()
    done = _begin(place, key)
    failed = _run(steps(place), place, key, done)
    rows = compare(place / "figures", place / "notebooks", failed)
    report = place / "agreement.md"
    report.write_text(table(rows), encoding="utf-8")
    differ = [row.artefact for row in rows if row.agrees is False]
    print(f"{table(rows)}\n{len(failed)} steps failed, {len(differ)} artefacts differ; "
          f"the table is in {report}")
    if not failed:
        (place / DONE).unlink()
    if update and not failed:
        write_results(place / "figures" / "data" / SECONDS.name,
                      {"source": "measured here", "seconds": done, **provenance()})
        for source, target in ((place / "figures", FIGURES), (place / "notebooks", NOTEBOOKS)):
            shutil.copytree(source, target, dirs_exist_ok=True)
    return int(bool(failed or differ and not update))


def steps(place: Path) -> dict[str, Callable[[], object]]:
    """Everything that is made anew: name -> function."""
    notebooks = sorted((place / "notebooks").glob("[0-9]*.ipynb"))
    environment = {**os.environ, "AINN_FIGURES": str(place / "figures")}
    return {
        "embedded photos": lambda: measure_embedded(place / "figures" / "data" / "rd"),
        "Figure 2": lambda: draw_overview(place / "figures"),
        "maps": lambda: draw_maps(notebooks),
        "account": lambda: measure_account(load_pretrained("student"),
                                           place / "figures" / "data" / ACCOUNT.name),
        **{path.name: functools.partial(execute, path, environment) for path in notebooks},
    }


def _run(plan: dict[str, Callable[[], object]], place: Path, key: str,
         done: dict[str, float]) -> list[str]:
    """Run the steps that are not done, and note them in ``done``; returns those that failed."""
    failed = []
    for name, step in plan.items():
        if name in done:
            continue
        print(f"{name} ... {time_left(list(plan), done)}", flush=True)
        began = time.monotonic()
        try:
            step()
        except FAILURES as error:
            failed.append(name)
            print(f"{name} failed:\n{error}", file=sys.stderr)
            continue
        done[name] = time.monotonic() - began
        _keep(place, key, done)
        print(f"{name}: {done[name]:.0f} s", flush=True)
    return failed


def time_left(names: list[str], done: dict[str, float]) -> str:
    """How much is done, and an estimate of the rest: last time's seconds at today's speed."""
    known = json.loads(SECONDS.read_text(encoding="utf-8"))["seconds"] if SECONDS.exists() else {}
    timed = [name for name in done if name in known]
    speed = sum(known[n] for n in timed) / sum(done[n] for n in timed) if timed else 1
    typical = sum(done.values()) / len(done) if done else 0  # of a step that is not known
    rest = sum(known[name] / speed if name in known else typical
               for name in names if name not in done)
    words = f"{len(done)} of {len(names)} steps done"
    return f"{words}, about {max(1, round(rest / 60))} minutes left" if rest else words


def _begin(place: Path, key: str) -> dict[str, float]:
    """Seconds of the steps that are done; where none is, copies into an emptied ``place``.

    What the steps make is not copied: a step that fails leaves nothing that could agree.
    """
    record = place / DONE
    kept = json.loads(record.read_text(encoding="utf-8")) if record.exists() else {}
    if kept.get("key") == key:
        return kept["seconds"]
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(NOTEBOOKS, place / "notebooks")
    made = shutil.ignore_patterns(*MADE)
    shutil.copytree(FIGURES, place / "figures", ignore=made)
    _keep(place, key, {})
    return {}


def _keep(place: Path, key: str, done: dict[str, float]) -> None:
    with atomic_write(place / DONE) as file:
        file.write(json.dumps({"key": key, "seconds": done}).encode())


def _key() -> str:
    """A hash of all that the results depend on."""
    digest = hashlib.sha256()
    files = [*PACKAGE.rglob("*.py"), *NOTEBOOKS.glob("*.ipynb")]
    for folder in (WEIGHTS, PUBLISHED, RESULTS):
        files += [path for path in folder.rglob("*") if path.is_file()]
    for path in sorted(files):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def draw_overview(folder: Path) -> None:
    """Figure 2 of the paper's network (its sizes, not its 863 MB of weights)."""
    with torch.device("meta"), figure_style():
        save(overview(AINN()), "figure2", folder)


def draw_maps(notebooks: list[Path]) -> None:
    """The map at the head of each notebook: here/NUMBER.png beside it."""
    for path in notebooks:
        number, folder = path.name.partition("_")[0], path.parent / "here"
        folder.mkdir(exist_ok=True)
        figure = here(number)
        figure.savefig(folder / f"{number}.png", dpi=130, metadata={"Software": None})
        plt.close(figure)


def measure_embedded(folder: Path) -> None:
    """Measure every codec and our weights on the embedded photos: files embedded-NAME.json.

    Those that are there are not measured again.
    """
    ours = [name for name in available() if name in OURS]  # not an ablation's, nor the user's
    subjects = [("codec", name) for name in CODECS] + [("model", name) for name in ours]
    with tempfile.TemporaryDirectory() as scratch, workers() as pool:
        images = embedded(scratch)
        for kind, name in subjects:
            output = folder / f"embedded-{name}.json"
            if not output.exists():
                evaluate(images, "embedded", kind, name, output, pool=pool)


def execute(path: Path, environment: dict[str, str] | None = None) -> nbformat.NotebookNode:
    """Run a notebook and store it in place, with outputs and widgets.

    Its explorers get outputs that need no kernel (`explore`). A notebook that fails is not stored.

    Raises:
        CellExecutionError: (nbclient's) when a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=CELL_TIMEOUT, kernel_name="python3",
                            store_widget_state=False, resources=resources)
    client.execute(env={**(environment or os.environ), POSITIONS: "6"})
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)  # time stamps would change with every run
    nbformat.write(notebook, path)
    return notebook
