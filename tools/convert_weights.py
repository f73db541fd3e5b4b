"""Weights of version 0.1 become weights of version 0.2: the same values under the new names.

``python tools/convert_weights.py FOLDER`` rewrites every NAME.safetensors and NAME.json there.
Files that were encoded with the old weights do not decode with the new ones.
"""

import json
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from ainn_lib.codec.weights import save_pretrained
from ainn_lib.network.config import _SMALL_WIDTHS, AINNConfig
from ainn_lib.network.model import AINN

RULES = (
    (r"fdsm_d\.", r"g_a.fdsm_d."),
    (r"fdsm_s\.", r"g_s.fdsm_s."),
    (r"(cfrm|ms_cfrm)\.", r"g_s.\1."),
    (r"levels\.(\d)\.", lambda m: f"g_a.level{int(m[1]) + 1}."),
    (r"synthesis_levels\.(\d)\.", lambda m: f"g_s.inverse_level{int(m[1]) + 1}.level."),
    (r"pdm\.(\d)\.0\.", lambda m: f"g_s.pdm{4 - int(m[1])}.low."),
    (r"pdm\.(\d)\.1\.", lambda m: f"g_s.pdm{4 - int(m[1])}.high."),
)


def new_name(key: str) -> str:
    """A tensor's name in version 0.2."""
    for pattern, new in RULES:
        if re.match(pattern, key):
            key = re.sub("^" + pattern, new, key)
            break
    key = key.replace(".from_a.", ".from_low.").replace(".from_b.", ".from_high.")
    return key.replace("context_prediction.weight", "context_prediction.taps")


def convert(file: Path) -> None:
    """Rewrite one pair of files in place."""
    about = json.loads(file.with_suffix(".json").read_text())
    if "identity" not in about:
        return  # new already
    config = about.pop("config")
    if config["pdm"] in ("residual", "dense"):  # their widths were derived from the U-Net's
        config["pdm_widths"] = _SMALL_WIDTHS[config["pdm"]]
    tensors = {new_name(key): value.float() for key, value in load_file(file).items()}
    tensors["context_prediction.taps"] = tensors["context_prediction.taps"].flatten(2)[:, :, :12]
    model = AINN(AINNConfig(**config))
    torch.nn.Module.load_state_dict(model, tensors, strict=False)
    recipe = about.get("recipe", {})
    for old, new in (("hold", "constant_fraction"), ("only", "train_part")):
        if old in recipe:
            recipe[new] = recipe.pop(old)
    del about["identity"], about["sha256"]
    about["parameters"] = sum(p.numel() for p in model.parameters())
    save_pretrained(model, file.with_suffix(""), about)


if __name__ == "__main__":
    for name in sorted(Path(sys.argv[1]).glob("*.safetensors")):
        convert(name)
