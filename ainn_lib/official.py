"""The authors' released state dict, key by key, onto `AINN`."""

import torch
from torch import Tensor

from .errors import AINNError


def official_names(model: torch.nn.Module) -> dict[str, str]:
    """Our key -> the authors' key, for every tensor of an `AINN` at the authors' size that their file holds.

    Left out are the context mask, the entropy coder's tables and CompressAI's bounds, which are structure and not weights.
    The authors keep each 1x1 matrix under two keys; ``inv.inv_conv_k.weight`` is the one that counts.
    """
    names = {}
    for key in model.state_dict():
        head, _, rest = key.partition(".")
        if head in ("h_a", "h_s", "context_prediction", "entropy_parameters"):
            names[key] = key
        elif head == "entropy_bottleneck":
            for ours, theirs in (("matrices.", "_matrix"), ("biases.", "_bias"), ("factors.", "_factor")):
                rest = rest.replace(ours, theirs)
            names[key] = f"{head}.{rest}"
        elif head == "fdsm_d":
            path, _, rest = rest.partition(".")
            letter = path[0]  # low -> l, high -> h
            rest = rest.replace("conv1x1", f"conv1x1_{letter}").replace("block", f"resblock_{letter}")
            names[key] = f"inv.freq_D.{rest}"
        elif head == "fdsm_s":
            rest = rest.replace("down.2", "conv3").replace("down.1", "conv2").replace("down.0", "conv1")
            rest = rest.replace("up.2", "deconv3").replace("up.1", "deconv2").replace("up.0", "deconv1")
            names[key] = f"inv.freq_S.{rest.replace('out.', 'conv4.')}"
        elif head == "cfrm":
            path, part, rest = rest.split(".", 2)
            if part == "layers":
                index, rest = rest.split(".")
                part, rest = f"layers.{index}", f"conv.{rest}"
            names[key] = f"inv.rdb_last_{1 if path == 'low' else 2}.{part.replace('fuse', 'lff')}.{rest}"
        elif head == "pdm":
            stage, branch, _, rest = rest.split(".", 3)
            for index in range(3):
                rest = rest.replace(f"down.{index}.", f"down{index + 1}.maxpool_conv.1.double_conv.")
                rest = rest.replace(f"up.{index}.", f"up{index + 1}.conv.double_conv.")
            rest = rest.replace("inc.", "inc.double_conv.").replace("last.", "outc.conv.")
            names[key] = f"inv.denoising{3 - int(stage)}_{int(branch) + 1}.{rest}"
        elif head == "levels":
            index, part, *rest = rest.split(".")
            if part == "conv1x1":
                names[key] = f"inv.inv_conv_{int(index) + 1}.weight"
            else:
                coupling, source, net, step, leaf = rest
                net += "2" if source == "from_b" else "1"
                names[key] = f"inv.operations{int(index) + 1}.{int(coupling) + 2}.{net}.conv{int(step) // 2 + 1}.{leaf}"
    return {ours: theirs for ours, theirs in names.items()
            if not theirs.endswith((".mask", "._offset", "._quantized_cdf", "._cdf_length", ".target", ".bound"))}


def load_official(model: torch.nn.Module, state_dict: dict) -> torch.nn.Module:
    """Fill an `AINN` at the authors' size from their state dict, ready to code (evaluation mode, tables made).

    Accepts a plain state dict, one nested under ``state_dict``, and keys with a ``module.`` prefix.

    Raises:
        AINNError: when the layout is another one; the message names what is missing, unexpected or misshapen.
    """
    if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(key, str) for key in state_dict):
        raise AINNError("this is no state dict: expected a mapping from names to tensors")
    state_dict = {key.removeprefix("module."): value for key, value in state_dict.items()}
    names, shapes = official_names(model), {k: v.shape for k, v in model.state_dict().items()}
    problems = []
    if missing := [theirs for theirs in names.values() if theirs not in state_dict]:
        problems.append(f"missing {_some(missing)}")
    known = set(names.values())
    structure = ("entropy_bottleneck.", "gaussian_conditional.", "context_prediction.mask", "inv.denoise", "inv.operations")
    if unexpected := [k for k in state_dict if k not in known and not k.startswith(structure)]:
        problems.append(f"unexpected {_some(unexpected)}")
    misshapen = [f"{theirs} (got {_shape(state_dict[theirs])}, need {tuple(shapes[ours])})" for ours, theirs in names.items()
                 if theirs in state_dict and _shape(state_dict[theirs]) != tuple(shapes[ours])]
    if misshapen:
        problems.append(f"misshapen {_some(misshapen)}")
    if problems:
        raise AINNError("this is not the authors' A-INN layout: " + "; ".join(problems))
    weights = {ours: state_dict[theirs] for ours, theirs in names.items()}
    torch.nn.Module.load_state_dict(model, weights, strict=False)  # CompressAI's own insists on the tables
    model.update(force=True)
    return model.to(memory_format=torch.channels_last).eval()  # the faster layout for convolutions on a CPU


def _shape(value: object) -> tuple[int, ...] | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
