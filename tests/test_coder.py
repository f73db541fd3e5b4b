import copy

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ainn_lib import AINNError
from ainn_lib.codec.images import to_tensor
from ainn_lib.measure import datasets as data
from ainn_lib.network import coder
from ainn_lib.network.entropy_model import CAUSAL_TAPS, wavefront
from ainn_lib.studies.benchmark import serial_twin


@pytest.fixture(scope="module")
def latent(tiny):
    with torch.no_grad():
        return tiny.g_a(to_tensor(np.asarray(data.photo("chelsea").crop((60, 20, 316, 212)))))


# -- the wavefront ---------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 9), st.integers(1, 12))
def test_the_wavefront_visits_everything_once_and_in_causal_order(height, width):
    seen, steps = np.zeros((height + 2, width + 4), bool), 0
    for i, j in wavefront(height, width):
        for a, b in zip(
            i, j, strict=True
        ):  # all that the 5x5 mask looks at has been coded in earlier steps
            for dy, dx in CAUSAL_TAPS:
                inside = a + dy >= 2 and 0 <= b + dx - 2 < width
                assert not inside or seen[a + dy, b + dx]
        for a, b in zip(i, j, strict=True):
            assert not seen[a + 2, b + 2]
            seen[a + 2, b + 2] = True
        steps += 1
    assert seen[2:, 2:-2].all()
    assert steps == width + 3 * (height - 1) if width >= 3 else steps <= width * height


def test_the_number_of_steps_of_a_kodak_latent():
    assert sum(1 for _ in wavefront(32, 48)) == 141


# -- round trips -----------------------------------------------------------------------------------


@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    scale=st.sampled_from([0.0, 0.1, 1.0, 30.0, 3000.0]),
    seed=st.integers(0, 999),
    quality=st.sampled_from([None, 1.0, 4.5, 8.0]),
)
def test_decoding_gives_what_the_encoder_saw(tiny, height, width, scale, seed, quality):
    y = torch.randn(1, 192, height, width, generator=torch.Generator().manual_seed(seed)) * scale
    coded = coder.encode_latent(tiny, y, quality)
    assert torch.equal(coder.decode(tiny, coded.data, y.shape, quality), coded.y_hat)
    gain, inverse_gain, _ = tiny.gains(quality)
    assert ((coded.y_hat / inverse_gain - y * gain).abs() <= 0.5 + 1e-3 + 1e-4 * scale).all()


def test_bits_add_up_to_the_bytes(tiny, latent):
    coded = coder.encode_latent(tiny, latent)
    estimated = (coded.y_bits.double().sum() + coded.z_bits.double().sum()).item() / 8
    assert estimated == pytest.approx(len(coded.data), rel=2e-3, abs=8)


def test_the_symbols_are_residuals_about_the_means(tiny, latent):
    coded = coder.encode_latent(tiny, latent)
    gain, inverse_gain, bias = tiny.gains(None)
    with torch.no_grad():
        z, medians = tiny.h_a(latent * gain), tiny.entropy_bottleneck._get_medians()[None]
        context = tiny.context_prediction(coded.y_hat / inverse_gain)
        _, means = tiny.gaussian_parameters(
            tiny.h_s(torch.round(z - medians) + medians), context, bias
        )
        expected = torch.round(latent * gain - means)[0]
    # the float32 means differ a little from those on the grid
    assert (coded.symbols != expected).float().mean() < 1e-3


def test_within_two_thousandths_of_compressais_own_bits(tiny, latent):
    gain, inverse_gain, bias = tiny.gains(None)
    model = copy.deepcopy(tiny)
    model.update(force=True)
    with torch.no_grad():
        strings = serial_twin(model, bias).compress(latent * gain)["strings"]
    theirs = sum(len(stream) for (stream,) in strings)
    ours = len(coder.encode_latent(tiny, latent).data)
    assert ours == pytest.approx(theirs, rel=2e-3, abs=16)  # two streams end in bytes of their own


def test_tables_follow_the_weights(tiny, latent):
    model = copy.deepcopy(tiny)
    before = coder.encode_latent(model, latent).data
    with torch.no_grad():
        model.entropy_parameters[-1].bias += 0.3
    after = coder.encode_latent(model, latent).data
    assert before != after
    assert torch.equal(
        coder.decode(model, after, latent.shape), coder.encode_latent(model, latent).y_hat
    )


# -- exactness -------------------------------------------------------------------------------------


def test_every_sum_stays_below_2_to_the_53(tiny):
    grid = coder.latent_coder(tiny)
    layers = [layer for layer, *_ in grid.hyper] + [grid.context, *grid.parameters]
    for layer in layers:
        assert layer.largest_sum() < 2**53
        assert layer.weight.abs().max() <= 2**15 and torch.equal(layer.weight, layer.weight.round())
        assert torch.equal(layer.bias, layer.bias.round())
        mantissa, _ = torch.frexp(layer.scale)
        assert (mantissa == 0.5).all()  # powers of two


