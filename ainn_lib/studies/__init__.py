"""What notebooks 05-12 measure."""

from .. import _torchvision  # noqa: F401  (before CompressAI, which imports torchvision)
