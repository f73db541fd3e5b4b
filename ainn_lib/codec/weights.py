"""Trained weights on disk: float16 safetensors with a JSON file beside them.

The fingerprint, by which a file names its weights, is computed from what a decoder needs.
"""

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..errors import AINNError
from ..network.coder import content_hash, latent_coder
from ..network.config import AINNConfig
from ..network.model import AINN
from ..paths import weight_folders
from .files import atomic_write, make_folder
from .known import available, descriptions, read_about

# what follows from the weights: tables, bounds and counters
_DERIVED = ("_offset", "_quantized_cdf", "_cdf_length", "target", "bound", "scale_table",
            "scale_bound", "num_batches_tracked")
_TRAINING_FIELDS = ("trainable_1x1", "quantization", "lambdas")  # of AINNConfig: not for decoders


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers, without what follows from them (tables, bounds)."""
    return {key: value for key, value in model.state_dict().items()
            if key.rsplit(".", 1)[-1] not in _DERIVED}


def fingerprint(model: AINN) -> str:
    """16 hexadecimal digits: SHA-256 over all that a decoder needs, cut to 64 bits.

    These are the synthesis with the levels it inverts, hyper-synthesis, causal context, entropy
    parameters, inverse gains, frequency tables, and the configuration where it differs from the
    defaults (so that a field added later changes no older fingerprint). What only the encoder or
    the training needs may change: old files still decode.
    """
    default = AINNConfig()
    config = {key: value for key, value in asdict(model.config).items()
              if value != getattr(default, key) and key not in _TRAINING_FIELDS}
    tensors = _decoder_tensors(model)
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    digest = hashlib.sha256(json.dumps([config, shapes], sort_keys=True).encode())
    digest.update(content_hash(tensors[key].float() for key in sorted(tensors)).encode())
    digest.update(latent_coder(model).table_bytes())
    return digest.hexdigest()[:16]


def _decoder_tensors(model: AINN) -> dict[str, Tensor]:
    parts = {"g_s": model.g_s, "h_s": model.h_s, "context": model.context_prediction,
             "parameters": model.entropy_parameters,
             **{f"level{number}": level
                for number, level in enumerate(model.synthesis_levels, start=1)}}
    tensors = {f"{name}.{key}": value for name, part in parts.items()
               for key, value in stored_tensors(part).items()
               if not (name == "g_s" and ".level." in key)}  # an untied synthesis's own levels
    if model.config.variable_rate:
        rate = model.rate_control
        tensors |= {"inverse_base": rate.inverse_base, "inverse_factor": rate.inverse_factor,
                    "bias": rate.bias}
    return tensors


def save_pretrained(model: AINN, path: str | Path, facts: dict | None = None) -> Path:
    """Write ``path``.safetensors (float16) and ``path``.json; returns the path of the first.

    The JSON file holds configuration, fingerprint, checksum, and ``facts`` about the training. The
    fingerprint is that of the rounded weights, which is what a reader gets.

    Raises:
        AINNError: when a value does not fit into float16, or a file cannot be written.
    """
    path = Path(path)
    tensors = {key: value.detach().half().cpu().contiguous()
               for key, value in stored_tensors(model).items()}
    for key, value in tensors.items():
        if not torch.isfinite(value).all():
            raise AINNError(f"{key} does not fit into float16")
    make_folder(path.parent)
    kept, same = _without_copies(tensors)
    data = safetensors.torch.save(kept)
    rounded = _build(model.config, tensors, path.name)
    about = {"fingerprint": fingerprint(rounded), "sha256": hashlib.sha256(data).hexdigest(),
             "config": asdict(model.config), **({"same": same} if same else {}), **(facts or {})}
    text = json.dumps(about, indent=1) + "\n"
    for ending, content in ((".json", text.encode()), (".safetensors", data)):
        with atomic_write(path.with_name(path.name + ending)) as file:
            file.write(content)
    return path.with_name(path.name + ".safetensors")


def _without_copies(tensors: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors without those that equal an earlier one, and for each of these the other's name."""
    kept, same, seen = {}, {}, {}
    for key, value in tensors.items():
        first = seen.setdefault((tuple(value.shape), content_hash([value])), key)
        if first == key:
            kept[key] = value
        else:
            same[key] = first
    return kept, same


