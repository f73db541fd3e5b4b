"""Does what was made anew agree with what is committed? One row for each artefact.

A measured file must have the same size everywhere, and PSNR the same within 0.01 dB: decoders
may differ by a grey level. Numbers in texts and tables agree within 1 %, or in all but the last
digit shown; pictures within one grey level on average.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import nbformat
import numpy as np
from PIL import Image

from ..paths import FIGURES, NOTEBOOKS, PUBLISHED

NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?")
DECIBEL, RELATIVE, NOTHING = 0.01, 0.01, 1e-5  # NOTHING: smaller numbers are rounding errors
OF_THE_MACHINE = ("perf_counter", "monotonic", "provenance(")  # cells whose output may differ
FILE, TEXT, PICTURE = f"same bytes, {DECIBEL} dB", "1 % or the last digit", "one grey level"
NOW = "made now"
ORIGIN = ("commit", "date", "versions", "hardware")  # keys of `provenance`


@dataclass(frozen=True)
class Row:
    """One artefact. ``agrees`` is None where nothing was made anew to compare with."""

    artefact: str
    committed: str
    now: str
    tolerance: str
    agrees: bool | None
    source: str


def compare(figures: Path, notebooks: Path, failed: list[str]) -> list[Row]:
    """All artefacts: those made anew in these two folders, and those that are committed alone.

    Args:
        figures, notebooks: copies of the project's folders, after the run.
        failed: notebooks that could not be executed.
    """
    rows = []
    for path in sorted(FIGURES.rglob("*")):
        name = path.relative_to(FIGURES)
        if path.suffix in READ:
            rows.append(_compare_file(path, figures / name, name.as_posix()))
    for path in sorted(NOTEBOOKS.glob("[0-9]*.ipynb")):
        stopped = path.name in failed
        rows.append(_row(path.name, *(_texts(p) for p in (path, notebooks / path.name)), stopped))
    for path in sorted(PUBLISHED.glob("*.csv")):
        count = max(0, len(list(csv.reader(_lines(path)))) - 1)
        rows.append(Row(path.name, f"{count} points", "", "", None, "published"))
    return sorted(rows, key=lambda row: (row.agrees is None, row.source == "published"))


def table(rows: list[Row]) -> str:
    """The rows in Markdown, aligned."""
    words = {True: "yes", False: "**no**", None: ""}
    lines = [[field.name for field in fields(Row)]]
    lines += [[words.get(v, v) if not isinstance(v, str) else v for v in astuple(r)] for r in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines)


def close(a: str, b: str) -> bool:
    """Whether two printed numbers agree.

    >>> close("1,004", "1,011"), close("0.12", "0.13"), close("0.12", "0.14")
    (True, True, False)
    """
    x, y = (float(text.replace(",", "")) for text in (a, b))
    digits, _, power = a.partition("e")
    unit = 10.0 ** (int(power or 0) - len(digits.partition(".")[2]))
    return abs(x - y) <= max(1.01 * unit, RELATIVE * abs(x), NOTHING)


def differences(a: list[str], b: list[str]) -> list[str]:
    """Where two lists of texts differ in words or beyond `close` in numbers.

    >>> differences(["at 31.41 dB", "best: a"], ["at 31.42 dB", "best: b"])
    ['best: a -> best: b']
    """
    if len(a) != len(b):
        return [f"{len(a)} texts -> {len(b)}"]
    found = []
    for before, after in zip(a, b, strict=True):
        numbers = [NUMBER.findall(text) for text in (before, after)]
        if NUMBER.sub("", before) != NUMBER.sub("", after):
            found.append(f"{before[:40]} -> {after[:40]}")
        else:
            found += [f"{x} -> {y}" for x, y in zip(*numbers, strict=True) if not close(x, y)]
    return found


def _row(name: str, before: list[str], after: list[str], stopped: bool = False) -> Row:
    found = ["it failed"] if stopped else differences(before, after)
    count = sum(len(NUMBER.findall(text)) for text in before)
    words = f"{len(found)} differ: {'; '.join(found[:3])}" if found else "the same"
    words = " ".join(words.replace("|", "/").split())
    return Row(name, f"{count} numbers", words, TEXT, not found, NOW)


def _compare_file(path: Path, new: Path, name: str) -> Row:
    if path.suffix == ".json":
        facts = json.loads(path.read_text(encoding="utf-8"))
        if not path.name.startswith(("embedded-", "figure6")):
            commit = (facts.get("commit") or "")[:8]
            source = f"committed measurement, {facts.get('date', '')} {commit}".strip(", ")
            return Row(name, _summary(facts), "", "", None, source)
        if path.name.startswith("embedded-"):
            return _compare_curves(name, facts, new)
    if not new.exists():
        return Row(name, "", "missing", "", False, NOW)
    if path.suffix == ".png":
        before, after = (np.asarray(Image.open(p).convert("RGB"), float) for p in (path, new))
        size = f"{before.shape[1]}x{before.shape[0]} pixels"
        if before.shape != after.shape:
            now = f"{after.shape[1]}x{after.shape[0]} pixels"
            return Row(name, size, now, PICTURE, False, NOW)
        off = abs(before - after).mean()
        return Row(name, size, f"off by {off:.2f} grey levels", PICTURE, bool(off < 1), NOW)
    read = READ[path.suffix]
    return _row(name, read(path), read(new))


def _compare_curves(name: str, facts: dict, new: Path) -> Row:
    """A measured curve: every image at every setting."""
    if not new.exists():
        return Row(name, _summary(facts), "missing", FILE, False, NOW)
    again = json.loads(new.read_text(encoding="utf-8"))
    points = [_points(f) for f in (facts, again)]
    agrees = points[0].keys() == points[1].keys()
    for key in points[0].keys() & points[1].keys():
        (size, psnr), (new_size, new_psnr) = (of[key] for of in points)
        same = psnr == new_psnr or None not in (psnr, new_psnr) and abs(psnr - new_psnr) <= DECIBEL
        agrees = agrees and size == new_size and same
    return Row(name, _summary(facts), _summary(again), FILE, agrees, NOW)


def _points(facts: dict) -> dict[tuple, tuple]:
    """(image, setting) -> bytes, PSNR."""
    settings = facts["results"]["setting"]
    return {(row["image"], setting): (size, psnr) for row in facts["per_image"]
            for setting, size, psnr in zip(settings, row["bytes"], row["psnr-rgb"], strict=True)}


def _summary(facts: dict) -> str:
    if "per_image" not in facts:
        return ""
    sizes, values = zip(*_points(facts).values(), strict=True)
    psnr = np.mean([v for v in values if v is not None])
    return f"{len(sizes)} files, {sum(sizes):,} bytes, {psnr:.3f} dB"


def _lines(path: Path) -> Iterator[str]:
    return (line for line in io.StringIO(path.read_text(encoding="utf-8"))
            if line.strip() and not line.startswith("#"))


def _json_text(path: Path) -> list[str]:
    """The numbers of a JSON file, without commit, date, versions and machine."""
    facts = json.loads(path.read_text(encoding="utf-8"))
    return [json.dumps({k: v for k, v in facts.items() if k not in ORIGIN})]


def _texts(path: Path) -> list[str]:
    """The text outputs of a notebook's cells; none of cells that show times or the machine."""
    texts = []
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code" and not any(word in cell.source for word in OF_THE_MACHINE):
            for output in cell.outputs:
                data = output.get("data", {})
                texts.append(output.get("text") or data.get("text/markdown") or "")
    return texts


READ = {".json": _json_text, ".csv": lambda path: list(_lines(path)), ".png": None}
