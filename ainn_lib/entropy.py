r"""Context-model coding that is fast and decodes anywhere.

**Fast.** With the 5x5 causal mask, position (i, j) needs nothing from the positions with the same j + 3i. They are coded as one
batch, the wavefront: an h x w latent takes w + 3(h - 1) steps in place of h w. Encoder and decoder run the same code on the
same batches; the order of the symbols (step by step; inside a step by table, then by position and channel) is part of the
format.

**Anywhere.** The entropy path runs on the CPU on fixed-point grids, as whole numbers carried in float64: activations on
multiples of 2^-12 with at most 24 bits, weights of a layer on a common power of two with at most 16 bits. Every dot product
is then a whole number below 2^53, exact in any order of summation, with or without fused multiply-add, on any thread count or
instruction set; what follows it (LeakyReLU, rounding) is one correctly rounded operation for each value. So are the table
index and, since means lie on the grid too, the latents: identical everywhere. Pixels agree within 1/255 where the float32
synthesis differs from one machine to another.

The coder is constriction's ANS coder with CompressAI's frequency tables, 16 bits. It is memory-safe (a forged payload decodes to
wrong symbols, never past a buffer), and it keeps its tables: for the 141 steps of a 768x512 photo it took 0.03 s here, CompressAI's
`RansDecoder`, which converts all tables at every call, 0.37 s.
"""

import copy
import functools
import weakref
from collections.abc import Callable
from dataclasses import dataclass

import constriction
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .context import PAST, wavefront
from .errors import AINNError
from .model import AINN

ACTIVATION_BITS = 24  #: with sign: |activation| < 2^23 units of 2^-12, that is 2048
FRACTION = 12
WEIGHT_BITS = 16  #: with sign
UNIT = 2.0**-FRACTION
_LIMIT = 2.0 ** (ACTIVATION_BITS - 1) - 1
_LARGEST_SYMBOL = 2**19
_LARGEST_SIZE = 20  #: bits of the distance of a symbol from its table
_DAMAGED = "the coded latent is damaged"


@dataclass(frozen=True)
class CodedLatent:
    """What `encode_latent` made of a latent."""

    data: bytes
    y_hat: Tensor  #: (1, M, h, w), what `decode` returns for these bytes
    records: list  #: symbols and tables of every step
    z_record: object

    @property
    def symbols(self) -> Tensor:
        """The integers that were coded, (M, h, w) int32."""
        return self._in_place([record.values for record in self.records]).int()

    @property
    def y_bits(self) -> Tensor:
        """What each of them cost, -log2 of its table frequency, (M, h, w)."""
        return self._in_place([record.bits() for record in self.records])

    @property
    def z_bits(self) -> Tensor:
        """The same for the hyper-latent, (N, ceil(h/4), ceil(w/4))."""
        return torch.from_numpy(self.z_record.bits())

    def _in_place(self, steps: list[np.ndarray]) -> Tensor:
        _, channels, height, width = self.y_hat.shape
        rows = torch.empty(height * width, channels)
        rows[np.concatenate([i * width + j for i, j in wavefront(height, width)])] = torch.from_numpy(np.concatenate(steps)).float()
        return rows.T.reshape(channels, height, width)


def encode(model: AINN, y: Tensor, quality: float | None = None) -> bytes:
    """Code the latent y = g_a(x), (1, M, h, w), real values, at a quality (variable-rate networks; None: 4).

    Raises:
        AINNError: when y has another shape or values that are not finite.
    """
    return encode_latent(model, y, quality).data


@torch.no_grad()
def encode_latent(model: AINN, y: Tensor, quality: float | None = None) -> CodedLatent:
    """`encode`, with the reconstruction and what every symbol cost."""
    channels = model.config.latent_channels
    if y.dim() != 4 or y.shape[0] != 1 or y.shape[1] != channels or min(y.shape) < 1:
        raise AINNError(f"a latent has the shape (1, {channels}, h, w), got {tuple(y.shape)}")
    gain, inverse_gain, bias = model.gains(quality)
    y_scaled = y * gain
    if not torch.isfinite(y_scaled).all():
        raise AINNError("the latent has values that are not finite")
    z = model.h_a(y_scaled)
    return latent_coder(model).encode(y_scaled[0].double().cpu(), z[0].double().cpu(), bias, inverse_gain)


