"""Our weights under CompressAI's own evaluation, which knows nothing of this library.

``ainn eval-model pretrained DIR -a ainn-tiny -q 1,4,8`` takes the arguments of
``python -m compressai.utils.eval_model``. It pads images to multiples of 64 and counts the coded
streams alone: its rate is lower than that of `ainn evaluate` by the container of an .ainn file.
"""

from functools import partial

from ..codec.weights import available, load_pretrained
from ..network.model import AINN


def main(arguments: list[str]) -> None:
    """Run CompressAI's ``eval_model``, with our weights as the pretrained models ainn-NAME."""
    import compressai.utils.eval_model.__main__ as evaluation

    for name in available():
        # its own table: CompressAI's `register_model` does not reach it
        evaluation.pretrained_models[f"ainn-{name}"] = partial(_load, name)
    evaluation.main(arguments)


def _load(name: str, quality: int, **_) -> AINN:
    model = load_pretrained(name)
    if model.config.variable_rate:
        model.quality = quality
    return model
