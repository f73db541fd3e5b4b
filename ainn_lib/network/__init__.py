"""The network of the paper: transforms, entropy model and the fixed-point coder."""

from .. import _torchvision  # noqa: F401  (before CompressAI, which imports torchvision)
