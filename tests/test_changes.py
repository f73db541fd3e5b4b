"""After any change of its weights, a network writes a right file and inverts, or says why not."""

import copy
import os
import pickle

import pytest
import torch
from PIL import Image

from ainn_lib import AINN, AINNConfig, AINNError, codec, load_pretrained
from ainn_lib.codec.weights import find_by_fingerprint, fingerprint, save_pretrained
from ainn_lib.network.blocks import InvertibleConv1x1

PHOTO = Image.linear_gradient("L").resize((64, 48)).convert("RGB")


def small(**overrides) -> AINN:
    torch.manual_seed(0)
    return AINN.from_preset(
        "tiny", N=8, hyper_out=8, context_out=8, parameter_widths=(8, 8), **overrides
    )


def scaled_through_data(model):
    for parameter in model.parameters():
        parameter.data.mul_(1.01)


def fused_adam_step(model):
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trainable, lr=1e-2, fused=True)
    for parameter in trainable:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()


def half_and_back(model):
    model.half().float()


def replaced_by_hand(model):
    model.h_s[0].bias = torch.nn.Parameter(torch.full_like(model.h_s[0].bias, 0.25))
    model.g_a.level4.conv1x1.weight = torch.nn.Parameter(2 * torch.eye(768))


CHANGES = [scaled_through_data, fused_adam_step, half_and_back, replaced_by_hand]


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_network_reads_its_own_files(change):
    model = small()
    before = codec.encode(PHOTO, model)  # whatever is kept is kept now
    change(model)
    stream = codec.encode(PHOTO, model)
    assert codec.decode(stream, model).tobytes() == codec.reconstruct(PHOTO, model).tobytes()
    twin = pickle.loads(pickle.dumps(model))
    assert codec.encode(PHOTO, twin) == stream  # as a network that has kept nothing
    assert codec.info(stream).fingerprint != codec.info(before).fingerprint
    with pytest.raises(AINNError, match="made with the weights"):
        codec.decode(before, model)


@pytest.mark.parametrize(
    "change",
    [
        lambda conv: conv.weight.data.mul_(1.5),
        lambda conv: conv.half().float(),
        lambda conv: conv.weight.data.copy_(torch.eye(12)),
    ],
)
def test_the_kept_inverse_follows_its_matrix(change):
    conv, x = InvertibleConv1x1(12, trainable=False), torch.randn(1, 12, 3, 3)
    conv.inverse(x)
    change(conv)
    torch.testing.assert_close(conv.inverse(conv(x)), x, atol=1e-5, rtol=1e-5)


def test_inference_mode_does_no_harm():
    with torch.inference_mode():
        model = load_pretrained("tiny")
        stream = codec.encode(PHOTO, model)
        assert codec.decode(stream, model).size == PHOTO.size
    model = load_pretrained("tiny")
    with torch.inference_mode():
        codec.decode(codec.encode(PHOTO, model), model)
    y = torch.zeros(1, 192, 2, 2, requires_grad=True)
    model.g_s(y).sum().backward()
    assert torch.isfinite(y.grad).all()


def test_a_network_in_training_codes_as_in_evaluation_and_stays_as_it_is():
    model = small(pdm_norm=True, variable_rate=False, quantization="noise").train()
    model.g_s.pdm4.low.eval()  # a part that the user has set apart
    before = {key: value.clone() for key, value in model.state_dict().items()}
    stream = codec.encode(PHOTO, model)
    assert codec.decode(stream, model).tobytes() == codec.decode(stream, model.eval()).tobytes()
    model.train()
    model.g_s.pdm4.low.eval()
    codec.decode(stream, model)
    assert model.training and not model.g_s.pdm4.low.training and model.g_s.pdm4.high.training
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_a_decoder_does_not_need_changes_no_file():
    model = small()
    stream, first = codec.encode(PHOTO, model), fingerprint(model)
    twin = AINN(
        AINNConfig(
            **{
                **model.config.__dict__,
                "lambdas": (0.001, 0.5),
                "quantization": "noise",
                "trainable_1x1": (False,) * 4,
            }
        )
    )
    torch.nn.Module.load_state_dict(twin, model.state_dict())
    with torch.no_grad():
        twin.h_a[0].bias += 1  # the encoder's own
        twin.g_a.fdsm_d.low.conv1x1.bias += 1
        twin.rate_control.gain_factor += 1
    assert fingerprint(twin) == first
    assert codec.decode(stream, twin).tobytes() == codec.decode(stream, model).tobytes()


@pytest.mark.parametrize(
    "part",
    [
        "h_s.0.bias",
        "context_prediction.taps",
        "entropy_parameters.4.bias",
        "g_s.pdm4.low.net.last.bias",
        "g_a.level2.couplings.0.from_low.net.0.weight",
        "rate_control.inverse_factor",
        "entropy_bottleneck.quantiles",
    ],
)
def test_what_a_decoder_needs_does(part):
    model = small()
    first = fingerprint(model)
    dict(model.named_parameters())[part].data += 0.01
    assert fingerprint(model) != first


def test_a_used_network_can_be_copied_and_pickled():
    model = small()
    stream = codec.encode(PHOTO, model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert codec.encode(PHOTO, twin) == stream


@pytest.mark.parametrize(
    "quality", [torch.tensor(9.0), torch.tensor([0.5, 4.0]), torch.tensor(float("nan"))]
)
def test_a_quality_out_of_range_is_refused_as_a_tensor_too(quality):
    with pytest.raises(AINNError, match="quality"):
        small()(torch.zeros(quality.numel(), 3, 64, 64), quality)


@pytest.mark.parametrize(
    "config",
    [
        {"fdsm": "no"},
        {"fdsm": 1},
        {"input_offset": float("nan")},
        {"N": 10**6},
        {"M": True},
        {"hidden": 5},
        {"lambdas": (0.1, "x")},
        {"clamp": float("inf")},
        {"pdm_widths": 3},
        {"kernels": (3, 3, 3, None)},
    ],
)
def test_a_hostile_configuration_is_one_sentence(config):
    with pytest.raises(AINNError, match=next(iter(config))):
        AINNConfig(**config)


def test_weights_laid_out_like_a_hubs_cache_are_found_by_fingerprint(tmp_path, monkeypatch):
    blobs, names = tmp_path / "blobs", tmp_path / "snapshot"
    names.mkdir()
    file = save_pretrained(small(), blobs / "mine")
    for number, path in enumerate((file, file.with_suffix(".json"))):
        path.rename(blobs / f"{number}")
        os.symlink(blobs / f"{number}", names / path.name)
    monkeypatch.setenv("AINN_WEIGHTS", str(names))
    model = load_pretrained("mine")
    assert fingerprint(find_by_fingerprint(fingerprint(model))) == fingerprint(model)


def test_weights_that_leave_the_grid_still_give_a_right_file():
    model = small(variable_rate=False)
    with torch.no_grad():
        model.h_s[0].weight.fill_(1.0)
        model.h_s[0].bias.fill_(1e30)
    stream = codec.encode(PHOTO, model)
    assert codec.decode(stream, model).tobytes() == codec.reconstruct(PHOTO, model).tobytes()


@pytest.mark.parametrize("size", [1e10, 1e30, 1e37, 1e38])
def test_an_enormous_latent_gives_a_right_file_or_one_sentence(size):
    model = small()
    with torch.no_grad():
        model.g_a.level4.conv1x1.weight.mul_(size)
    try:
        stream = codec.encode(PHOTO, model)
    except AINNError as error:
        assert "finite" in str(error)
        return
    assert codec.decode(stream, model).tobytes() == codec.reconstruct(PHOTO, model).tobytes()
