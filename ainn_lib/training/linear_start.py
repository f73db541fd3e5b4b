"""The start of training: a network that is exactly the optimal linear codec.

That codec is a truncated KLT of 16x16 blocks. A network trained briefly from random weights is
worse than JPEG; from here it can only improve.
"""

import math

import torch
from torch import Tensor, nn

from ..errors import AINNError
from ..network.blocks import Squeeze
from ..network.config import LEVEL_CHANNELS, AINNConfig
from ..network.entropy_model import NODES, lagrangian
from ..network.model import AINN
from ..network.pdm import Denoise
from .samples import crop_to_multiple

STATISTICS = 64  # at most so many images, evenly spaced, give mean and deviation of the latents
BLOCK = LEVEL_CHANNELS[-1]  # 768 values of a 16x16 block of RGB


def block_vectors(image: Tensor) -> Tensor:
    """Blocks of an image (3, H, W), H and W multiples of 16, as columns (768, HW/256).

    Their values are in the order of channels that four squeezes give.
    """
    squeeze, v = Squeeze(), image[None]
    for _ in LEVEL_CHANNELS:
        v = squeeze(v)
    return v[0].flatten(1)


def principal_components(images: list[Tensor], offset: float = 0.5) -> Tensor:
    r"""Orthonormal rows (768, 768), strongest first, of uint8 images (3, H, W).

    They are the eigenvectors of the blocks' second moments
    :math:`E[(x - \text{offset})(x - \text{offset})^T]`. What exceeds a multiple of 16 is left out.
    Raises AINNError for fewer than 768 blocks.
    """
    moments, count = torch.zeros(BLOCK, BLOCK, dtype=torch.float64), 0
    for image in images:
        blocks = block_vectors(crop_to_multiple(image, 16).double() / 255 - offset)
        moments += blocks @ blocks.T
        count += blocks.shape[1]
    if count < BLOCK:
        raise AINNError(f"principal components need {BLOCK} blocks of 16x16 pixels, got {count}")
    _, vectors = torch.linalg.eigh(moments / count)
    rows = vectors.flip(1).T
    return torch.where(rows.sum(1, keepdim=True) < 0, -rows, rows)  # the sign is arbitrary: fix it


def best_step(lam: float) -> float:
    r"""Best quantization step of an orthonormal transform at high rate.

    It minimizes :math:`-\log_2\Delta/256 + \lambda\,255^2\,\Delta^2/(12\cdot768)`, the cost of one
    coefficient of a 16x16x3 block.

    >>> round(best_step(0.013), 3)
    0.175
    """
    return math.sqrt(6 * BLOCK / (256 * math.log(2) * lam * 255**2))


def can_start_as_linear_codec(config: AINNConfig) -> bool:
    """Whether all modules can start as the identity: PDM with ``pdm_skip`` cannot."""
    return config.squeeze and not (config.pdm_skip and config.pdm != "none")


@torch.no_grad()
def start_as_linear_codec(model: AINN, images: list[Tensor]) -> AINN:
    r"""Make the model the KLT of uint8 ``images`` (3, H, W), truncated to M coefficients.

    Level 4 multiplies by :math:`u_g = \sum_h Q_{gh} p_h`, with p the principal components in
    G = 768/M groups and Q the DCT of size G. Its first column is constant: the group mean gives
    :math:`y = p_0/\sqrt G`, and copies of it lead back to exactly p_0. All other modules start as
    the identity; CFRM copies.

    A gain makes quantization use the best step for each λ of the model. Without variable rate, W
    of level 4 contains it. The entropy model starts at each channel's mean and deviation.

    Returns the model. Raises AINNError for one that cannot start so (with ``pdm_skip``, or without
    the squeeze), and as `principal_components` does.
    """
    c, groups = model.config, BLOCK // model.config.M
    if not can_start_as_linear_codec(c):
        raise AINNError("the linear codec needs the channel squeeze, and a PDM without pdm_skip")
    rows = principal_components(images, c.input_offset)
    rows = torch.kron(_dct(groups), torch.eye(c.M, dtype=torch.float64)) @ rows
    if not c.variable_rate:
        rows *= math.sqrt(groups) / best_step(math.sqrt(c.lambdas[0] * c.lambdas[1]))
    for levels in model.cores:
        for level in levels:
            nn.init.eye_(level.conv1x1.weight)
        levels[3].conv1x1.weight.copy_(rows)
    _zero(model.g_a.fdsm_d, "conv1x1.weight", "bias")
    if c.cfrm:
        _zero(model.g_s.cfrm, "fuse.weight", "fuse.bias", "skip.bias")
        for block in (model.g_s.cfrm.low, model.g_s.cfrm.high):
            block.skip.weight.copy_(torch.eye(c.M).repeat(groups, 1)[:, :, None, None])
    for _, step in model.g_s.steps:
        if isinstance(step, Denoise):
            _zero(step, "last.weight", "last.bias")  # of the U-Net, or of every block of a chain
    _start_entropy_model(model, [image for image in images if min(image.shape[1:]) >= 16])
    return model


def _start_entropy_model(model: AINN, images: list[Tensor]) -> None:
    latents = []
    for image in images[:: math.ceil(len(images) / STATISTICS)]:
        x = crop_to_multiple(image, 16)[None].float() / 255
        latents.append(model.g_a(x)[0].flatten(1))
    y = torch.cat(latents, dim=1)
    statistics = torch.cat([y.std(1), y.mean(1)])  # in the order of `gaussian_parameters`
    last = model.entropy_parameters[-1]
    nn.init.zeros_(last.weight)
    if not model.config.variable_rate:
        last.bias.copy_(statistics)
        return
    nn.init.zeros_(last.bias)
    lambdas = lagrangian(torch.arange(1.0, NODES + 1), model.config.lambdas)
    control = model.rate_control
    control.set_steps([best_step(lam) for lam in lambdas.tolist()], math.sqrt(BLOCK / len(y)))
    control.bias.copy_(control.base[:, None] * statistics)


def _dct(size: int) -> Tensor:
    """The orthonormal DCT (size, size) in float64; its first column is constant."""
    g, h = torch.arange(size, dtype=torch.float64)[:, None], torch.arange(size)
    basis = torch.cos(math.pi * (g + 0.5) * h / size) * math.sqrt(2 / size)
    basis[:, 0] = 1 / math.sqrt(size)
    return basis


def _zero(module: nn.Module, *endings: str) -> None:
    for name, parameter in module.named_parameters():
        if name.endswith(endings):
            parameter.zero_()
