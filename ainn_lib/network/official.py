"""The authors' released state dict, key by key, onto `AINN`."""

import re

from torch import Tensor, nn

from ..errors import AINNError

# our key -> the authors' key; the first pattern that matches a key rewrites it
_RULES = [(re.compile(pattern), new) for pattern, new in (
    (r"(h_a|h_s|entropy_parameters)\.(.*)", r"\1.\2"),
    (r"context_prediction\.taps", r"context_prediction.weight"),
    (r"context_prediction\.bias", r"context_prediction.bias"),
    (r"entropy_bottleneck\.matrices\.(\d)", r"entropy_bottleneck._matrix\1"),
    (r"entropy_bottleneck\.biases\.(\d)", r"entropy_bottleneck._bias\1"),
    (r"entropy_bottleneck\.factors\.(\d)", r"entropy_bottleneck._factor\1"),
    (r"(entropy_bottleneck\.quantiles)", r"\1"),
    (r"g_a\.fdsm_d\.(l|h)\w+\.conv1x1\.(.*)", r"inv.freq_D.conv1x1_\1.\2"),
    (r"g_a\.fdsm_d\.(l|h)\w+\.block\.(.*)", r"inv.freq_D.resblock_\1.\2"),
    (r"g_a\.level(\d)\.conv1x1\.weight", r"inv.inv_conv_\1.weight"),
    (r"g_a\.level(\d)\.couplings\.(\d)\.(\w+)\.([GH])\.(\d)\.(.*)",
     lambda m: f"inv.operations{m[1]}.{int(m[2]) + 2}.{m[4]}{2 if m[3] == 'from_high' else 1}"
               f".conv{int(m[5]) // 2 + 1}.{m[6]}"),
    (r"g_s\.cfrm\.(\w+)\.layers\.(\d)\.(.*)",
     lambda m: f"inv.rdb_last_{_branch(m)}.layers.{m[2]}.conv.{m[3]}"),
    (r"g_s\.cfrm\.(\w+)\.fuse\.(.*)", lambda m: f"inv.rdb_last_{_branch(m)}.lff.{m[2]}"),
    (r"g_s\.cfrm\.(\w+)\.skip\.(.*)", lambda m: f"inv.rdb_last_{_branch(m)}.skip.{m[2]}"),
    (r"g_s\.pdm(\d)\.(\w+)\.net\.(.*)", lambda m: f"inv.denoising{_pdm(m)}.{_unet(m[3])}"),
    (r"g_s\.fdsm_s\.masknet\.(.*)", lambda m: f"inv.freq_S.masknet.{_mask_net(m[1])}"),
)]


def _branch(match: re.Match) -> int:
    return 1 if match[1] == "low" else 2


def _pdm(match: re.Match) -> str:
    return f"{int(match[1]) - 1}_{1 if match[2] == 'low' else 2}"


def _unet(key: str) -> str:
    key = re.sub(r"^inc\.", "inc.double_conv.", key)
    key = re.sub(r"^down\.(\d)\.",
                 lambda m: f"down{int(m[1]) + 1}.maxpool_conv.1.double_conv.", key)
    key = re.sub(r"^up\.(\d)\.", lambda m: f"up{int(m[1]) + 1}.conv.double_conv.", key)
    return re.sub(r"^last\.", "outc.conv.", key)


def _mask_net(key: str) -> str:
    key = re.sub(r"^down\.(\d)", lambda m: f"conv{int(m[1]) + 1}", key)
    key = re.sub(r"^up\.(\d)", lambda m: f"deconv{int(m[1]) + 1}", key)
    return re.sub(r"^out\.", "conv4.", key)


def official_names(model: nn.Module) -> dict[str, str]:
    """Our key -> the authors' key, for every weight of an `AINN` at the authors' size.

    The entropy coder's tables and CompressAI's bounds are structure and not weights: left out. The
    authors keep each 1x1 matrix under two keys; ``inv.inv_conv_k.weight`` is the one that counts.
    """
    names = {}
    for key in model.state_dict():
        if key.endswith((".target", ".bound", "._offset", "._quantized_cdf", "._cdf_length")):
            continue
        for pattern, new in _RULES:
            if match := pattern.fullmatch(key):
                names[key] = new(match) if callable(new) else match.expand(new)
                break
    return names


def load_official(model: nn.Module, state_dict: dict) -> nn.Module:
    """Fill an `AINN` at the authors' size from their state dict, ready to code.

    Accepts a plain state dict, one nested under ``state_dict``, and keys with a ``module.`` prefix.

    Raises:
        AINNError: when the layout is another one; the message names what is missing, unexpected or
            misshapen.
    """
    if isinstance(state_dict, dict) and isinstance(state_dict.get("state_dict"), dict):
        state_dict = state_dict["state_dict"]
    if not isinstance(state_dict, dict) or not all(isinstance(key, str) for key in state_dict):
        raise AINNError("this is no state dict: expected a mapping from names to tensors")
    given = {key.removeprefix("module."): value for key, value in state_dict.items()}
    names, own = official_names(model), model.state_dict()
    if problems := _problems(given, names, own):
        raise AINNError("this is not the authors' A-INN layout: " + "; ".join(problems))
    weights = {}
    for ours, theirs in names.items():
        value = given[theirs]
        weights[ours] = value.float() if value.is_floating_point() else value
    taps = own["context_prediction.taps"].shape[2]
    weights["context_prediction.taps"] = (
        weights["context_prediction.taps"].flatten(2)[:, :, :taps].clone())
    # CompressAI's own method insists on the tables; `assign`: no second copy of 860 MB
    nn.Module.load_state_dict(model, weights, strict=False, assign=True)
    model.update(force=True)
    return model.eval()


def _problems(given: dict, names: dict[str, str], own: dict[str, Tensor]) -> list[str]:
    """What of a state dict is missing, unexpected or misshapen; empty where it fits."""
    problems = []
    if missing := [theirs for theirs in names.values() if theirs not in given]:
        problems.append(f"missing {_some(missing)}")
    known = set(names.values())
    structure = ("entropy_bottleneck.", "gaussian_conditional.", "context_prediction.mask",
                 "inv.denoise", "inv.operations")
    unexpected = [key for key in given if key not in known and not key.startswith(structure)]
    if unexpected:
        problems.append(f"unexpected {_some(unexpected)}")
    misshapen = []
    for ours, theirs in names.items():
        need = tuple(own[ours].shape)
        if ours == "context_prediction.taps":
            need = (*need[:2], 5, 5)
        got = tuple(getattr(given.get(theirs), "shape", ()))
        if theirs in given and got != need:
            misshapen.append(f"{theirs} (got {got}, need {need})")
    if misshapen:
        problems.append(f"misshapen {_some(misshapen)}")
    return problems


def _some(names: list[str], most: int = 3) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
