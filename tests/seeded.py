"""A small network whose weights follow from their names alone, and the files in tests/files.

``python tests/seeded.py`` wrote those files once. They stay as they are: every later version of
the library has to decode them.
"""

import hashlib
import json
import zlib
from pathlib import Path

import torch
from PIL import Image

from ainn_lib import AINN, codec, load_pretrained
from ainn_lib.codec.weights import stored_tensors
from ainn_lib.network import coder

FILES = Path(__file__).with_name("files")


def seeded_network() -> AINN:
    """One rate, MS-CFRM, dense PDM, a synthesis with its own levels: what `tiny` lacks."""
    model = AINN.from_preset(
        "tiny",
        M=96,
        N=8,
        hidden=(4, 4, 4, 4),
        hyper_out=8,
        context_out=8,
        parameter_widths=(8, 8),
        mask_widths=(4, 4, 4),
        pdm="dense",
        ms_cfrm=True,
        tied=False,
        variable_rate=False,
    )
    with torch.no_grad():
        for key, value in stored_tensors(model).items():
            value.copy_(_values(key, value))
    return model.eval().requires_grad_(False)


def _values(key: str, like: torch.Tensor) -> torch.Tensor:
    """Multiples of 2^-12, so that no last digit of a machine's arithmetic can show."""
    generator = torch.Generator().manual_seed(zlib.crc32(key.encode()))
    normal = torch.randn(like.shape, generator=generator, dtype=torch.float64)
    if "level" in key and key.endswith("conv1x1.weight"):  # a reflection is its own inverse
        v = normal[0] / normal[0].norm()
        values = torch.eye(len(v), dtype=torch.float64) - 2 * torch.outer(v, v)
        values = 16 * values if "level4" in key else values  # symbols other than 0
    elif key.startswith("entropy_bottleneck"):
        values = like.double()  # CompressAI's starting values
        if key.endswith("quantiles"):
            values = torch.tensor([-10.0, 0.0, 10.0]).repeat(like.shape[0], 1, 1).double()
        elif "biases" in key:
            values = (normal / 4).clamp(-0.5, 0.5)
    elif like.dim() < 2:
        values = 0.02 * normal
    else:
        values = 0.3 * normal / like[0].numel() ** 0.5
    return torch.round(values * 4096) / 4096


def network(name: str) -> AINN:
    return seeded_network() if name == "seeded" else load_pretrained(name)


def latent_sha256(data: bytes, model: AINN) -> str:
    """Of the latent that a file holds, as float32."""
    about = codec.info(data)
    shape = (1, model.config.latent_channels, -(-about.height // 16), -(-about.width // 16))
    start = len(data) - 4 - about.latent_bytes - about.alpha_bytes - about.profile_bytes
    y_hat = coder.decode(model, data[start : start + about.latent_bytes], shape, about.quality)
    return hashlib.sha256(y_hat.contiguous().numpy().tobytes()).hexdigest()


def photos() -> dict[str, tuple[str, float | None, Image.Image]]:
    """File -> weights, quality, image: modes, sizes and qualities that differ."""
    from ainn_lib.measure.datasets import photo

    cat = photo("chelsea").crop((100, 40, 196, 104))
    ramp = Image.linear_gradient("L").resize(cat.size)
    with_alpha, grey_alpha, with_profile = cat.convert("RGBA"), cat.convert("LA"), cat.copy()
    with_alpha.putalpha(ramp)
    grey_alpha.putalpha(ramp)
    with_profile.info["icc_profile"] = b"not a real profile, kept as it is" * 4
    coffee, dark = photo("coffee"), photo("rocket").crop((0, 0, 80, 48))
    return {
        "rgb-q1": ("tiny", 1.0, cat),
        "rgb-q4": ("tiny", 4.0, cat),
        "rgb-q8": ("tiny", 8.0, cat),
        "rgb-q5.3": ("tiny", 5.296875, cat),
        "one-pixel": ("tiny", 4.0, cat.crop((5, 5, 6, 6))),
        "thin": ("tiny", 3.0, coffee.crop((0, 100, 250, 103))),
        "odd": ("tiny", 6.5, coffee.crop((201, 97, 268, 150))),
        "grey": ("tiny", 2.0, cat.convert("L")),
        "grey-alpha": ("tiny", 4.0, grey_alpha),
        "alpha": ("tiny", 7.0, with_alpha),
        "profile": ("tiny", 4.0, with_profile),
        "dark": ("tiny", 2.5, dark),
        "seeded": ("seeded", None, cat),
        "seeded-odd": ("seeded", None, coffee.crop((201, 97, 268, 150))),
    }


def main() -> None:
    facts = {}
    for name, (weights, quality, image) in photos().items():
        model = network(weights)
        data = codec.encode(image, model, quality)
        (FILES / f"{name}.ainn").write_bytes(data)
        codec.decode(data, model).save(FILES / f"{name}.png")
        facts[name] = {"weights": weights, "latent_sha256": latent_sha256(data, model)}
    (FILES / "latents.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
