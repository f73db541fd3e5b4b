"""Files that were written once decode in every later version."""

import json

import numpy as np
import pytest
from PIL import Image
from seeded import FILES, latent_sha256, network

from ainn_lib import codec

EXPECTED = json.loads((FILES / "latents.json").read_text())


def test_there_are_a_dozen():
    assert len(EXPECTED) >= 12
    assert (
        {f.stem for f in FILES.glob("*.ainn")}
        == {f.stem for f in FILES.glob("*.png")}
        == set(EXPECTED)
    )


@pytest.fixture(scope="module")
def networks():
    return {name: network(name) for name in {facts["weights"] for facts in EXPECTED.values()}}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_file_decodes_to_the_latent_and_the_picture_that_it_held(name, networks):
    data, model = (FILES / f"{name}.ainn").read_bytes(), networks[EXPECTED[name]["weights"]]
    assert latent_sha256(data, model) == EXPECTED[name]["latent_sha256"]
    decoded = codec.decode(data, model)
    with Image.open(FILES / f"{name}.png") as picture:
        assert (decoded.mode, decoded.size) == (picture.mode, picture.size)
        difference = np.asarray(decoded).astype(int) - np.asarray(picture)
        assert np.abs(difference).max() <= 1
        assert decoded.info.get("icc_profile") == picture.info.get("icc_profile")
