"""Our weights under CompressAI's own evaluation, which knows nothing of `ainn_lib`::

    python -m ainn_lib.eval_model pretrained DIR -a ainn-tiny -q 1,4,8

takes the arguments of ``python -m compressai.utils.eval_model``. Its ``__main__`` reads two tables of its own
(``register_model`` does not reach them): this module adds our weights to them and starts it. Rates are the sizes of whole .ainn
files. CompressAI pads images to multiples of 64, so numbers equal those of ``ainn evaluate`` where sides are such multiples.
"""

import sys

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import codec
from .weights import available, load_pretrained


class EvalModel(nn.Module):
    """A network at one quality behind the two methods that CompressAI's evaluation calls.

    Args:
        weights: name or path.
        quality: 1 to 8; not used by a fixed-rate network.
    """

    def __init__(self, weights: str, quality: float):
        super().__init__()
        self.net = load_pretrained(weights)
        self.quality = quality if self.net.config.variable_rate else None

    def compress(self, x: Tensor) -> dict:
        """x (1, 3, H, W) in [0, 1] -> the bytes of a file, as CompressAI's ``strings``; ``shape`` is that of x."""
        pixels = (x[0] * 255).round().clamp(0, 255).byte().permute(1, 2, 0).cpu().numpy()
        return {"strings": [[codec.encode(Image.fromarray(pixels), self.net, self.quality)]], "shape": x.shape[-2:]}

    def decompress(self, strings: list[list[bytes]], shape: torch.Size) -> dict[str, Tensor]:
        """The file's bytes -> ``x_hat`` (1, 3, H, W), 8-bit values over 255."""
        pixels = np.array(codec.decode(strings[0][0], self.net))
        x_hat = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
        return {"x_hat": x_hat.to(next(self.net.parameters()).device)}

    def forward(self, x: Tensor) -> dict:
        """The estimate of ``--entropy-estimation``: no file is made."""
        return self.net(x, self.quality)


def main(arguments: list[str] | None = None) -> None:
    """CompressAI's ``eval_model`` with our weights among its pretrained models, as ainn-NAME."""
    import compressai.utils.eval_model.__main__ as evaluation

    for name in available():
        evaluation.pretrained_models[f"ainn-{name}"] = lambda quality, name=name, **_: EvalModel(name, quality)
    evaluation.main(sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    main()
