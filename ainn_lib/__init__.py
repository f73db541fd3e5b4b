"""A-INN: an approximately invertible neural network for learned image compression.

The names load on first use, so that the command line answers without waiting for PyTorch.
"""

import os
from importlib import import_module

# Two OpenMP threads beside a busy process spin for each other, which costs a factor of 10.
# libgomp reads this once, when torch loads it; a value that the user has set stays.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

__version__ = "0.2.0"
__all__ = ["AINN", "AINNConfig", "AINNError", "check_invertible", "codec", "load_pretrained"]
_HOME = {
    "AINN": "network.model",
    "AINNConfig": "network.config",
    "AINNError": "errors",
    "check_invertible": "network.blocks",
    "load_pretrained": "codec.weights",
}


def __getattr__(name: str):
    if name == "codec":
        return import_module(f"{__name__}.codec")
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
