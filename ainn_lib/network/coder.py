r"""Context-model coding that is fast and decodes anywhere.

**Fast.** With the causal 5x5 mask, position (i, j) needs nothing from the positions with the same
j + 3i. They are coded as one batch, the wavefront: an h x w latent takes w + 3(h - 1) steps in
place of h w. The order of the symbols (step by step; inside a step by table, then by position and
channel) is part of the format.

**Anywhere.** The entropy path runs on the CPU on fixed-point grids, as whole numbers carried in
float64: activations on multiples of 2^-12 with at most 24 bits, weights of a layer on a common
power of two with at most 16 bits. Every dot product is then a whole number below 2^53, exact in
any order of summation, on any thread count or instruction set. What follows it (LeakyReLU,
rounding) is one correctly rounded operation for each value. So are the table index and, since
means lie on the grid too, the latents: identical everywhere.

The coder is constriction's ANS coder with CompressAI's frequency tables, 16 bits. It is
memory-safe: a forged payload decodes to wrong symbols, never past a buffer.
"""

import copy
import hashlib
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import ModuleType

import numpy as np
import torch
import torch.nn.functional as F
from compressai.entropy_models import GaussianConditional
from torch import Tensor, nn

from ..errors import AINNError
from .entropy_model import CAUSAL_TAPS, EntropyModel, wavefront

ACTIVATION_BITS = 24  #: with sign: |activation| < 2^23 units of 2^-12, that is 2048
FRACTION = 12
WEIGHT_BITS = 16  #: with sign
UNIT = 2.0**-FRACTION
_LIMIT = 2.0 ** (ACTIVATION_BITS - 1) - 1
_EXACT = 2.0**53  # float64 holds every whole number up to here
_LARGEST_SYMBOL = 2**19
_LARGEST_SIZE = 20  #: bits of the distance of a symbol from its table
_DAMAGED = "the coded latent is damaged"


@dataclass(frozen=True)
class CodedLatent:
    """What `encode_latent` made of a latent: the stream, and what every symbol in it cost."""

    data: bytes
    y_hat: Tensor  #: (1, M, h, w), what `decode` returns for these bytes
    batches: list  #: symbols and tables of every step, as `_Batch`
    z_batch: object

    @property
    def symbols(self) -> Tensor:
        """The integers that were coded, (M, h, w) int32."""
        return self._in_place([batch.values for batch in self.batches]).int()

    @property
    def y_bits(self) -> Tensor:
        """What each of them cost, -log2 of its table frequency, (M, h, w)."""
        return self._in_place([batch.bits() for batch in self.batches])

    @property
    def z_bits(self) -> Tensor:
        """The same for the hyper-latent, (N, ceil(h/4), ceil(w/4))."""
        return torch.from_numpy(self.z_batch.bits())

    def _in_place(self, steps: list[np.ndarray]) -> Tensor:
        """From the order of the wavefront to (M, h, w)."""
        grid = torch.empty(self.y_hat.shape[1:])
        for (i, j), values in zip(wavefront(*grid.shape[1:]), steps, strict=True):
            grid[:, i, j] = torch.from_numpy(values.T).float()
        return grid


@torch.no_grad()
def encode_latent(model: EntropyModel, y: Tensor, quality: float | None = None) -> CodedLatent:
    """Code the latent y = g_a(x), (1, M, h, w), real values, at a quality.

    Raises:
        AINNError: when y has another shape or values that are not finite.
    """
    _check_shape(model, tuple(y.shape))
    gain, inverse_gain, bias = model.gains(quality)
    y_scaled = y * gain
    z = model.h_a(y_scaled)
    if not (torch.isfinite(y_scaled).all() and torch.isfinite(z).all()):
        raise AINNError("the latent has values that are not finite")
    return latent_coder(model).encode(y_scaled[0].double().cpu(), z[0].double().cpu(),
                                      bias, inverse_gain)


@torch.no_grad()
def decode(model: EntropyModel, data: bytes, shape: tuple[int, ...],
           quality: float | None = None) -> Tensor:
    """The latent y_hat (1, M, h, w) that the encoder saw as its own; ``shape`` is y's.

    Raises:
        AINNError: when the bytes are not a whole stream of such a latent. Damaged bytes may also
            decode to wrong values.
    """
    _check_shape(model, shape)
    _, inverse_gain, bias = model.gains(quality)
    return latent_coder(model).decode(data, shape[2], shape[3], bias, inverse_gain)


