import contextlib
import ctypes
import gc
import shutil

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from ainn_lib import AINN, load_pretrained

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)


@pytest.fixture(autouse=True)
def fresh_start():
    """Each test begins with the same random numbers and without open figures, in any order."""
    torch.manual_seed(0)
    np.random.seed(0)
    yield
    plt.close("all")


@pytest.fixture(autouse=True, scope="module")
def memory_is_freed():
    """Models and figures of a module are gone before the next one begins."""
    yield
    plt.close("all")
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc keeps what is free, unless asked
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture
def one_thread():
    """Sums in one order: runs can be compared bit by bit."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
