"""Run two steps of the paper's recipe and write figures/data/paper_step.json.

It holds seconds, memory, and the GPU-hours of the whole training, worked out.

    python tools/paper_step.py [--batch 1]

At the recipe's batch of 8 it takes about 8 GB of memory and minutes a step.
"""

import argparse
import time
from dataclasses import asdict

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ainn_lib import AINN
from ainn_lib.measure.results import write_results
from ainn_lib.network.pdm import count_parameters
from ainn_lib.paths import RECIPES, RESULTS
from ainn_lib.provenance import provenance
from ainn_lib.studies.benchmark import peak_mib
from ainn_lib.training.dead_leaves import dead_leaves
from ainn_lib.training.recipe import Recipe, read_recipe
from ainn_lib.training.trainer import Trainer

QUALITY = 4
SUSTAINED = 20e12  # FLOP/s, an assumption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int)
    batch = parser.parse_args().batch
    file = read_recipe(RECIPES / "paper.json")
    planned = file.recipe(quality=QUALITY)
    recipe = file.recipe(quality=QUALITY, **({"batch": batch} if batch else {}))
    torch.manual_seed(recipe.seed)
    model = AINN.from_preset(file.preset, **file.config, lambdas=(recipe.lam, recipe.lam))
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 256, 256))
    macs = counter.get_total_flops() / 2 / 256**2
    steps = timed_steps(model, recipe)
    write_results(RESULTS / "paper_step.json", {
        "what": "two training steps of the paper recipe on a CPU, quality 4, on dead leaves; "
                "the network starts at random",
        "source": "measured here", **provenance(),
        "recipe": asdict(recipe), "planned_batch": planned.batch, "config": asdict(model.config),
        "parameters": count_parameters(model), "steps": steps,
        "seconds_note": "seconds include waiting for other programs on the machine; cpu_seconds "
                        "are this process's own",
        "peak_memory_gib": peak_mib() / 2**10,
        "forward_kmac_per_pixel": macs / 1e3,
        "gpu_hours_estimate": gpu_hours(macs, planned, len(file.lambdas)),
    })


def timed_steps(model: AINN, recipe: Recipe) -> list[dict]:
    leaves = [np.array(dead_leaves(recipe.patch, [0, i])) for i in range(8)]
    images = [torch.from_numpy(image).permute(2, 0, 1) for image in leaves]
    trainer = Trainer(model, recipe)
    steps = []
    for step in range(2):
        began, cpu = time.monotonic(), time.process_time()
        values = trainer.step(images, step)
        seconds = {"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu}
        steps.append({**seconds, **values})
        print(steps[-1], flush=True)
    return steps


def gpu_hours(macs: float, planned: Recipe, networks: int) -> dict:
    """An estimate from the MAC per pixel of a forward pass."""
    flop = 2 * 3 * macs * planned.batch * planned.patch**2
    hours = flop * planned.steps / SUSTAINED / 3600
    return {
        "what": "worked out on paper, not measured",
        "formula": "MAC per pixel x 2 FLOP x 3 (forward, backward) x batch x patch^2 x steps / "
                   "sustained FLOP/s",
        "flop_per_step": flop,
        "steps": planned.steps,
        "steps_source": "our choice: the authors' number is not public in reach",
        "sustained_flop_per_second": SUSTAINED,
        "sustained_source": "assumed for a data-centre GPU of the A100 class (peak 156e12 in "
                            "TF32), not measured",
        "gpu_hours_one_network": hours,
        "networks": networks,
        "gpu_hours_all": hours * networks,
    }


if __name__ == "__main__":
    main()
