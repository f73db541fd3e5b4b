"""Measured numbers as JSON files: small, readable in a diff, and written whole or not at all."""

import json
from pathlib import Path

from ..codec.files import atomic_write, make_folder


def compact_json(facts: dict) -> str:
    """JSON text with one line for each entry of the two upper levels; numbers have six decimals.

    >>> print(compact_json({"bpp": 1 / 3, "rows": [{"a": 1, "b": 2}, {"a": 3, "b": 4}]}), end="")
    {
     "bpp": 0.333333,
     "rows": [
      {"a": 1, "b": 2},
      {"a": 3, "b": 4}]
    }
    """
    rounded = json.loads(json.dumps(facts), parse_float=lambda text: round(float(text), 6))
    entries = [f" {json.dumps(key)}: {_entry(value)}" for key, value in rounded.items()]
    return "{\n" + ",\n".join(entries) + "\n}\n"


def _entry(value: object) -> str:
    """A dictionary, or a list of dictionaries, with one line for each of its entries."""
    if isinstance(value, dict):
        lines = [f"  {json.dumps(key)}: {json.dumps(inner)}" for key, inner in value.items()]
        return "{\n" + ",\n".join(lines) + "}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        lines = [f"  {json.dumps(inner)}" for inner in value]
        return "[\n" + ",\n".join(lines) + "]"
    return json.dumps(value)


def write_results(path: str | Path, facts: dict) -> Path:
    """Write `compact_json` of ``facts``; an older file stays until the new one is complete.

    Returns the path. Raises AINNError when it cannot be written.
    """
    path = Path(path)
    make_folder(path.parent)
    with atomic_write(path) as file:
        file.write(compact_json(facts).encode())
    return path