def load_pretrained(name: str | Path) -> AINN:
    """Trained weights by name ("tiny") or by path, ready to code: evaluation mode, no gradients.

    A text with a slash or an ending is a path: "./tiny", "tiny.safetensors", or the folder of a
    training run, "runs/mine".

    Raises:
        AINNError: when there are none of that name (it lists those there are), the files are
            damaged, or a folder holds no finished run.
    """
    given = Path(name)
    is_path = isinstance(name, Path) or any(mark in name for mark in ("/", os.sep))
    if given.suffix in (".safetensors", ".json"):
        given, is_path = given.with_suffix(""), True
    candidates = [given] if is_path else [folder / given for folder in weight_folders()]
    for path in candidates if given.name else []:
        about, weights = (path.with_name(path.name + end) for end in (".json", ".safetensors"))
        if about.is_file() and weights.is_file():
            return _load(about, weights)
    if is_path and Path(name).is_dir():
        found = list(given.glob("weights/*.safetensors"))
        if len(found) == 1:
            return load_pretrained(found[0])
        raise AINNError(f"no weights named {str(name)!r}: a finished run's folder holds one file "
                        f"weights/*.safetensors, this one {len(found)}")
    there = ", ".join(available()) or "none"
    raise AINNError(f"no weights named {str(name)!r}; there are: {there}")


def _load(about_file: Path, file: Path) -> AINN:
    about = read_about(about_file)
    data = file.read_bytes()
    if hashlib.sha256(data).hexdigest() != about.get("sha256"):
        raise AINNError(f"{file} is damaged: its checksum is not the one in {about_file.name}")
    try:
        tensors = safetensors.torch.load(data)
    except SafetensorError as error:
        raise AINNError(f"{file} cannot be read: {error}") from None
    try:
        config = AINNConfig(**about["config"])
        copies = {key: tensors[first] for key, first in about.get("same", {}).items()}
    except (KeyError, TypeError, AttributeError):
        raise AINNError(f"{about_file} holds no configuration of this version") from None
    return _build(config, {**tensors, **copies}, file.stem)


def find_by_fingerprint(wanted: str) -> AINN:
    """The weights that a file names.

    Raises:
        AINNError: when they are in none of the folders, or damaged.
    """
    damaged = None
    for about in descriptions(wanted):
        try:
            model = load_pretrained(about.with_suffix("").absolute())
        except AINNError as error:  # another folder may hold a good copy
            damaged = damaged or error
            continue
        if fingerprint(model) != wanted:
            raise AINNError(
                f"the weights {about.stem} give other tables here than where the file was made")
        return model
    raise damaged or AINNError(
        f"this file was made with the weights {wanted}, which are not here; put them into "
        "data/weights or a folder named by $AINN_WEIGHTS, or pass the model")


def _build(config: AINNConfig, tensors: dict[str, Tensor], name: str) -> AINN:
    with torch.device("meta"):  # shapes first: a forged configuration allocates nothing
        model = AINN(config)
    expected = {key: value.shape for key, value in stored_tensors(model).items()}
    if expected != {key: value.shape for key, value in tensors.items()}:
        raise AINNError(f"the weights {name} do not fit their configuration")
    # a copy each, where several names have one tensor: they may be trained on
    state = {key: value.float().clone() for key, value in tensors.items()}
    nn.Module.load_state_dict(model, state, strict=False, assign=True)
    for norm in (m for m in model.modules() if isinstance(m, nn.BatchNorm2d)):
        norm.num_batches_tracked = torch.tensor(0)
    # channels_last is the faster layout for convolutions on a CPU
    return model.to(memory_format=torch.channels_last).requires_grad_(False).eval()
