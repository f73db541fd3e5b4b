import pytest
import torch
from filling import fill, image, official_shapes, vectors

from ainn_lib import AINN, AINNError
from ainn_lib.network.official import official_names

CROP = (..., slice(32, 96), slice(64, 128))  # what of the pixels the test keeps


@pytest.fixture(scope="module")
def golden():
    return vectors(), AINN.from_official_state_dict(fill(1))


def bits(likelihood):
    return -torch.log2(likelihood.double()).sum().item()


@torch.no_grad()
def test_parity_with_the_authors(golden):
    expected, model = golden
    x = image(int(expected["height"]), int(expected["width"]), int(expected["seed"]))
    assert (model.g_a(x) - expected["y"]).abs().max() < 2e-5
    assert (model.g_s(expected["y"])[CROP] - expected["x_hat_of_y"]).abs().max() < 2e-5
    output = model(x)
    assert (output["x_hat"][CROP] - expected["x_hat"]).abs().mean() < 1e-4
    assert bits(output["likelihoods"]["y"]) == pytest.approx(float(expected["y_bits"]), rel=1e-4)
    assert bits(output["likelihoods"]["z"]) == pytest.approx(float(expected["z_bits"]), rel=1e-4)


def test_the_mapping_is_complete_and_one_to_one():
    with torch.device("meta"):
        names = official_names(AINN())
    assert len(set(names.values())) == len(names)
    copies = {f"inv.operations{k}.1.weight" for k in (1, 2, 3, 4)}
    assert set(official_shapes()) == set(names.values()) | copies


@pytest.fixture
def empty_weights():
    """The right layout without the numbers: meta tensors weigh nothing."""
    return {key: torch.empty(shape, device="meta") for key, shape in official_shapes().items()}


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda sd: sd.pop("inv.inv_conv_3.weight"), "missing inv.inv_conv_3.weight"),
        (lambda sd: sd.update(surplus=torch.zeros(1)), "unexpected surplus"),
        (
            lambda sd: sd.update({"h_a.0.bias": torch.zeros(7)}),
            r"misshapen h_a.0.bias \(got \(7,\), need \(192,\)\)",
        ),
        (lambda sd: sd.update({"h_a.0.bias": "text"}), "misshapen h_a.0.bias"),
        (lambda sd: sd.clear(), "missing .* and 7"),
    ],
)
def test_another_layout_is_named(empty_weights, damage, message):
    damage(empty_weights)
    with pytest.raises(AINNError, match=message), torch.device("meta"):
        AINN.from_official_state_dict(empty_weights)


@pytest.mark.parametrize("thing", [None, [1], {1: 2}])
def test_no_state_dict(thing):
    with pytest.raises(AINNError, match="no state dict"), torch.device("meta"):
        AINN.from_official_state_dict(thing)


def test_prefix_and_nesting_are_accepted(golden):
    _, model = golden
    state = model.state_dict()
    layout = {theirs: state[ours] for ours, theirs in official_names(model).items()}
    layout["context_prediction.weight"] = model.context_prediction.dense()
    wrapped = {"epoch": 3, "state_dict": {f"module.{key}": layout[key] for key in layout}}
    again = AINN.from_official_state_dict(wrapped)
    assert torch.equal(again.levels[3].conv1x1.weight, model.levels[3].conv1x1.weight)
    assert torch.equal(again.context_prediction.taps, model.context_prediction.taps)
