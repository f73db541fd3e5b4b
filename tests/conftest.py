import matplotlib.pyplot as plt
import pytest
import torch

import ainn_lib  # noqa: F401  (first: its shim lets torchvision import)
from ainn_lib import AINN, load_pretrained


@pytest.fixture(autouse=True)
def no_figure_left():
    """Each test begins without open figures, also where the one before it failed: some count them."""
    yield
    plt.close("all")


@pytest.fixture(scope="session")
def tiny() -> AINN:
    """The trained weights."""
    return load_pretrained("tiny")


def shaken(model: AINN, size: float = 0.05, seed: int = 0) -> AINN:
    """A model whose zero-initialised layers do something."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.abs().max() == 0:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * size)
    return model
