"""A real .ainn file with ONNX Runtime and the coder alone."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from ainn_lib import codec
from ainn_lib.cli import main
from ainn_lib.codec.container import info, pack, pack_sides, unpack
from ainn_lib.codec.images import prepare
from ainn_lib.codec.weights import fingerprint
from ainn_lib.measure import datasets
from ainn_lib.measure.metrics import psnr
from ainn_lib.network.coder import latent_coder

PHOTO = datasets.photo("chelsea").crop((100, 40, 217, 121))  # sides that are no multiples of 16


def test_without_the_packages_the_command_says_so(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    assert main(["export", "--onnx", str(tmp_path / "out")]) == 2
    assert "package onnx is missing: pip install" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    folder = tmp_path_factory.mktemp("onnx")
    assert main(["export", "--onnx", str(folder), "--model", "tiny"]) == 0
    return folder


def graph(folder, name: str, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / f"{name}.onnx")
    return session.run(None, {"x": x.astype(np.float32)})[0]


def gains(folder, quality: float) -> list[np.ndarray]:
    """Gain, inverse gain and bias: rows of whole qualities, interpolated."""
    table = json.loads((folder / "gains.json").read_text())
    low, part = int(quality), quality % 1
    rows = [np.array(table[name][low - 1 : low + 1]) for name in ("gain", "inverse_gain", "bias")]
    return [(1 - part) * row[0] + part * row[-1] for row in rows]


@pytest.mark.slow
def test_a_file_there_and_back(exported, tiny):
    quality, prepared = 3.5, prepare(PHOTO)
    height, width, _ = prepared.rgb.shape
    rgb = np.pad(prepared.rgb, ((0, -height % 16), (0, -width % 16), (0, 0)), mode="edge")
    gain, inverse, bias = gains(exported, quality)
    y = graph(exported, "analysis", rgb.transpose(2, 0, 1)[None] / 255) * gain[:, None, None]
    z = graph(exported, "hyper_analysis", y)
    coder = latent_coder(tiny)
    y, z, bias = (torch.from_numpy(np.asarray(v, float)) for v in (y[0], z[0], bias))
    inverse = torch.from_numpy(inverse)[None, :, None, None]
    latent = coder.encode(y, z, bias, inverse).data
    file = pack(prepared, fingerprint(tiny), quality, latent, pack_sides(prepared))

    ours = codec.encode(PHOTO, tiny, quality)
    assert abs(len(file) - len(ours)) < 0.02 * len(ours)
    assert psnr(PHOTO, codec.decode(file, tiny)) > psnr(PHOTO, codec.decode(ours, tiny)) - 0.05

    for data in (file, ours):
        about = info(data)
        latent, _, _ = unpack(data, about)
        y_hat = coder.decode(latent, y.shape[1], y.shape[2], bias, inverse)
        x_hat = graph(exported, "synthesis", y_hat.numpy())[0, :, :height, :width]
        picture = (x_hat.clip(0, 1) * 255).round().astype(np.uint8).transpose(1, 2, 0)
        decoded = np.asarray(codec.decode(data, tiny)).astype(int)
        assert np.abs(picture - decoded).max() <= 1
        assert Image.fromarray(picture).size == PHOTO.size