def _check_shape(model: EntropyModel, shape: tuple[int, ...]) -> None:
    channels = model.config.latent_channels
    if len(shape) != 4 or shape[0] != 1 or shape[1] != channels or min(shape) < 1:
        raise AINNError(f"a latent has the shape (1, {channels}, h, w), got {tuple(shape)}")


class FixedPointLayer:
    r"""A convolution (or a part of one) on grids: :math:`s = W a + b` in whole numbers.

    ``weight`` (out, fan_in) holds whole numbers of at most 16 bits, ``bias`` (out,) whole numbers
    in the units of the sum. ``scale`` (out,) is the power of two that turns a sum over activations
    in units of 2^-12 back into such units.

    Raises:
        AINNError: for weights that are not finite, or so many that a sum may reach 2^53.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        weight, bias = (v.detach().double().cpu() for v in (weight.flatten(1), bias))
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise AINNError("the entropy model has weights that are not finite")
        _, exponent = torch.frexp(weight.abs().amax(1))
        fraction = (WEIGHT_BITS - 1 - exponent).clamp(max=30).double()
        self.scale = torch.exp2(-fraction)
        self.weight = torch.round(weight / self.scale[:, None])
        self.bias = torch.round(bias / (self.scale * UNIT)).clamp(-_EXACT / 2, _EXACT / 2)
        if self.largest_sum() >= _EXACT:
            raise AINNError("the entropy model's weights are too large for exact sums")

    def largest_sum(self) -> float:
        """The largest |partial sum| that any activations can cause, in units of the sum."""
        return float((self.weight.abs().sum(1) * (_LIMIT + 1) + self.bias.abs()).max())

    def to_grid(self, total: Tensor, leaky: bool) -> Tensor:
        """Sum (.., out) -> activations in units of 2^-12, after LeakyReLU 0.01 where asked."""
        value = total * self.scale
        if leaky:
            value = torch.where(value < 0, value * 0.01, value)
        return torch.round(value).clamp(-_LIMIT, _LIMIT)


class LatentCoder:
    """The fixed-point twin of a model's entropy path, with its tables."""

    def __init__(self, model: EntropyModel):
        self.hyper = []  # (layer, kernel, upsampling)
        for conv in model.h_s[::2]:
            up = 1
            if isinstance(conv, nn.Sequential):  # CompressAI's sub-pixel convolution
                conv, up = conv[0], conv[1].upscale_factor
            self.hyper.append((FixedPointLayer(conv.weight, conv.bias), conv.kernel_size[0], up))
        context = model.context_prediction
        self.context = FixedPointLayer(context.rows(), context.bias)
        self.parameters = [FixedPointLayer(conv.weight, conv.bias)
                           for conv in model.entropy_parameters[::2]]
        self.channels = model.config.latent_channels
        self.hyper_channels = model.config.hyper_out

        scales = torch.linspace(np.log(0.11), np.log(256.0), 64, dtype=torch.float64).exp()
        self.thresholds = torch.round(scales[:-1] * 2**20) / 2**20
        self.y_tables = _tables(*_gaussian_frequencies(scales))
        bottleneck = copy.deepcopy(model.entropy_bottleneck).double().cpu()
        self.medians = torch.round(bottleneck.quantiles[:, 0, 1].detach() / UNIT)
        bottleneck.quantiles.data[:, 0, 1] = self.medians * UNIT
        bottleneck.update(force=True)
        self.z_tables = _tables(
            bottleneck.quantized_cdf, bottleneck.cdf_length, bottleneck.offset)

    def table_bytes(self) -> bytes:
        """All frequency tables, thresholds and medians: a decoder needs the same ones."""
        parts = [table.frequencies for table in (*self.y_tables, *self.z_tables)]
        parts += [self.thresholds.numpy(), self.medians.numpy()]
        return b"".join(part.tobytes() for part in parts)

    def encode(self, y: Tensor, z: Tensor, bias: Tensor, inverse_gain: Tensor) -> CodedLatent:
        """Code y (M, h, w) and z (N, ceil(h/4), ceil(w/4)), float64, both with their gain."""
        z_symbols = torch.round(z - self.medians[:, None, None] * UNIT)
        z_symbols = z_symbols.clamp(-_LARGEST_SYMBOL, _LARGEST_SYMBOL)
        z_batch = _Batch(z_symbols.numpy(), self._z_indexes(z_symbols.shape), self.z_tables)
        rows, batches = y.flatten(1).T.contiguous(), []

        def choose(positions: Tensor, indexes: np.ndarray, means: Tensor) -> Tensor:
            chosen = torch.round(rows[positions] - means * UNIT)
            chosen = chosen.clamp(-_LARGEST_SYMBOL, _LARGEST_SYMBOL)
            chosen += 0.0  # -0 becomes 0, as the decoder has it: the latents agree in every bit
            batches.append(_Batch(chosen.numpy(), indexes, self.y_tables))
            return chosen

        hyper = self.hyper_synthesis(z_symbols)
        units = self._wavefronts(hyper, *y.shape[1:], bias, choose)
        ans = _streams().stack.AnsCoder()
        for batch in reversed([z_batch, *batches]):  # a stack: what is decoded first goes in last
            batch.push(ans)
        data = ans.get_compressed().astype("<u4").tobytes()
        return CodedLatent(data, _scaled(units, inverse_gain), batches, z_batch)

    def decode(self, data: bytes, height: int, width: int, bias: Tensor,
               inverse_gain: Tensor) -> Tensor:
        """The inverse of `encode`: y_hat (1, M, height, width).

        Raises:
            AINNError: for damaged bytes.
        """
        try:
            words = np.frombuffer(data, "<u4").astype(np.uint32)
            ans = _streams().stack.AnsCoder(words)
        except ValueError:  # not a multiple of 4 bytes, or a last word of zero
            raise AINNError(_DAMAGED) from None

        def choose(positions: Tensor, indexes: np.ndarray, means: Tensor) -> Tensor:
            return torch.from_numpy(_pull(ans, indexes, self.y_tables))

        indexes = self._z_indexes((len(self.z_tables), -(-height // 4), -(-width // 4)))
        z_symbols = torch.from_numpy(_pull(ans, indexes, self.z_tables))
        hyper = self.hyper_synthesis(z_symbols)
        units = self._wavefronts(hyper, height, width, bias, choose)
        if not ans.is_empty():
            raise AINNError(_DAMAGED)
        return _scaled(units, inverse_gain)

    def _z_indexes(self, shape: tuple[int, int, int]) -> np.ndarray:
        """Every channel of z has its own table."""
        return np.broadcast_to(np.arange(shape[0])[:, None, None], shape)

    def hyper_synthesis(self, z_symbols: Tensor) -> Tensor:
        """Symbols of z (N, h, w) -> activations (hyper_out, 4h, 4w) in units of 2^-12."""
        v = z_symbols.double() / UNIT + self.medians[:, None, None]
        v = v.clamp(-_LIMIT, _LIMIT)[None]
        for layer, kernel, up in self.hyper:
            weight = layer.weight.unflatten(1, (-1, kernel, kernel))
            # in float64 a convolution is a plain matrix product, hence exact
            total = F.conv2d(v, weight, layer.bias, padding=kernel // 2)
            leaky = layer is not self.hyper[-1][0]
            v = layer.to_grid(total.permute(0, 2, 3, 1), leaky).permute(0, 3, 1, 2)
            v = F.pixel_shuffle(v, up)
        return v[0]

    def _wavefronts(self, hyper: Tensor, height: int, width: int, bias: Tensor,
                    choose: Callable[[Tensor, np.ndarray, Tensor], Tensor]) -> Tensor:
        """Walk over the latent; ``choose(positions, indexes, means)`` gives a batch's symbols.

        Returns:
            y_hat in units of 2^-12, (M, height, width).
        """
        gaussian = self._gaussian(hyper[:, :height, :width], bias)
        stride, channels = width + 4, self.channels
        # y_hat in units, framed by zeros
        past = torch.zeros((height + 2) * stride, channels, dtype=torch.float64)
        y_hat = torch.empty(height * width, channels, dtype=torch.float64)
        offsets = torch.tensor([dy * stride + dx for dy, dx in CAUSAL_TAPS])
        for i, j in wavefront(height, width):
            corner, here = torch.from_numpy(i * stride + j), torch.from_numpy(i * width + j)
            neighbours = past.index_select(0, (corner[:, None] + offsets).flatten())
            indexes, means = gaussian(neighbours.reshape(len(i), -1), here)
            values = choose(here, indexes, means) / UNIT + means
            y_hat[here] = values
            past[corner + (2 * stride + 2)] = values.clamp(-_LIMIT, _LIMIT)
        return y_hat.T.reshape(channels, height, width)

    def _gaussian(self, hyper: Tensor, bias: Tensor
                  ) -> Callable[[Tensor, Tensor], tuple[np.ndarray, Tensor]]:
        """A function (neighbours, positions) -> table indexes and means in units, (n, M) each.

        The first layer sees hyper and context features side by side. Sums are exact, so the part
        of the hyper features is taken once, for all positions.
        """
        first, second, last = self.parameters
        split, channels = self.hyper_channels, self.channels
        hyper = hyper.permute(1, 2, 0).reshape(-1, split)
        hyper = torch.addmm(first.bias, hyper, first.weight[:, :split].T)
        context_weight = self.context.weight.T
        first_weight = first.weight[:, split:].T.contiguous()
        bias = bias.detach().double().cpu().flatten()
        bias = torch.round(bias / (last.scale * UNIT)) + last.bias

        def gaussian(neighbours: Tensor, positions: Tensor) -> tuple[np.ndarray, Tensor]:
            v = torch.addmm(self.context.bias, neighbours, context_weight)
            v = self.context.to_grid(v, leaky=False)
            v = first.to_grid(torch.addmm(hyper[positions], v, first_weight), leaky=True)
            v = second.to_grid(torch.addmm(second.bias, v, second.weight.T), leaky=True)
            total = torch.addmm(bias, v, last.weight.T)
            scales = total[:, :channels] * (last.scale[:channels] * UNIT)
            means = torch.round(total[:, channels:] * last.scale[channels:])
            # the index is the number of thresholds below the scale
            return torch.bucketize(scales, self.thresholds).numpy(), means

        return gaussian


# -- symbols and tables ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """One frequency table; symbol values start at ``offset``, the last entry is the escape."""

    frequencies: np.ndarray  #: whole numbers that add up to 2^16
    offset: int

    @cached_property
    def model(self) -> object:
        """The same table for the ANS coder."""
        return _streams().model.Categorical(self.frequencies / 65536, perfect=False)

    @property
    def escape(self) -> int:
        return len(self.frequencies) - 1


class _Batch:
    """Symbols that are coded together, with the indexes of their tables, sorted by table."""

    def __init__(self, values: np.ndarray, indexes: np.ndarray, tables: list[_Table]):
        self.values = values
        indexes = indexes.ravel().astype(np.int16)
        self.order = np.argsort(indexes, kind="stable")
        values = values.ravel().astype(np.int32)[self.order]
        self.groups, self.excess, start = [], [], 0
        for index, count in _counts(indexes):
            table, group = tables[index], values[start:start + count] - tables[index].offset
            outside = (group < 0) | (group >= table.escape)
            if outside.any():
                beyond = group[outside]
                above = beyond - table.escape + 1
                self.excess += np.where(beyond < 0, beyond, above).tolist()
                group = np.where(outside, table.escape, group).astype(np.int32)
            self.groups.append((table, group))
            start += count

    def bits(self) -> np.ndarray:
        """-log2 of each symbol's frequency; an escape costs what it is written out in, too."""
        bits = np.concatenate(
            [16 - np.log2(table.frequencies[group]) for table, group in self.groups])
        escaped = np.concatenate([group == table.escape for table, group in self.groups])
        bits[escaped] += [5 + abs(excess).bit_length() for excess in self.excess]
        result = np.empty(len(bits), np.float32)
        result[self.order] = bits
        return result.reshape(self.values.shape)

    def push(self, ans: object) -> None:
        """Onto the stack, so that `_pull` finds the groups first, then each escape's excess."""
        for excess in reversed(self.excess):
            size = abs(excess).bit_length()
            if size > 1:
                mantissa = np.array([abs(excess) - 2 ** (size - 1)], np.int32)
                ans.encode_reverse(mantissa, _raw_bits(size - 1))
            ans.encode_reverse(np.array([2 * size + (excess < 0)], np.int32), _raw_bits(6))
        for table, group in reversed(self.groups):
            ans.encode_reverse(group, table.model)


def _pull(ans: object, indexes: np.ndarray, tables: list[_Table]) -> np.ndarray:
    """The inverse of `_Batch.push`: symbols as float64, in the shape of ``indexes``."""
    if ans.is_empty():  # more is asked for than was put in
        raise AINNError(_DAMAGED)
    flat = indexes.ravel().astype(np.int16)
    order = np.argsort(flat, kind="stable")
    groups = [(tables[index], ans.decode(tables[index].model, count))
              for index, count in _counts(flat)]
    values = np.concatenate([group + table.offset for table, group in groups])
    start = 0
    for table, group in groups:
        for position in np.flatnonzero(group == table.escape):
            values[start + position] = _pull_escape(ans, table)
        start += len(group)
    result = np.empty(len(order))
    result[order] = values
    return result.reshape(indexes.shape)


def _pull_escape(ans: object, table: _Table) -> int:
    """The value of a symbol outside its table: sign and size of the excess, then its mantissa."""
    size, negative = divmod(int(ans.decode(_raw_bits(6), 1)[0]), 2)
    if not 1 <= size <= _LARGEST_SIZE:
        raise AINNError(_DAMAGED)
    excess = 2 ** (size - 1)
    if size > 1:
        excess += int(ans.decode(_raw_bits(size - 1), 1)[0])
    return table.offset + (-excess if negative else table.escape - 1 + excess)


def _raw_bits(count: int) -> object:
    return _streams().model.Uniform(2**count)


def _streams() -> ModuleType:
    """constriction's coders. Training needs none: a GPU machine may be without the package."""
    from constriction import stream

    return stream


def _counts(indexes: np.ndarray) -> list[tuple[int, int]]:
    counts = np.bincount(indexes)
    return [(int(index), int(counts[index])) for index in np.flatnonzero(counts)]


def _scaled(units: Tensor, inverse_gain: Tensor) -> Tensor:
    y_hat = (units * UNIT).float()[None].to(inverse_gain.device)
    return (y_hat * inverse_gain).to(inverse_gain.dtype)


def _tables(cdf: Tensor, lengths: Tensor, offsets: Tensor) -> list[_Table]:
    tables = []
    rows = zip(cdf.numpy(), lengths.tolist(), offsets.tolist(), strict=True)
    for row, length, offset in rows:
        # whole numbers that add up to 2^16: exact in float32
        frequencies = np.diff(row[:length]).astype(np.float32)
        tables.append(_Table(frequencies, offset))
    return tables


def _gaussian_frequencies(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CompressAI's tables for Gaussians of these scales, in float64 (its `update` has float32)."""
    gaussian = GaussianConditional(None)
    tail = -gaussian._standardized_quantile(gaussian.tail_mass / 2)
    centers = torch.ceil(scales * tail).int()
    lengths = 2 * centers + 1
    longest = int(lengths.max())
    samples = (torch.arange(longest) - centers[:, None]).abs().double()
    upper, lower = (gaussian._standardized_cumulative((half - samples) / scales[:, None])
                    for half in (0.5, -0.5))
    cdf = gaussian._pmf_to_cdf(upper - lower, 2 * lower[:, :1], lengths, longest)
    return cdf, lengths + 2, -centers


# -- one coder for a set of weights ----------------------------------------------------------------


def content_hash(tensors: Iterable[Tensor]) -> str:
    """SHA-256 over the bytes of some tensors, in hexadecimal digits."""
    digest = hashlib.sha256()
    for tensor in tensors:
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy())
    return digest.hexdigest()


_coders = weakref.WeakKeyDictionary()  # not inside the model: a coder can't be copied or pickled


def latent_coder(model: EntropyModel) -> LatentCoder:
    """The model's `LatentCoder`. It is made again when the weights' values have changed.

    So nobody has to call ``update``. Hashing the values takes a few milliseconds, making the
    coder of `tiny` 40.
    """
    parts = (model.h_s, model.context_prediction, model.entropy_parameters,
             model.entropy_bottleneck)
    content = content_hash(p for part in parts for p in part.parameters())
    kept = _coders.get(model)
    if kept is None or kept[0] != content:
        with torch.inference_mode(False), torch.no_grad():
            kept = _coders[model] = (content, LatentCoder(model))
    return kept[1]
