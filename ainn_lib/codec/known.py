"""Which trained weights are here: their names and descriptions; reading them needs no PyTorch."""

import json
from pathlib import Path

from ..errors import AINNError
from ..paths import weight_folders


def available() -> list[str]:
    """Names of all weights that `load_pretrained` finds."""
    found = [file for folder in weight_folders() if folder.is_dir()
             for file in folder.glob("*.safetensors")]
    return sorted({file.stem for file in found if file.with_suffix(".json").is_file()})


def descriptions(wanted: str) -> list[Path]:
    """JSON files beside weights of this fingerprint, in the order of the folders."""
    found = []
    for folder in weight_folders():
        for file in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            try:
                if read_about(file).get("fingerprint") == wanted:
                    found.append(file)
            except AINNError:  # some other file of the user's: no reason to stop looking
                continue
    return found


def read_about(file: Path) -> dict:
    """The JSON file beside weights, as a dict."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise AINNError(f"{file} cannot be read as JSON") from None
    if not isinstance(about, dict):
        raise AINNError(f"{file} does not describe weights")
    return about
