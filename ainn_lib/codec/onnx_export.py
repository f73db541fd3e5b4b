"""The transforms as ONNX files, for programs without PyTorch (``pip install .[onnx]``).

=====================  ===========================================================================
analysis.onnx          image (1, 3, 16h, 16w) in [0, 1] -> y (1, M, h, w)
hyper_analysis.onnx    y times its gain (1, M, h, w) -> z (1, N, ceil(h/4), ceil(w/4))
synthesis.onnx         decoded latent (1, M, h, w) -> image (1, 3, 16h, 16w), to be clamped
gains.json             fingerprint; gain, inverse gain and bias of the whole qualities 1 to 8,
                       to be interpolated linearly between them
=====================  ===========================================================================

Hyper-synthesis and context are not exported. From them encoder and decoder compute the same
frequency tables, and one float that differs in its last bit makes every later symbol wrong. They
stay in the coder's whole numbers (`ainn_lib.network.coder`).
"""

import copy
import json
import warnings
from pathlib import Path

import torch
from torch import nn

from ..errors import AINNError
from ..network.blocks import InvertibleConv1x1
from ..network.entropy_model import QUALITIES
from ..network.model import AINN
from .files import atomic_write, make_folder
from .weights import fingerprint

TOLERANCE = 1e-3  #: of the largest value, between ONNX Runtime and PyTorch: float32 sums


def export_onnx(model: AINN, folder: str | Path) -> dict[str, float]:
    """Write the three graphs and the gains into a folder, and compare them with PyTorch.

    Returns:
        Name of each graph -> largest difference, relative to the largest value, on a random input
        of another size than the one it was traced with.

    Raises:
        AINNError: when the ONNX packages are missing, a file cannot be written, or a graph computes
            something else than the network.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise AINNError(f"the package {error.name} is missing: pip install 'ainn-lab[onnx]'"
                        ) from None
    folder, gains, model = make_folder(folder), _gains(model), _with_constant_inverses(model)
    channels, differences = model.config.latent_channels, {}
    graphs = {"analysis": (model.g_a, 3, 16), "hyper_analysis": (model.h_a, channels, 1),
              "synthesis": (model.g_s, channels, 1)}
    for name, (module, depth, step) in graphs.items():
        data = _traced(module, depth, step)
        with atomic_write(folder / f"{name}.onnx") as file:
            file.write(data)
        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        x = torch.rand(1, depth, 5 * step, 7 * step)
        with torch.no_grad():
            wanted = module(x)
        got = torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
        differences[name] = float((got - wanted).abs().max() / wanted.abs().max())
        if not differences[name] <= TOLERANCE:
            raise AINNError(f"{name}.onnx differs from PyTorch by {differences[name]:.2g}")
    with atomic_write(folder / "gains.json") as file:
        file.write(json.dumps(gains).encode())
    return differences


def _with_constant_inverses(model: AINN) -> AINN:
    """A copy on the CPU in float32, whose 1x1 convolutions know their inverse as a constant."""
    model = copy.deepcopy(model).cpu().float().eval().requires_grad_(False)
    for conv in (m for m in model.modules() if isinstance(m, InvertibleConv1x1)):
        inverse = conv.inverse_weight()
        conv.inverse_weight = lambda inverse=inverse: inverse
    return model


def _traced(module: nn.Module, channels: int, step: int) -> bytes:
    """The ONNX model of a module with one input (1, channels, step h, step w)."""
    h, w = (torch.export.Dim(name, min=2, max=2048) for name in "hw")
    sides = {2: step * h, 3: step * w} if step > 1 else {2: h, 3: w}
    x = torch.rand(1, channels, 8 * step, 6 * step)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporter, about itself
        program = torch.onnx.export(module, (x,), dynamo=True, input_names=["x"],
                                    output_names=["result"], dynamic_shapes=(sides,),
                                    verbose=False)
    return program.model_proto.SerializeToString()


def _gains(model: AINN) -> dict:
    facts = {"fingerprint": fingerprint(model), "latent_channels": model.config.latent_channels}
    if not model.config.variable_rate:
        return facts
    low, high = (int(quality) for quality in QUALITIES)
    rows = [model.gains(float(quality)) for quality in range(low, high + 1)]
    tables = (torch.stack([v.flatten() for v in part]).tolist() for part in zip(*rows, strict=True))
    return facts | dict(zip(("gain", "inverse_gain", "bias"), tables, strict=True))
