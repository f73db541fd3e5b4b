"""The start of training: an `AINN` that is exactly the optimal linear codec (a truncated KLT of 16x16 blocks).

Random rotations, or Haar matrices, leave a briefly trained network behind JPEG. Started here, it can only improve.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .errors import AINNError
from .invertible import Squeeze
from .model import LEVEL_CHANNELS, AINN
from .rate import NODES, lagrangian

STATISTICS = 64  # images at most, evenly among all, that mean and deviation of the latents are taken from
BLOCK = LEVEL_CHANNELS[-1]  # 768 values of a 16x16 block of RGB


def block_vectors(image: Tensor) -> Tensor:
    """An image (3, H, W), H and W multiples of 16 -> its blocks (768, HW/256) in the squeeze's own channel order."""
    squeeze, v = Squeeze(), image[None]
    for _ in LEVEL_CHANNELS:
        v = squeeze(v)
    return v[0].flatten(1)


def principal_components(images: list[Tensor], offset: float = 0.5) -> Tensor:
    r"""Orthonormal rows (768, 768), strongest first: eigenvectors of the blocks' second moments
    :math:`E[(x - \text{offset})(x - \text{offset})^T]`.

    Args:
        images: uint8 tensors (3, H, W); what exceeds a multiple of 16 is left out.
    """
    moments, count = torch.zeros(BLOCK, BLOCK, dtype=torch.float64), 0
    for image in images:
        h, w = (side // 16 * 16 for side in image.shape[1:])
        blocks = block_vectors(image[:, :h, :w].double() / 255 - offset)
        moments += blocks @ blocks.T
        count += blocks.shape[1]
    if count < BLOCK:
        raise AINNError(f"{BLOCK} blocks of 16x16 pixels are needed for the principal components, got {count}")
    _, vectors = torch.linalg.eigh(moments / count)
    rows = vectors.flip(1).T
    return rows * torch.sign(rows.sum(1, keepdim=True))  # an eigenvector's sign is arbitrary: fix it


def best_step(lam: float) -> float:
    r"""Quantization step of an orthonormal transform at high rate, where
    :math:`-\log_2\Delta/256 + \lambda\,255^2\,\Delta^2/(12\cdot768)` is least (per coefficient of a 16x16x3 block).

    >>> round(best_step(0.013), 3)
    0.175
    """
    return math.sqrt(6 * BLOCK / (256 * math.log(2) * lam * 255**2))


@torch.no_grad()
def start_as_linear_codec(model: AINN, images: list[Tensor]) -> AINN:
    r"""Set the weights so that the model is the KLT of ``images`` truncated to M coefficients; returns it.

    At level 4 the rows of W are :math:`u_g = \sum_h Q_{gh} p_h` with Q the DCT of size G = 768/M, whose first column is
    constant: the group mean then gives :math:`y = p_0/\sqrt G`, and copies of it lead back to exactly p_0. Levels 1-3 are the
    identity, CFRM copies, all other modules start as the identity. Gains start at the best steps for the model's λ,
    the entropy model at the measured mean and deviation of each channel.

    Raises:
        AINNError: for a model that cannot start as the identity (``pdm_skip``) or keeps all 1536 channels.
    """
    c = model.config
    if c.pdm_skip and c.pdm != "none":
        raise AINNError("with pdm_skip the PDM multiplies by 1.2 at the start: the linear codec needs pdm_skip=False")
    if not c.squeeze:
        raise AINNError("the linear codec needs the channel squeeze")
    groups = BLOCK // c.M
    dct = np.array([[math.sqrt((1 if h == 0 else 2) / groups) * math.cos(math.pi * (g + 0.5) * h / groups)
                     for h in range(groups)] for g in range(groups)])
    rows = principal_components(images, c.input_offset)
    for core in model.cores:
        for level in core:
            level.conv1x1.weight.copy_(torch.eye(level.conv1x1.weight.shape[0]))
        core[3].conv1x1.weight.copy_(torch.kron(torch.from_numpy(dct), torch.eye(c.M, dtype=torch.float64)) @ rows)
    if c.fdsm:
        for path in (model.fdsm_d.low, model.fdsm_d.high):
            torch.nn.init.zeros_(path.conv1x1.weight)
            for name, parameter in path.named_parameters():
                if name.endswith("bias"):
                    parameter.zero_()
    if c.cfrm:
        for block in (model.cfrm.low, model.cfrm.high):
            for parameter in (block.fuse.weight, block.fuse.bias, block.skip.bias):
                parameter.zero_()
            block.skip.weight.copy_(torch.eye(c.M).repeat(groups, 1)[:, :, None, None])
    if c.pdm != "none":
        for pdm in (p for pair in model.pdm for p in pair):
            for name, parameter in pdm.net.named_parameters():
                if "last" in name:  # the last convolution of the U-Net, or of every block of a chain
                    parameter.zero_()
    _start_entropy_model(model, [image for image in images if min(image.shape[1:]) >= 16])
    return model


def _start_entropy_model(model: AINN, images: list[Tensor]) -> None:
    c, images = model.config, images[:: -(-len(images) // STATISTICS)]
    y = torch.cat([model.g_a(image[None, :, : image.shape[1] // 16 * 16, : image.shape[2] // 16 * 16].float() / 255)
                   .flatten(2)[0] for image in images], dim=1)
    statistics = torch.cat([y.std(1), y.mean(1)])  # scales first, then means: the order of `gaussian_parameters`
    last = model.entropy_parameters[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    if c.variable_rate:
        qualities = torch.arange(1, NODES + 1, dtype=torch.float32)
        model.rate_control.set_steps([best_step(lam) for lam in lagrangian(qualities, c.lambdas).tolist()],
                                     math.sqrt(BLOCK / c.M))
        model.rate_control.bias.copy_(model.rate_control.base[:, None] * statistics)
    else:
        last.bias.copy_(statistics)
