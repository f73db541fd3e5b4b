"""Lets torchvision import beside a CPU-only torch. Imported before anything else in the package.

CompressAI imports torchvision. The wheel that ``pip`` finds for torchvision is compiled against a CUDA build of torch;
beside a CPU-only torch its operators are missing and the import stops with ``operator torchvision::nms does not exist``.
Nothing in this project calls those operators, so declaring their signatures is enough. Where torchvision loads by
itself this module changes nothing.
"""

import importlib
import sys

import torch

_SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept_alive = []  # a torch.library.Library takes its definitions with it when it is collected


def ensure_torchvision() -> bool:
    """Import torchvision, declaring its missing operators if need be. Returns True where the shim was needed."""
    try:
        importlib.import_module("torchvision")
        return False
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # a half-imported package would be handed out again
    library = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        library.define(operator + _SIGNATURE)
    _kept_alive.append(library)
    importlib.import_module("torchvision")
    return True


ensure_torchvision()
