"""Run two steps of the paper's recipe and write figures/data/paper_step.json: seconds, memory, and GPU-hours worked out.

    python tools/paper_step.py [--batch 1]    (about 8 GB of memory and minutes a step at the recipe's batch of 8)
"""

import argparse
import json
import resource
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from ainn_lib import AINN
from ainn_lib.dead_leaves import dead_leaves
from ainn_lib.provenance import provenance
from ainn_lib.recipe import read_recipe
from ainn_lib.train import Devices, set_up, train_step

ROOT = Path(__file__).resolve().parent.parent
QUALITY = 4
SUSTAINED = 20e12  # FLOP/s, an assumption


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int)
    batch = parser.parse_args().batch
    file = read_recipe(ROOT / "data" / "recipes" / "paper.json")
    planned = file.recipe(quality=QUALITY)
    recipe = file.recipe(quality=QUALITY, **({"batch": batch} if batch else {}))
    torch.manual_seed(recipe.seed)
    model = AINN.from_preset(file.preset, **file.config, lambdas=(recipe.lam, recipe.lam))
    images = [torch.from_numpy(np.array(dead_leaves(256, [0, i]))).permute(2, 0, 1) for i in range(8)]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.rand(1, 3, 256, 256))
    macs = counter.get_total_flops() / 2 / 256**2
    fabric = Devices("cpu").fabric()
    module, optimizer = set_up(model, recipe, fabric)
    steps = []
    for step in range(2):
        began, cpu = time.monotonic(), time.process_time()
        values = train_step(fabric, module, model, optimizer, images, recipe, step)
        steps.append({"seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - cpu, **values})
        print(steps[-1], flush=True)
    flop = 2 * 3 * macs * planned.batch * planned.patch**2
    hours = flop * planned.steps / SUSTAINED / 3600
    facts = {
        "what": "two training steps of the paper recipe on a CPU, quality 4, on dead leaves; the network starts at random",
        "source": "measured here", **provenance(),
        "recipe": asdict(recipe), "planned_batch": planned.batch, "config": asdict(model.config),
        "parameters": sum(p.numel() for p in model.parameters()), "steps": steps,
        "seconds_note": "seconds include waiting for other programs on the machine; cpu_seconds are this process's own",
        "batch_note": "the recipe's" if recipe.batch == planned.batch else
                      f"batch {recipe.batch} instead of {planned.batch}: a step of the whole batch was not measured",
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "forward_kmac_per_pixel": macs / 1e3,
        "gpu_hours_estimate": {
            "what": "worked out on paper, not measured",
            "formula": "MAC per pixel x 2 FLOP x 3 (forward, backward) x batch x patch^2 x steps / sustained FLOP/s",
            "flop_per_step": flop,
            "steps": planned.steps,
            "steps_source": "our choice: the authors' number is not public in reach",
            "sustained_flop_per_second": SUSTAINED,
            "sustained_source": "assumed for a data-centre GPU of the A100 class (peak 156e12 in TF32), not measured",
            "gpu_hours_one_network": hours,
            "networks": len(file.lambdas),
            "gpu_hours_all": hours * len(file.lambdas),
        },
    }
    (ROOT / "figures" / "data" / "paper_step.json").write_text(json.dumps(facts, indent=1) + "\n")


if __name__ == "__main__":
    main()
