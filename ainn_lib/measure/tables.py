"""Rate-distortion points in files of others: numbers that make sense, or a sentence with the place.

CSV files may be as spreadsheets save them: a mark at the start, UTF-16, a line ``sep=;``,
semicolons or tabs between values, decimal commas, empty lines at the end.
"""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

#: names of columns in files -> ours
NAMES = {"bpp": "bpp", "rate": "bpp", "psnr": "psnr", "psnr-rgb": "psnr", "psnr_db": "psnr",
         "psnr (db)": "psnr", "ms_ssim": "ms_ssim", "ms-ssim": "ms_ssim", "msssim": "ms_ssim",
         "ms-ssim-rgb": "ms_ssim"}
#: values that make sense: above the first (MS-SSIM may be 0), at most the second
RANGES = {"bpp": (0, 1000), "psnr": (0, 200), "ms_ssim": (-1e-9, 1)}
WORDS = {"bpp": "bpp above 0", "psnr": "PSNR in dB, above 0", "ms_ssim": "MS-SSIM from 0 to 1"}


def read_csv(path: Path) -> tuple[dict[str, list[str]], list[str]]:
    """The columns of a CSV file, texts by lower-case name, and what to call each row ("line 2").

    Raises ValueError for a file without a header, or a row with more values than that.
    """
    text = _decoded(path.read_bytes())
    first, _, rest = text.partition("\n")
    skipped = first.lower().startswith("sep=")  # Excel's own first line
    first = rest.partition("\n")[0] if skipped else first
    delimiter = max(",;\t", key=first.count)
    reader = csv.reader(io.StringIO(rest if skipped else text, newline=""), delimiter=delimiter)
    header = [name.strip().lower() for name in next(reader, [])]
    if not any(header):
        raise ValueError("it is empty")
    rows, lines = [], []
    for row in reader:
        while len(row) > len(header) and not row[-1].strip():
            row.pop()
        if any(value.strip() for value in row):
            lines.append(f"line {reader.line_num + skipped}")
            if len(row) > len(header):
                raise ValueError(f"{lines[-1]}: {len(row)} values, but {len(header)} columns")
            rows.append(row + [""] * (len(header) - len(row)))
    return {name: [row[i].strip() for row in rows] for i, name in enumerate(header)}, lines


def _decoded(data: bytes) -> str:
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:  # an older Excel of the West
        return data.decode("cp1252", errors="replace")


def read_points(columns: Mapping[str, Sequence], rows: Sequence[str]) -> pd.DataFrame:
    """The columns bpp, psnr and ms_ssim as floats, NaN where a value is missing.

    Args:
        columns: numbers, texts or None, by a name in `NAMES`; others are passed over.
        rows: what to call each row.

    Raises:
        ValueError: for a value that is no number or makes no sense; it names row and column.

    >>> read_points({"bpp": ["0,5", 1], "PSNR": [None, "40"]}, ["line 2", "line 3"])["psnr"][1]
    40.0
    """
    table = {}
    for name, values in columns.items():
        known = NAMES.get(name.strip().lower())
        if known and known not in table:
            if not isinstance(values, Sequence) or len(values) != len(rows):
                raise ValueError(f"column {name} has not as many values as the others")
            table[known] = [_number(value, known, f"{row}, column {name}")
                            for row, value in zip(rows, values, strict=True)]
    for row, bpp in zip(rows, table.get("bpp", ()), strict=False):
        if math.isnan(bpp):
            raise ValueError(f"{row}: a bpp above 0 must be given")
    return pd.DataFrame(table, columns=list(RANGES), dtype=float)


def _number(value: object, name: str, place: str) -> float:
    if value is None or value == "":
        return math.nan
    low, high = RANGES[name]
    try:
        if isinstance(value, bool) or "_" in str(value):
            raise ValueError
        number = float(str(value).replace(",", "."))
    except ValueError:
        number = math.nan
    if name == "psnr" and number == math.inf:
        return math.nan  # lossless
    if not low < number <= high:
        raise ValueError(f"{place}: {value!r} is no {WORDS[name]}")
    return number