@torch.no_grad()
def decode(model: AINN, data: bytes, shape: tuple[int, ...], quality: float | None = None) -> Tensor:
    """The latent y_hat (1, M, h, w) that `encode` saw as its own reconstruction; ``shape`` is y's.

    Raises:
        AINNError: when the bytes are not a whole stream of such a latent. Damaged bytes may also decode to wrong values.
    """
    channels = model.config.latent_channels
    if len(shape) != 4 or shape[0] != 1 or shape[1] != channels or min(shape) < 1:
        raise AINNError(f"a latent has the shape (1, {channels}, h, w), got {tuple(shape)}")
    _, inverse_gain, bias = model.gains(quality)
    return latent_coder(model).decode(data, shape[2], shape[3], bias, inverse_gain)


class FixedPointLayer:
    r"""A convolution (or a part of one) on grids: :math:`s = W a + b` in whole numbers.

    ``weight`` (out, fan_in) holds whole numbers of at most 16 bits, ``bias`` (out,) whole numbers in the units of the sum, and
    ``scale`` (out,) the power of two that turns a sum over activations in units of 2^-12 back into such units.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        weight, bias = weight.detach().double().cpu().flatten(1), bias.detach().double().cpu()
        if not (torch.isfinite(weight).all() and torch.isfinite(bias).all()):
            raise AINNError("the entropy model has weights that are not finite")
        _, exponent = torch.frexp(weight.abs().amax(1))
        fraction = (WEIGHT_BITS - 1 - exponent).clamp(max=30).double()
        self.scale = torch.exp2(-fraction)
        self.weight = torch.round(weight / self.scale[:, None])
        self.bias = torch.round(bias / (self.scale * UNIT)).clamp(-(2.0**52), 2.0**52)

    def largest_sum(self) -> float:
        """The largest |partial sum| that any input on the activation grid can cause, in units of the sum."""
        return float((self.weight.abs().sum(1) * (_LIMIT + 1) + self.bias.abs()).max())

    def to_grid(self, total: Tensor, leaky: bool) -> Tensor:
        """Sum (.., out) -> next activations in units of 2^-12, after LeakyReLU 0.01 where asked."""
        value = total * self.scale
        if leaky:
            value = torch.where(value < 0, value * 0.01, value)
        return torch.round(value).clamp(-_LIMIT, _LIMIT)


class LatentCoder:
    """The fixed-point twin of a model's entropy path, with its tables. Made once for a set of weights."""

    def __init__(self, model: AINN):
        self.hyper = []  # (layer, kernel, upsampling, LeakyReLU after it)
        for index in range(0, len(model.h_s), 2):
            conv, up = model.h_s[index], 1
            if isinstance(conv, nn.Sequential):  # CompressAI's sub-pixel convolution
                conv, up = conv[0], conv[1].upscale_factor
            self.hyper.append((FixedPointLayer(conv.weight, conv.bias), conv.kernel_size[0], up, index + 1 < len(model.h_s)))
        masked = model.context_prediction
        taps = torch.stack([masked.weight[:, :, dy, dx] for dy, dx in PAST], dim=1)  # (out, 12, M)
        self.context = FixedPointLayer(taps, masked.bias)
        self.parameters = [FixedPointLayer(conv.weight, conv.bias) for conv in model.entropy_parameters[::2]]
        self.channels = model.config.latent_channels
        self.hyper_channels = model.config.hyper_out

        scales = torch.exp(torch.linspace(np.log(0.11), np.log(256.0), 64, dtype=torch.float64))
        self.thresholds = torch.round(scales[:-1] * 2**20) / 2**20
        self.y_tables = _tables(*_gaussian_frequencies(scales))
        bottleneck = copy.deepcopy(model.entropy_bottleneck).double().cpu()
        self.medians = torch.round(bottleneck.quantiles[:, 0, 1].detach() / UNIT)
        bottleneck.quantiles.data[:, 0, 1] = self.medians * UNIT
        bottleneck.update(force=True)
        self.z_tables = _tables(bottleneck.quantized_cdf, bottleneck.cdf_length, bottleneck.offset)

    def layers(self) -> list[FixedPointLayer]:
        """Every layer of the path."""
        return [layer for layer, *_ in self.hyper] + [self.context, *self.parameters]

    def table_bytes(self) -> bytes:
        """All frequency tables, thresholds and medians as bytes: a decoder needs the same ones."""
        parts = [table.frequencies for table in (*self.y_tables, *self.z_tables)]
        return b"".join(p.tobytes() for p in (*parts, self.thresholds.numpy(), self.medians.numpy()))

    def encode(self, y: Tensor, z: Tensor, bias: Tensor, inverse_gain: Tensor) -> CodedLatent:
        """Code y (M, h, w) and z (N, ceil(h/4), ceil(w/4)), float64, both with their gain. z is decoded first."""
        z_symbols = torch.round(z - self.medians[:, None, None] * UNIT).clamp(-_LARGEST_SYMBOL, _LARGEST_SYMBOL)
        z_record = _Record(z_symbols.numpy(), self._z_indexes(z_symbols.shape), self.z_tables)
        coder = constriction.stream.stack.AnsCoder()
        units, records = self.encode_y(y, self.hyper_synthesis(z_symbols), bias, coder)
        z_record.push(coder)  # a stack: what is to be decoded first goes in last
        return CodedLatent(coder.get_compressed().astype("<u4").tobytes(), _scaled(units, inverse_gain), records, z_record)

    def decode(self, data: bytes, height: int, width: int, bias: Tensor, inverse_gain: Tensor) -> Tensor:
        """The inverse of `encode`: y_hat (1, M, height, width). Raises AINNError for damaged bytes."""
        if len(data) % 4:
            raise AINNError(_DAMAGED)
        try:
            coder = constriction.stream.stack.AnsCoder(np.frombuffer(data, "<u4").astype(np.uint32))
        except ValueError:
            raise AINNError(_DAMAGED) from None
        indexes = self._z_indexes((len(self.z_tables), -(-height // 4), -(-width // 4)))
        z_symbols = torch.from_numpy(_pull(coder, indexes, self.z_tables))
        units = self.decode_y(coder, self.hyper_synthesis(z_symbols), height, width, bias)
        if not coder.is_empty():
            raise AINNError(_DAMAGED)
        return _scaled(units, inverse_gain)

    def encode_y(self, y: Tensor, hyper: Tensor, bias: Tensor, coder: object) -> tuple[Tensor, list]:
        """Push y (M, h, w) onto the coder, given the hyper-synthesis output; y_hat in units and the records of all steps."""
        channels, height, width = y.shape
        rows, records = y.reshape(channels, -1).T.contiguous(), []

        def choose(positions: Tensor, indexes: np.ndarray, means: Tensor) -> Tensor:
            chosen = torch.round(rows[positions] - means * UNIT).clamp(-_LARGEST_SYMBOL, _LARGEST_SYMBOL)
            chosen += 0.0  # -0 becomes 0, as the decoder has it: the latents agree in every bit
            records.append(_Record(chosen.numpy(), indexes, self.y_tables))
            return chosen

        units = self._wavefronts(hyper, height, width, bias, choose)
        for record in reversed(records):
            record.push(coder)
        return units, records

    def decode_y(self, coder: object, hyper: Tensor, height: int, width: int, bias: Tensor) -> Tensor:
        """Pull y off the coder, given the hyper-synthesis output; y_hat in units, (M, height, width)."""
        def choose(positions: Tensor, indexes: np.ndarray, means: Tensor) -> Tensor:
            return torch.from_numpy(_pull(coder, indexes, self.y_tables))

        return self._wavefronts(hyper, height, width, bias, choose)

    def _z_indexes(self, shape: tuple[int, int, int]) -> np.ndarray:
        return np.broadcast_to(np.arange(shape[0])[:, None, None], shape)

    def hyper_synthesis(self, z_symbols: Tensor) -> Tensor:
        """Symbols of z (N, h, w) -> activations (hyper_out, 4h, 4w) in units of 2^-12."""
        v = (z_symbols.double() / UNIT + self.medians[:, None, None]).clamp(-_LIMIT, _LIMIT)[None]
        for layer, kernel, up, leaky in self.hyper:
            weight = layer.weight.reshape(layer.weight.shape[0], -1, kernel, kernel)
            total = F.conv2d(v, weight, layer.bias, padding=kernel // 2)  # float64: a plain matrix product, hence exact
            v = layer.to_grid(total.permute(0, 2, 3, 1), leaky).permute(0, 3, 1, 2)
            v = F.pixel_shuffle(v, up) if up > 1 else v
        return v[0]

    def _wavefronts(self, hyper: Tensor, height: int, width: int, bias: Tensor,
                    choose: Callable[[Tensor, np.ndarray, Tensor], Tensor]) -> Tensor:
        """Walk over the latent; ``choose(positions, indexes, means)`` gives the symbols (n, M) of each batch.

        Returns y_hat in units, (M, height, width).
        """
        hyper = hyper[:, :height, :width].permute(1, 2, 0).reshape(height * width, -1)
        first, second, last = self.parameters
        split = self.hyper_channels
        hyper = torch.addmm(first.bias, hyper, first.weight[:, :split].T)  # sums are exact: a part can be taken beforehand
        context_weight, first_weight = self.context.weight.T, first.weight[:, split:].T.contiguous()
        bias_units = torch.round(bias.detach().double().cpu().flatten() / (last.scale * UNIT)) + last.bias
        stride, channels = width + 4, self.channels
        past = torch.zeros((height + 2) * stride, channels, dtype=torch.float64)  # y_hat in units, framed by zeros
        y_hat = torch.empty(height * width, channels, dtype=torch.float64)
        offsets = torch.tensor([dy * stride + dx for dy, dx in PAST])
        for i, j in wavefront(height, width):
            corner = torch.from_numpy(i * stride + j)
            neighbours = past.index_select(0, (corner[:, None] + offsets).flatten()).reshape(len(i), -1)
            v = self.context.to_grid(torch.addmm(self.context.bias, neighbours, context_weight), leaky=False)
            here = torch.from_numpy(i * width + j)
            v = first.to_grid(torch.addmm(hyper[here], v, first_weight), leaky=True)
            v = second.to_grid(torch.addmm(second.bias, v, second.weight.T), leaky=True)
            total = torch.addmm(bias_units, v, last.weight.T)
            scales = total[:, :channels] * (last.scale[:channels] * UNIT)
            means = torch.round(total[:, channels:] * last.scale[channels:])
            indexes = torch.bucketize(scales, self.thresholds).numpy()  # the count of thresholds below the scale
            values = choose(here, indexes, means) / UNIT + means
            y_hat[here] = values
            past[corner + (2 * stride + 2)] = values.clamp(-_LIMIT, _LIMIT)
        return y_hat.T.reshape(channels, height, width)


@dataclass(frozen=True)
class _Table:
    """One frequency table; symbol values start at ``offset``, the last entry is the escape."""

    model: object
    frequencies: np.ndarray
    offset: int

    @property
    def escape(self) -> int:
        return len(self.frequencies) - 1


class _Record:
    """Symbols of one batch with the indexes of their tables, sorted by table."""

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
                self.excess += np.where(beyond < 0, beyond, beyond - table.escape + 1).tolist()
                group = np.where(outside, table.escape, group).astype(np.int32)
            self.groups.append((table, group))
            start += count

    def bits(self) -> np.ndarray:
        """-log2 of the frequency of each symbol, escapes with what they are written out in."""
        bits = np.concatenate([16 - np.log2(table.frequencies[group]) for table, group in self.groups])
        escaped = np.concatenate([group == table.escape for table, group in self.groups])
        bits[escaped] += [5 + abs(excess).bit_length() for excess in self.excess]
        result = np.empty(len(bits), np.float32)
        result[self.order] = bits
        return result.reshape(self.values.shape)

    def push(self, coder: object) -> None:
        """Onto the stack, so that `_pull` finds first the groups, then class and mantissa of each escape."""
        for excess in reversed(self.excess):
            size = abs(excess).bit_length()
            if size > 1:
                coder.encode_reverse(np.array([abs(excess) - 2 ** (size - 1)], np.int32), _raw_bits(size - 1))
            coder.encode_reverse(np.array([2 * size + (excess < 0)], np.int32), _raw_bits(6))
        for table, group in reversed(self.groups):
            coder.encode_reverse(group, table.model)


def _pull(coder: object, indexes: np.ndarray, tables: list[_Table]) -> np.ndarray:
    """The inverse of `_Record.push`: symbols as float64, in the shape of ``indexes``."""
    if coder.is_empty():  # more is asked for than was put in
        raise AINNError(_DAMAGED)
    flat = indexes.ravel().astype(np.int16)
    order = np.argsort(flat, kind="stable")
    groups = [(tables[index], coder.decode(tables[index].model, count)) for index, count in _counts(flat)]
    values = np.concatenate([group + table.offset for table, group in groups])
    start = 0
    for table, group in groups:
        for position in np.flatnonzero(group == table.escape):
            size, negative = divmod(int(coder.decode(_raw_bits(6), 1)[0]), 2)
            if not 1 <= size <= _LARGEST_SIZE:
                raise AINNError(_DAMAGED)
            excess = 2 ** (size - 1) + (int(coder.decode(_raw_bits(size - 1), 1)[0]) if size > 1 else 0)
            values[start + position] = table.offset + (-excess if negative else table.escape - 1 + excess)
        start += len(group)
    result = np.empty(len(order))
    result[order] = values
    return result.reshape(indexes.shape)


_coders = weakref.WeakKeyDictionary()  # not inside the model, so that models can still be copied and pickled


@functools.cache
def _raw_bits(count: int) -> object:
    return constriction.stream.model.Uniform(2**count)


def _counts(indexes: np.ndarray) -> list[tuple[int, int]]:
    counts = np.bincount(indexes)
    return [(int(index), int(counts[index])) for index in np.flatnonzero(counts)]


def _scaled(units: Tensor, inverse_gain: Tensor) -> Tensor:
    return ((units * UNIT).float()[None].to(inverse_gain.device) * inverse_gain).to(inverse_gain.dtype)


def _tables(cdf: Tensor, lengths: Tensor, offsets: Tensor) -> list[_Table]:
    tables = []
    for row, length, offset in zip(cdf.numpy(), lengths.tolist(), offsets.tolist(), strict=True):
        frequencies = np.diff(row[:length]).astype(np.float32)  # whole numbers that add up to 2^16: exact in float32
        tables.append(_Table(constriction.stream.model.Categorical(frequencies / 65536, perfect=False), frequencies, offset))
    return tables


def _gaussian_frequencies(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """CompressAI's tables for Gaussians of these scales, computed in float64."""
    from compressai.entropy_models import GaussianConditional

    gaussian = GaussianConditional(None)
    centers = torch.ceil(scales * -gaussian._standardized_quantile(gaussian.tail_mass / 2)).int()
    lengths = 2 * centers + 1
    samples = (torch.arange(int(lengths.max())) - centers[:, None]).abs().double()
    upper, lower = (gaussian._standardized_cumulative((half - samples) / scales[:, None]) for half in (0.5, -0.5))
    return gaussian._pmf_to_cdf(upper - lower, 2 * lower[:, :1], lengths, int(lengths.max())), lengths + 2, -centers


def latent_coder(model: AINN) -> LatentCoder:
    """The model's `LatentCoder`, made again whenever its weights have changed: nobody has to call ``update``."""
    parts = (model.h_s, model.context_prediction, model.entropy_parameters, model.entropy_bottleneck)
    state = tuple((p.data_ptr(), p._version) for part in parts for p in part.parameters())
    kept = _coders.get(model)
    if kept is None or kept[0] != state:
        kept = _coders[model] = (state, LatentCoder(model))
    return kept[1]
