"""A real photo becomes a real file, and comes back."""

import contextlib
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import AINNError
from ..network import coder
from ..network.entropy_model import GRID, QUALITIES
from ..network.model import AINN
from .container import info, pack, pack_sides, unpack
from .images import Prepared, finish, prepare, to_pixels, to_tensor
from .refine import check_effort, refine, temperatures_of, trade_off
from .weights import find_by_fingerprint, fingerprint

#: images of more pixels than that pass through the transforms in tiles of that side
TILE, TILED_FROM = 512, 2**21
CORRECTIONS = 2  #: of the quality, where a refined file aims at a size


def encode(image: Image.Image, model: AINN, quality: float | None = None,
           effort: int = 0) -> bytes:
    """The bytes of a file that holds ``image``.

    Args:
        image: any Pillow image from 1x1 up. `codec.images` says what becomes of its mode; a
            warning names what is lost.
        model: trained weights, for instance from `load_pretrained`.
        quality: from 1 (smallest file) to 8 (best), kept in steps of 1/256; None is the model's
            default, 4. Only for variable-rate networks.
        effort: 0 codes the latent of g_a; 1, 2 and 3 refine it by 30, 100 and 300 steps of
            gradient descent first. The decoder is the same and takes as long.

    Raises:
        AINNError: for a quality on a fixed-rate network or out of range, another effort, and an
            image that `prepare` refuses.
    """
    quality, prepared = model.quality_of(quality), _prepared(image)
    latent = encode_prepared(prepared, model, quality, effort)
    return file_bytes(prepared, model, quality, latent.data)


def encode_prepared(prepared: Prepared, model: AINN, quality: float | None,
                    effort: int = 0) -> coder.CodedLatent:
    """The latent that a file of the image holds.

    A refined one is taken only where it lowers R + λD of the file and its decoded pixels.
    """
    check_effort(effort)
    y = analyse(prepared, model)
    plain = coder.encode_latent(model, y, quality)
    if effort == 0:
        return plain
    x = to_tensor(prepared.rgb).to(y)
    with evaluating(model):
        refined = refine(model, x, y, quality, temperatures_of(effort))
    refined = coder.encode_latent(model, refined, quality)
    return min(plain, refined, key=lambda latent: _cost(latent, prepared, model, quality))


def _cost(latent: coder.CodedLatent, prepared: Prepared, model: AINN,
          quality: float | None) -> float:
    r"""R + λD: :math:`\mathrm{bpp} + \lambda\,\mathrm{MSE}` of the 8-bit decoded pixels."""
    height, width, _ = prepared.rgb.shape
    decoded = synthesise(latent.y_hat, model, height, width).astype(np.float32)
    bpp = 8 * len(latent.data) / (height * width)
    return bpp + trade_off(model, quality) * float(np.square(decoded - prepared.rgb).mean())


def encode_to_bpp(image: Image.Image, model: AINN, bpp: float, effort: int = 0) -> bytes:
    """The best file of at most ``bpp`` bits per pixel, header included.

    With an effort, the latent is refined at the quality that fits without one, and, since that
    changes the size, at most twice more at a corrected quality.

    Raises:
        AINNError: when none is that small, the network has one fixed rate, or the effort is none.
    """
    check_effort(effort)
    if not model.config.variable_rate:
        raise AINNError("this network has one fixed rate; it cannot aim at a size")
    if not bpp > 0:
        raise AINNError(f"bits per pixel must be above 0, got {bpp}")
    prepared = _prepared(image)
    y, sides = analyse(prepared, model), pack_sides(prepared)
    pixels, weights = prepared.rgb.shape[0] * prepared.rgb.shape[1], fingerprint(model)

    def write(step: int, effort: int = 0) -> bytes:
        if effort:
            latent = encode_prepared(prepared, model, step / GRID, effort)
        else:
            latent = coder.encode_latent(model, y, step / GRID)
        return pack(prepared, weights, step / GRID, latent.data, sides)

    lowest, highest = (int(quality * GRID) for quality in QUALITIES)
    best = largest_within(write, lowest, highest, bpp * pixels / 8)
    if best is None:
        smallest = 8 * len(write(lowest)) / pixels
        raise AINNError(f"the smallest file of this image has {smallest:.3f} bits per pixel")
    return _refined_within(write, best, effort, bpp * pixels / 8) if effort else best[1]


def _refined_within(write: Callable[..., bytes], plain: tuple[int, bytes], effort: int,
                    limit: float) -> bytes:
    """A refined file of at most ``limit`` bytes, else ``plain``'s: (step, file) without effort.

    Refining changes the size. So the step is corrected: a plain file of the new step is as much
    larger than the limit as refining made the last one smaller.
    """
    step, data = plain
    result = data
    for _ in range(1 + CORRECTIONS):
        refined = write(step, effort)
        if len(refined) <= limit:
            result = refined
        aim = limit * len(data) / len(refined)
        following = largest_within(write, *(int(q * GRID) for q in QUALITIES), aim)
        if following is None or following[0] == step:
            break
        step, data = following
    return result


