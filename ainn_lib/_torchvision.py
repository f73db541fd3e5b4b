"""Lets torchvision import beside a CPU-only torch. Imported before CompressAI, which needs it.

torchvision's wheel is compiled against a CUDA build of torch. Beside a CPU-only torch the import
stops with ``operator torchvision::nms does not exist``. Nothing here calls its operators, so
declaring their signatures is enough.
"""

import importlib
import sys

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept_alive = []  # a torch.library.Library takes its definitions with it when it is collected


def ensure_torchvision() -> bool:
    """Import torchvision; declare its missing operators if need be. True where that was needed."""
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]  # a half-imported package would be handed out again
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + _SIGNATURE)
    _kept_alive.append(library)
    importlib.import_module("torchvision")
    return True


ensure_torchvision()
