"""`AINN`, the whole network: two transforms that share their weights, and an entropy model."""

import torch
from torch import Tensor

from ..errors import AINNError
from . import coder
from .blocks import Level
from .config import AINNConfig, preset
from .entropy_model import EntropyModel
from .transforms import Analysis, Synthesis


class AINN(EntropyModel):
    r"""The approximately invertible codec: :math:`y = S\,F(x_L, x_H)`,
    :math:`\hat x = g_s(\hat y)`.

    ``g_a`` and ``g_s`` are the transforms; ``print(model)`` shows their steps. Between them lie
    quantization and the entropy model. Images are (B, 3, H, W) with values in [0, 1], H and W
    multiples of 16; latents are (B, M, H/16, W/16).

    Args:
        config: see `AINNConfig`; ``AINN.from_preset`` has ready ones.
    """

    def __init__(self, config: AINNConfig | None = None):
        super().__init__(config or AINNConfig())
        self.g_a = Analysis(self.config)
        self.g_s = Synthesis(self.config, self.levels)
        self.float()  # whatever PyTorch's default is

    @classmethod
    def from_preset(cls, name: str, **overrides) -> "AINN":
        """A fresh network of a ready-made size: "paper", "student" or "tiny".

        "paper" has 214.8 M parameters. The authors count 215.8 M: with the 13 of 25 taps of the
        context model that are masked.

        Raises:
            AINNError: for an unknown preset, an unknown field or values that do not fit.
        """
        return cls(preset(name, **overrides))

    @classmethod
    def from_official_state_dict(cls, state_dict: dict) -> "AINN":
        """The authors' network from a state dict in their layout, whose tensors become its own."""
        from .official import load_official  # its module is about the file, not the network

        with torch.device("meta"):  # shapes only: 860 MB are not allocated twice
            model = cls()
        return load_official(model, state_dict)

    @property
    def levels(self) -> list[Level]:
        """Levels 1 to 4 of the analysis."""
        return [getattr(self.g_a, f"level{number}") for number in (1, 2, 3, 4)]

    @property
    def synthesis_levels(self) -> list[Level]:
        """Levels 1 to 4 that the synthesis inverts: the same ones, unless it is untied."""
        return [getattr(self.g_s, f"inverse_level{number}").level for number in (1, 2, 3, 4)]

    @property
    def cores(self) -> list[list[Level]]:
        """The levels once, or twice where the synthesis has its own (the untied baseline)."""
        return [self.levels] if self.config.tied else [self.levels, self.synthesis_levels]

    def forward(self, x: Tensor, quality: float | Tensor | None = None,
                noise: tuple[Tensor, Tensor] | None = None) -> dict:
        """Reconstruction and likelihoods, as CompressAI's models return them.

        Args:
            x: (B, 3, H, W) in [0, 1], H and W multiples of 16.
            quality: one number or (B,), from 1 to 8, on a variable-rate network.
            noise: as `quantize` takes it.

        Returns:
            ``x_hat`` (B, 3, H, W), not clamped, and ``likelihoods`` of ``y`` and ``z``. In
            evaluation mode, with quantization "noise", x_hat comes from round(y) as in CompressAI;
            a file's reconstruction comes from round(y - mean) + mean (`codec.reconstruct`).

        Raises:
            AINNError: for another shape.
        """
        if x.dim() != 4 or x.shape[1] != 3 or not x.numel() or x.shape[2] % 16 or x.shape[3] % 16:
            raise AINNError("the network takes images (B, 3, H, W) whose sides are multiples of "
                            f"16, not {tuple(x.shape)}; `codec.encode` pads any image")
        gain, inverse_gain, bias = self.gains(quality, x.shape[0])
        y_hat, likelihoods = self.quantize(self.g_a(x) * gain, bias, noise)
        return {"x_hat": self.g_s(y_hat * inverse_gain), "likelihoods": likelihoods}

    def compress(self, x: Tensor, quality: float | None = None) -> dict:
        """One image (1, 3, H, W) to bytes, as CompressAI's models return them.

        Returns:
            ``strings``, [[stream]] with one stream for both latents, and ``shape``, (H/16, W/16).
        """
        y = self.g_a(x)
        stream = coder.encode_latent(self, y, quality).data
        return {"strings": [[stream]], "shape": tuple(y.shape[2:])}

    def decompress(self, strings: list[list[bytes]], shape: tuple[int, int],
                   quality: float | None = None) -> dict[str, Tensor]:
        """The inverse of `compress`: ``x_hat`` (1, 3, H, W), clamped to [0, 1]."""
        shape = (1, self.config.latent_channels, *shape)
        y_hat = coder.decode(self, strings[0][0], shape, quality)
        return {"x_hat": self.g_s(y_hat).clamp(0, 1)}