def largest_within(write: Callable[[int], bytes], low: int, high: int,
                   limit: float) -> tuple[int, bytes] | None:
    """Bisection: the last of the steps low ... high whose file has at most ``limit`` bytes.

    Args:
        write: step -> file; larger steps give larger files.

    Returns:
        The step and its file; None when even the first file is larger.

    >>> largest_within(lambda step: bytes(10 * step), 1, 9, 42)[0]
    4
    """
    data = write(low)  # the smallest file first: is there one at all?
    if len(data) > limit:
        return None
    best, low = (low, data), low + 1
    while low <= high:
        middle = (low + high) // 2
        data = write(middle)
        if len(data) <= limit:
            best, low = (middle, data), middle + 1
        else:
            high = middle - 1
    return best


def reconstruct(image: Image.Image, model: AINN, quality: float | None = None,
                effort: int = 0) -> Image.Image:
    """The encoder's own reconstruction: what `decode` gives for `encode`'s bytes."""
    quality, prepared = model.quality_of(quality), _prepared(image)
    y_hat = encode_prepared(prepared, model, quality, effort).y_hat
    rgb = synthesise(y_hat, model, *prepared.rgb.shape[:2])
    return finish(rgb, prepared.grey, prepared.alpha, prepared.profile)


def decode(data: bytes, model: AINN | None = None, bf16: bool = False) -> Image.Image:
    """The image that a file holds, in mode L, LA, RGB or RGBA.

    The latents are the same on every machine. The float32 synthesis after them gives exactly the
    encoder's reconstruction on the same build and settings, and values within 1/255 of it
    elsewhere.

    Args:
        model: the weights it was made with; None looks for them in ``data/weights`` and
            $AINN_WEIGHTS.
        bf16: run the synthesis in bfloat16: faster where the processor has instructions for it
            (much slower where it has none), and the picture is no longer exactly the encoder's.

    Raises:
        AINNError: with one sentence, when the bytes are no file of ours, newer, damaged, too
            large, or made with other weights. Time and memory are bounded by `MAX_PIXELS`
            whatever the bytes say.
    """
    about = info(data)
    if model is None:
        model = find_by_fingerprint(about.fingerprint)
    elif fingerprint(model) != about.fingerprint:
        raise AINNError(f"this file was made with the weights {about.fingerprint}, the given "
                        f"model has {fingerprint(model)}")
    if (about.quality is None) == model.config.variable_rate:
        raise AINNError("the file's header contradicts its weights: damaged")
    latent, alpha, profile = unpack(bytes(data), about)
    shape = (1, model.config.latent_channels, -(-about.height // 16), -(-about.width // 16))
    y_hat = coder.decode(model, latent, shape, about.quality)
    with torch.autocast(y_hat.device.type, torch.bfloat16, enabled=bf16):
        rgb = synthesise(y_hat, model, about.height, about.width)
    return finish(rgb, "L" in about.mode, alpha, profile)


def analyse(prepared: Prepared, model: AINN) -> Tensor:
    """g_a of the image's pixels, in tiles where they are many: (1, M, h, w)."""
    height, width, _ = prepared.rgb.shape
    like = model.entropy_bottleneck.quantiles
    with evaluating(model):
        return model.g_a(to_tensor(prepared.rgb).to(like), _tile(height, width))


def synthesise(y_hat: Tensor, model: AINN, height: int, width: int) -> np.ndarray:
    """g_s of a latent (1, M, h, w), in tiles for many pixels: (height, width, 3) uint8."""
    with evaluating(model):
        x_hat = model.g_s(y_hat, _tile(height, width))
    return to_pixels(x_hat[:, :, :height, :width])


def file_bytes(prepared: Prepared, model: AINN, quality: float | None, latent: bytes) -> bytes:
    """The bytes of the file, given those of its latent."""
    return pack(prepared, fingerprint(model), quality, latent, pack_sides(prepared))


def _prepared(image: Image.Image) -> Prepared:
    prepared = prepare(image)
    for note in prepared.notes:
        warnings.warn(note, UserWarning, stacklevel=3)
    return prepared


def _tile(height: int, width: int) -> int | None:
    return TILE if height * width > TILED_FROM else None


@contextlib.contextmanager
def evaluating(model: AINN) -> Iterator[None]:
    """No gradients, and evaluation mode: in training, batch norms would change with every image."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes.items():
            module.training = training
