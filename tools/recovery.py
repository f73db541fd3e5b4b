"""Fit linear maps that recover what the channel squeeze loses; write figures/data/recovery.json.

    python tools/recovery.py train --weights tiny
"""

import argparse
from dataclasses import asdict

from PIL import Image

from ainn_lib import load_pretrained
from ainn_lib.codec.weights import fingerprint
from ainn_lib.measure import datasets
from ainn_lib.measure.results import write_results
from ainn_lib.provenance import provenance
from ainn_lib.studies import recovery as study
from ainn_lib.studies.activations import as_tensor
from ainn_lib.training.samples import load_photos

FOLDS = 4


def fit(weights: str, photos: list[Image.Image], quality: float | None) -> dict:
    """Fit linear maps on ``photos``, and measure all ways on the embedded photos."""
    model = load_pretrained(weights)
    cfrm = study.cfrm_recovery(model, quality)
    ways, fits = {"plain copy": study.plain_copy, "CFRM": cfrm}, {}
    inputs = [as_tensor(study.whole_blocks(image), model) for image in photos]
    for k in (1, 3):
        folds = [study.moments((study.core_output(model, x, quality) for x in inputs[i::FOLDS]), k)
                 for i in range(FOLDS)]
        errors, whole = study.cross_validation(folds, study.RIDGES), sum(folds[1:], folds[0])
        ridge = min(errors, key=errors.get)
        ways[f"linear, {k}×{k}"] = study.linear_recovery(whole, ridge)
        fits[f"linear, {k}×{k}"] = {
            "ridge": ridge, "samples": int(whole.gram[-1, -1]), "unknowns": len(whole.gram),
            "held_out": {str(ridge): error for ridge, error in errors.items()}}
    images = [study.whole_blocks(datasets.photo(name)) for name in datasets.EMBEDDED]
    measured = [asdict(result) for result in study.recovery(model, images, ways, quality)]
    return {"weights": weights, "fingerprint": fingerprint(model), "quality": quality,
            "fitted_on": len(photos), "folds": FOLDS, "linear": fits, "measured": measured}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos", help="data set or folder to fit on")
    parser.add_argument("--weights", nargs="+", default=["tiny"])
    parser.add_argument("--count", type=int, default=64, help="photos to fit on (default 64)")
    o = parser.parse_args(arguments)
    large = [(name, tensor) for name, tensor in zip(*load_photos(o.photos), strict=True)
             if min(tensor.shape[1:]) >= 256]
    step = max(1, len(large) // o.count)
    names, tensors = zip(*large[:step * o.count:step], strict=True)  # evenly spaced by name
    photos = [Image.fromarray(tensor.permute(1, 2, 0).numpy()) for tensor in tensors]
    results = [fit(weights, photos, quality) for weights in o.weights for quality in (None, 4.0)]
    print(write_results(study.RESULTS, {
        "source": "measured here", "fitted": names, "evaluated": datasets.EMBEDDED,
        **provenance(), "results": results}))


if __name__ == "__main__":
    main()
