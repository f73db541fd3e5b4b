"""Trained weights on disk: float16 safetensors with a JSON file beside them, and the identity that files name."""

import hashlib
import json
import os
import weakref
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

from .entropy import latent_coder
from .errors import AINNError
from .files import whole_file
from .model import AINN, AINNConfig

DATA = Path(__file__).resolve().parent.parent / "data"
_DERIVED = ("mask", "_offset", "_quantized_cdf", "_cdf_length", "target", "bound", "scale_table", "scale_bound", "num_batches_tracked")


_identities = weakref.WeakKeyDictionary()


def weight_folders() -> list[Path]:
    """Where weights are looked for: the folders of $AINN_WEIGHTS, then the project's own ``data/weights``."""
    named = [Path(p) for p in os.environ.get("AINN_WEIGHTS", "").split(os.pathsep) if p]
    return [*named, DATA / "weights"]


def tensors_of(model: AINN) -> dict[str, Tensor]:
    """What has to be stored: parameters and buffers, without what follows from them (masks, tables, bounds)."""
    return {key: value for key, value in model.state_dict().items() if key.rsplit(".", 1)[-1] not in _DERIVED}


LATER_FIELDS = {"tied": True}  # of AINNConfig, with their defaults: what was added must not change older identities


def identity(model: AINN) -> str:
    """16 hexadecimal digits: SHA-256 over config, weights (as float32) and frequency tables, cut to 64 bits.

    Encoder and decoder must agree in all three; a file names the identity it was made with.
    """
    tensors = tensors_of(model)
    state = tuple((t.data_ptr(), t._version) for t in tensors.values())
    kept = _identities.get(model)
    if kept is None or kept[0] != state:
        config = {key: value for key, value in asdict(model.config).items() if LATER_FIELDS.get(key, ...) != value}
        digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
        for key in sorted(tensors):
            digest.update(f"{key}{tuple(tensors[key].shape)}".encode())
            digest.update(tensors[key].detach().float().cpu().contiguous().numpy().tobytes())
        digest.update(latent_coder(model).table_bytes())
        kept = _identities[model] = (state, digest.hexdigest()[:16])
    return kept[1]


def save_pretrained(model: AINN, path: str | Path, facts: dict | None = None) -> Path:
    """Write ``path``.safetensors (float16) and ``path``.json (config, identity, checksum and ``facts`` about the training).

    Returns the path of the first. The identity is that of the rounded weights, which is what a reader gets.

    Raises:
        AINNError: when a value does not fit into float16, or a file cannot be written.
    """
    path = Path(path)
    tensors = {key: value.detach().half().cpu().contiguous() for key, value in tensors_of(model).items()}
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AINNError(f"{key} does not fit into float16")
    path.parent.mkdir(parents=True, exist_ok=True)
    data = save(tensors)
    about = {"identity": identity(_build(model.config, tensors, path.name)), "sha256": hashlib.sha256(data).hexdigest(),
             "config": asdict(model.config), **(facts or {})}
    for ending, content in ((".json", (json.dumps(about, indent=1) + "\n").encode()), (".safetensors", data)):
        with whole_file(path.with_name(path.name + ending)) as file:
            file.write(content)
    return path.with_name(path.name + ".safetensors")


def load_pretrained(name: str | Path) -> AINN:
    """Trained weights by name ("tiny") or by path, ready to code: evaluation mode, entropy tables made on first use.

    Raises:
        AINNError: when there are none of that name (it lists those there are), or the files are damaged.
    """
    given = Path(name)
    given = given.with_suffix("") if given.suffix in (".safetensors", ".json") else given
    candidates = [given] if given.is_absolute() or len(given.parts) > 1 else [folder / given for folder in weight_folders()]
    for path in candidates if given.name else []:
        about_file, file = path.with_name(path.name + ".json"), path.with_name(path.name + ".safetensors")
        if about_file.is_file() and file.is_file():
            break
    else:
        raise AINNError(f"no weights named {str(name)!r}; there are: {', '.join(available()) or 'none'}")
    about = read_about(about_file)
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != about.get("sha256"):
        raise AINNError(f"{file} is damaged: its checksum is not the one in {about_file.name}")
    try:
        tensors = load_file(file)
    except SafetensorError as error:
        raise AINNError(f"{file} cannot be read: {error}") from None
    try:
        config = AINNConfig(**about["config"])
    except (KeyError, TypeError):
        raise AINNError(f"{about_file} holds no configuration of this version") from None
    return _build(config, tensors, path.name)


def available() -> list[str]:
    """Names of all weights that `load_pretrained` finds."""
    return sorted({f.stem for folder in weight_folders() if folder.is_dir() for f in folder.glob("*.safetensors")
                   if f.with_suffix(".json").is_file()})


def find_by_identity(wanted: str) -> AINN:
    """The weights that a file names.

    Raises:
        AINNError: when they are in none of the folders, or damaged.
    """
    damaged = None
    for folder in weight_folders():
        for about in sorted(folder.glob("*.json")) if folder.is_dir() else []:
            try:
                if read_about(about).get("identity") != wanted:
                    continue
            except AINNError:  # some other file of the user's: no reason to stop looking
                continue
            try:
                model = load_pretrained(about.resolve().with_suffix(""))
            except AINNError as error:  # another folder may hold a good copy
                damaged = damaged or error
                continue
            if identity(model) != wanted:
                raise AINNError(f"the weights {about.stem} give other tables here than where the file was made")
            return model
    raise damaged or AINNError(f"this file was made with the weights {wanted}, which are not here; "
                               "put them into data/weights or a folder named by $AINN_WEIGHTS, or pass the model")


def read_about(file: Path) -> dict:
    """The JSON file beside weights, as a dict."""
    try:
        about = json.loads(file.read_text())
    except (OSError, ValueError):
        raise AINNError(f"{file} cannot be read as JSON") from None
    if not isinstance(about, dict):
        raise AINNError(f"{file} does not describe weights")
    return about


def _build(config: AINNConfig, tensors: dict[str, Tensor], name: str) -> AINN:
    model = AINN(config)
    expected = tensors_of(model)
    if set(expected) != set(tensors) or any(expected[key].shape != tensors[key].shape for key in expected):
        raise AINNError(f"the weights {name} do not fit their configuration")
    nn.Module.load_state_dict(model, {key: value.float() for key, value in tensors.items()}, strict=False)
    # channels_last is the faster layout for convolutions on a CPU
    return model.to(memory_format=torch.channels_last).requires_grad_(False).eval()