def test_the_bound_is_the_worst_input(tiny):
    layer = coder.latent_coder(tiny).context
    row = int((layer.weight.abs().sum(1) * 2**23 + layer.bias.abs()).argmax())
    worst = torch.sign(layer.weight[row]) * 2**23 * torch.sign(layer.bias[row])
    assert abs(layer.weight[row] @ worst + layer.bias[row]) == layer.largest_sum()


def test_sums_in_any_order_are_the_same(tiny):
    layer = coder.latent_coder(tiny).context
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-(2**23) + 1, 2**23, (layer.weight.shape[1],), generator=generator).double()
    reference = layer.weight @ a
    singles = set()
    for _ in range(10):
        order = torch.randperm(len(a), generator=generator)
        products = (layer.weight[:, order] * a[order]).numpy()
        assert np.array_equal(np.cumsum(products, axis=1)[:, -1], reference.numpy())
        singles.add(np.cumsum(products.astype(np.float32), axis=1)[:, -1].tobytes())
    assert len(singles) > 1  # the same check fails in float32


def test_tables_do_not_hang_on_the_last_digits():
    """A libm that is off by some units in the last place gives the same tables and thresholds."""
    scales = torch.exp(torch.linspace(np.log(0.11), np.log(256.0), 64, dtype=torch.float64))
    reference = coder._gaussian_frequencies(scales)
    for sign in (-1, 1):
        nudged = scales * (1 + sign * 1e-14)
        assert all(
            torch.equal(a, b)
            for a, b in zip(coder._gaussian_frequencies(nudged), reference, strict=True)
        )
        assert torch.equal(torch.round(nudged * 2**20), torch.round(scales * 2**20))


def test_frequencies_are_compressais(tiny):
    model = copy.deepcopy(tiny)
    model.update(force=True)
    for index, table in enumerate(coder.latent_coder(tiny).y_tables):
        length = model.gaussian_conditional.cdf_length[index]
        reference = np.diff(model.gaussian_conditional.quantized_cdf[index, :length].numpy())
        assert np.abs(table.frequencies - reference).sum() <= 8 and table.frequencies.sum() == 65536


# -- bad input -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "y",
    [
        torch.zeros(1, 191, 4, 4),
        torch.zeros(2, 192, 4, 4),
        torch.zeros(192, 4, 4),
        torch.zeros(1, 192, 0, 4),
    ],
)
def test_another_shape_is_refused(tiny, y):
    with pytest.raises(AINNError, match="shape"):
        coder.encode_latent(tiny, y)
    with pytest.raises(AINNError, match="shape"):
        coder.decode(tiny, b"", y.shape)


def test_values_that_are_not_finite_are_refused(tiny):
    with pytest.raises(AINNError, match="finite"):
        coder.encode_latent(tiny, torch.full((1, 192, 2, 2), float("nan")))


@settings(max_examples=60, deadline=None)
@given(
    change=st.one_of(
        st.tuples(st.just("cut"), st.integers(0, 10**6)),
        st.tuples(st.just("flip"), st.integers(0, 10**6)),
        st.tuples(st.just("add"), st.binary(min_size=1, max_size=40)),
        st.tuples(st.just("new"), st.binary(max_size=400)),
    )
)
def test_damaged_bytes_give_an_error_or_a_wrong_latent_never_more(tiny, latent, change):
    kind, value = change
    stream = coder.encode_latent(tiny, latent).data
    if kind == "cut":
        stream = stream[: value % len(stream)]
    elif kind == "flip":
        position = value % len(stream)
        stream = (
            stream[:position]
            + bytes([stream[position] ^ (1 + value % 255)])
            + stream[position + 1 :]
        )
    else:
        stream = stream + value if kind == "add" else value
    try:
        assert coder.decode(tiny, stream, latent.shape).shape == latent.shape
    except AINNError as error:
        assert "damaged" in str(error)


def test_a_longer_latent_than_was_coded_stops_early(tiny, latent):
    stream = coder.encode_latent(tiny, latent[:, :, :2, :2]).data
    with pytest.raises(AINNError, match="damaged"):
        coder.decode(tiny, stream, (1, 192, 200, 200))


def test_symbols_far_outside_their_table_survive():
    tables = coder._tables(
        torch.tensor([[0, 20000, 40000, 65536]]), torch.tensor([4]), torch.tensor([-1])
    )
    values = np.array([[-1.0, 0.0, 1.0, -2.0, 5.0, -500000.0, 524288.0]])
    batch = coder._Batch(values, np.zeros(values.shape, int), tables)
    ans = constriction.stream.stack.AnsCoder()
    batch.push(ans)
    assert np.array_equal(coder._pull(ans, np.zeros(values.shape, int), tables), values)
    assert ans.is_empty()
    assert batch.bits()[0, 6] > batch.bits()[0, 3] + 15
