import json
import shutil

import pytest
import torch

from ainn_lib import AINN, AINNError, codec, data, load_pretrained
from ainn_lib.weights import DATA, available, find_by_identity, identity, save_pretrained, tensors_of

PHOTO = data.photo("rocket").crop((100, 20, 164, 84))


def test_the_weights_that_ship(tiny):
    folder = DATA / "weights"
    about = json.loads((folder / "tiny.json").read_text())
    assert "tiny" in available()
    assert about["identity"] == identity(tiny)
    assert {"recipe", "log", "data", "data_sha256", "commit", "hardware", "parameters"} <= set(about)
    assert (folder / "tiny.safetensors").stat().st_size + (folder / "tiny.json").stat().st_size <= 6_000_000
    c = tiny.config
    assert c.fdsm and c.cfrm and c.squeeze and c.pdm == "unet"


def test_saving_and_loading_gives_the_same_model(tiny, tmp_path, monkeypatch):
    path = save_pretrained(tiny, tmp_path / "copy", {"note": "a copy"})
    assert path.name == "copy.safetensors"
    copy = load_pretrained(tmp_path / "copy")
    assert identity(copy) == identity(tiny)
    assert codec.encode(PHOTO, copy) == codec.encode(PHOTO, tiny)
    monkeypatch.setenv("AINN_WEIGHTS", str(tmp_path))
    assert identity(load_pretrained("copy")) == identity(tiny) and "copy" in available()
    assert load_pretrained(tmp_path / "copy.safetensors").config == tiny.config


def test_a_file_finds_its_weights_in_the_named_folder(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = AINN.from_preset("tiny", N=8, hyper_out=8, context_out=8, parameter_widths=(8, 8))
    save_pretrained(model, tmp_path / "mine")
    stream = codec.encode(PHOTO, load_pretrained(tmp_path / "mine"))
    with pytest.raises(AINNError, match="AINN_WEIGHTS"):
        codec.decode(stream)
    monkeypatch.setenv("AINN_WEIGHTS", str(tmp_path))
    assert codec.decode(stream).size == PHOTO.size


def test_a_broken_description_beside_them_is_passed_over(tiny, tmp_path, monkeypatch):
    (tmp_path / "a.json").write_text("{")
    (tmp_path / "b.json").write_text("[]")
    monkeypatch.setenv("AINN_WEIGHTS", str(tmp_path))
    assert identity(find_by_identity(identity(tiny))) == identity(tiny)


def test_a_damaged_copy_does_not_hide_a_good_one(tiny, tmp_path, monkeypatch):
    (tmp_path / "tiny.json").write_text((DATA / "weights" / "tiny.json").read_text())
    monkeypatch.setenv("AINN_WEIGHTS", str(tmp_path))
    assert identity(find_by_identity(identity(tiny))) == identity(tiny)
    (tmp_path / "tiny.safetensors").write_bytes(b"broken")
    assert identity(find_by_identity(identity(tiny))) == identity(tiny)
    monkeypatch.setattr("ainn_lib.weights.weight_folders", lambda: [tmp_path])
    with pytest.raises(AINNError, match="damaged"):
        find_by_identity(identity(tiny))
    (tmp_path / "tiny.json").unlink()
    assert available() == []


def test_the_identity_of_a_fresh_network_stays_when_it_is_used():
    model = AINN.from_preset("tiny").eval()
    model.update(force=True)
    before = identity(model)
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64), 4.0)
    assert identity(model) == before


def test_identity_sees_weights_and_config():
    torch.manual_seed(0)
    model = AINN.from_preset("tiny", N=8, hyper_out=8, context_out=8, parameter_widths=(8, 8))
    first = identity(model)
    assert identity(model) == first and len(bytes.fromhex(first)) == 8
    with torch.no_grad():
        model.levels[0].conv1x1.weight[0, 0] += 1e-6
    assert identity(model) != first
    import dataclasses

    twin = AINN(dataclasses.replace(model.config, clamp=0.5))
    twin.load_state_dict(model.state_dict())
    assert identity(twin) != identity(model)


def test_a_used_model_can_be_copied_and_pickled(tiny):
    import copy
    import pickle

    stream = codec.encode(PHOTO, tiny)
    for twin in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert codec.encode(PHOTO, twin) == stream


def test_what_is_stored_is_all_that_is_needed(tiny):
    stored = tensors_of(tiny)
    assert not any("cdf" in key or key.endswith("mask") for key in stored)
    assert {name for name, _ in tiny.named_parameters()} <= set(stored)


@pytest.mark.parametrize("damage, message", [
    (lambda f: f.with_suffix(".safetensors").write_bytes(b"junk"), "damaged"),
    (lambda f: f.with_suffix(".json").write_text("{"), "JSON"),
    (lambda f: f.with_suffix(".json").write_text("[]"), "describe"),
    (lambda f: f.with_suffix(".json").write_text(json.dumps({**json.loads(f.with_suffix(".json").read_text()), "config": {"Q": 1}})), "configuration"),
    (lambda f: f.with_suffix(".json").unlink(), "no weights named"),
])
def test_damaged_weights(tmp_path, damage, message):
    for suffix in (".json", ".safetensors"):
        shutil.copy(DATA / "weights" / f"tiny{suffix}", tmp_path)
    damage(tmp_path / "tiny")
    with pytest.raises(AINNError, match=message):
        load_pretrained(tmp_path / "tiny")


def test_unknown_names_list_the_known_ones():
    with pytest.raises(AINNError, match="there are: .*tiny"):
        load_pretrained("colossal")


def test_weights_too_large_for_float16(tmp_path):
    model = AINN.from_preset("tiny", N=8, hyper_out=8, context_out=8, parameter_widths=(8, 8))
    with torch.no_grad():
        model.h_s[0].bias[0] = 1e6
    with pytest.raises(AINNError, match="h_s.0.bias"):
        save_pretrained(model, tmp_path / "big")
    assert not list(tmp_path.iterdir())
