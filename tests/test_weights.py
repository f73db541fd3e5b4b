import json
import shutil

import pytest
import torch

from ainn_lib import AINN, AINNError, codec, load_pretrained
from ainn_lib.codec.weights import (
    available,
    find_by_fingerprint,
    fingerprint,
    save_pretrained,
    stored_tensors,
)
from ainn_lib.measure import datasets as data
from ainn_lib.measure.evaluate import subject
from ainn_lib.paths import WEIGHTS

PHOTO = data.photo("rocket").crop((100, 20, 164, 84))


def test_the_weights_that_ship(tiny):
    folder = WEIGHTS
    about = json.loads((folder / "tiny.json").read_text())
    assert "tiny" in available()
    assert about["fingerprint"] == fingerprint(tiny)
    assert {"recipe", "history", "data", "data_sha256", "commit", "hardware", "parameters"} <= set(
        about
    )
    assert (folder / "tiny.safetensors").stat().st_size + (
        folder / "tiny.json"
    ).stat().st_size <= 6_000_000
    c = tiny.config
    assert c.fdsm and c.cfrm and c.squeeze and c.pdm == "unet"


def test_saving_and_loading_gives_the_same_model(tiny, tmp_path, monkeypatch):
    path = save_pretrained(tiny, tmp_path / "copy", {"note": "a copy"})
    assert path.name == "copy.safetensors"
    copy = load_pretrained(tmp_path / "copy")
    assert fingerprint(copy) == fingerprint(tiny)
    assert codec.encode(PHOTO, copy) == codec.encode(PHOTO, tiny)
    monkeypatch.setenv("AINN_WEIGHTS", str(tmp_path))
    assert fingerprint(load_pretrained("copy")) == fingerprint(tiny) and "copy" in available()
    assert load_pretrained(tmp_path / "copy.safetensors").config == tiny.config


def test_the_folder_of_a_run_names_its_weights(tiny, tmp_path):
    run = tmp_path / "mine"
    run.mkdir()
    with pytest.raises(AINNError, match="no weights named .*mine.*, this one 0"):
        load_pretrained(run)
    save_pretrained(tiny, run / "weights" / "tiny")
    assert fingerprint(load_pretrained(str(run))) == fingerprint(tiny)
    assert subject("model", str(run)).name == "mine"
    save_pretrained(tiny, run / "weights" / "other")
    with pytest.raises(AINNError, match="this one 2"):
        load_pretrained(run)
    save_pretrained(tiny, tmp_path / "mine")  # a file of the folder's name comes first
    for name in (run, f"{run}.safetensors"):
        assert fingerprint(load_pretrained(name)) == fingerprint(tiny)


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
    assert fingerprint(find_by_fingerprint(fingerprint(tiny))) == fingerprint(tiny)


def test_a_damaged_copy_does_not_hide_a_good_one(tiny, tmp_path, monkeypatch):
    (tmp_path / "tiny.json").write_text((WEIGHTS / "tiny.json").read_text())
    monkeypatch.setenv("AINN_WEIGHTS", str(tmp_path))
    assert fingerprint(find_by_fingerprint(fingerprint(tiny))) == fingerprint(tiny)
    (tmp_path / "tiny.safetensors").write_bytes(b"broken")
    assert fingerprint(find_by_fingerprint(fingerprint(tiny))) == fingerprint(tiny)
    monkeypatch.setattr("ainn_lib.codec.known.weight_folders", lambda: [tmp_path])
    with pytest.raises(AINNError, match="damaged"):
        find_by_fingerprint(fingerprint(tiny))
    (tmp_path / "tiny.json").unlink()
    assert available() == []


def test_the_fingerprint_of_a_fresh_network_stays_when_it_is_used():
    model = AINN.from_preset("tiny").eval()
    model.update(force=True)
    before = fingerprint(model)
    with torch.no_grad():
        model(torch.rand(1, 3, 64, 64), 4.0)
    assert fingerprint(model) == before


def test_fingerprint_sees_weights_and_config():
    torch.manual_seed(0)
    model = AINN.from_preset("tiny", N=8, hyper_out=8, context_out=8, parameter_widths=(8, 8))
    first = fingerprint(model)
    assert fingerprint(model) == first and len(bytes.fromhex(first)) == 8
    with torch.no_grad():
        model.levels[0].conv1x1.weight[0, 0] += 1e-6
    assert fingerprint(model) != first
    import dataclasses

    twin = AINN(dataclasses.replace(model.config, clamp=0.5))
    twin.load_state_dict(model.state_dict())
    assert fingerprint(twin) != fingerprint(model)


def test_a_used_model_can_be_copied_and_pickled(tiny):
    import copy
    import pickle

    stream = codec.encode(PHOTO, tiny)
    for twin in (copy.deepcopy(tiny), pickle.loads(pickle.dumps(tiny))):
        assert codec.encode(PHOTO, twin) == stream


def test_what_is_stored_is_all_that_is_needed(tiny):
    stored = stored_tensors(tiny)
    assert not any("cdf" in key or key.endswith("mask") for key in stored)
    assert {name for name, _ in tiny.named_parameters()} <= set(stored)


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda f: f.with_suffix(".safetensors").write_bytes(b"junk"), "damaged"),
        (lambda f: f.with_suffix(".json").write_text("{"), "JSON"),
        (lambda f: f.with_suffix(".json").write_text("[]"), "describe"),
        (
            lambda f: f.with_suffix(".json").write_text(
                json.dumps({**json.loads(f.with_suffix(".json").read_text()), "config": {"Q": 1}})
            ),
            "configuration",
        ),
        (lambda f: f.with_suffix(".json").unlink(), "no weights named"),
    ],
)
def test_damaged_weights(tmp_path, damage, message):
    for suffix in (".json", ".safetensors"):
        shutil.copy(WEIGHTS / f"tiny{suffix}", tmp_path)
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
