"""A photo becomes a file and comes back: `encode`, `decode`, `reconstruct`, `info`.

The names load on first use, so that reading a file's header needs no PyTorch.
"""

from importlib import import_module

__all__ = ["FileInfo", "decode", "encode", "encode_to_bpp", "info", "reconstruct"]
_HOME = {"FileInfo": "container", "info": "container"}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME.get(name, 'coding')}"), name)
