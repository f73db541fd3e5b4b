"""The command ``ainn``."""

import argparse
import sys
from pathlib import Path

from .errors import AINNError


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status (2 for a mistake of the user's, told in one line)."""
    parser = argparse.ArgumentParser(prog="ainn", description="Approximately invertible image compression.")
    commands = parser.add_subparsers(dest="command", required=True)

    train = commands.add_parser("train", help="train a network, or take up a run again")
    train.add_argument("--preset", default="tiny", help="paper, student or tiny")
    train.add_argument("--data", required=True, type=Path, help="folder of photos")
    train.add_argument("--out", required=True, type=Path, help="folder of the run")
    train.add_argument("--steps", type=int, required=True)
    train.add_argument("--batch", type=int, default=4)
    train.add_argument("--patch", type=int, default=128)
    train.add_argument("--lr", type=float, default=5e-4)
    train.add_argument("--seed", type=int, default=0)
    train.set_defaults(run=_train)

    options = parser.parse_args(arguments)
    try:
        return options.run(options) or 0
    except AINNError as error:
        print(f"ainn: {error}", file=sys.stderr)
        return 2


def _train(o: argparse.Namespace) -> None:
    import torch

    from . import train as training
    from .linear import start_as_linear_codec
    from .model import AINN

    names, images, validation = training.hold_out(*training.load_photos(o.data, o.patch))
    recipe = training.Recipe(steps=o.steps, batch=o.batch, patch=o.patch, lr=o.lr, seed=o.seed)
    torch.manual_seed(o.seed)
    model = AINN.from_preset(o.preset)
    if not (o.out / "checkpoint.pt").exists():
        start_as_linear_codec(model, images)
    training.train(model, names, images, validation, recipe, o.out)


if __name__ == "__main__":
    sys.exit(main())
