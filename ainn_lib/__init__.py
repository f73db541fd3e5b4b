"""A-INN: an approximately invertible neural network for learned image compression, to learn, test and trust."""

from . import _torchvision  # noqa: F401  (before anything that imports torchvision)
from . import codec
from .errors import AINNError
from .invertible import check_invertible
from .model import AINN, AINNConfig
from .weights import load_pretrained

__all__ = ["AINN", "AINNConfig", "AINNError", "check_invertible", "codec", "load_pretrained"]
__version__ = "0.1.0"
