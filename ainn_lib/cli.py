"""The command ``ainn``: encode, decode, info, train, evaluate, benchmark, data."""

import argparse
import contextlib
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path

from .errors import UNREADABLE, AINNError
from .files import whole_file

DEFAULT_MODEL = "tiny"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit status: 2 for a mistake of the user's, told in one line without a traceback."""
    options = _parser().parse_args(arguments)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = lambda message, *rest: print(f"ainn: note: {message}", file=sys.stderr)
            warnings.simplefilter("always", UserWarning)
            options.run(options)
            sys.stdout.flush()
        return 0
    except AINNError as error:
        print(f"ainn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        print("ainn: stopped", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="ainn", description="Image compression with an approximately invertible network.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(run=run)
        return sub

    encode = command("encode", _encode, "a photo becomes an .ainn file")
    encode.add_argument("image", type=Path)
    encode.add_argument("output", type=Path)
    encode.add_argument("--model", default=DEFAULT_MODEL, help="name or path of weights (default: %(default)s)")
    aim = encode.add_mutually_exclusive_group()
    aim.add_argument("--quality", type=_number, help="1 (smallest file) to 8 (best); default 4")
    aim.add_argument("--bpp", type=_number, help="the best file of at most so many bits per pixel")

    decode = command("decode", _decode, "an .ainn file becomes an image again (PNG, JPEG, WebP, ... by its name)")
    decode.add_argument("file", type=Path)
    decode.add_argument("output", type=Path)
    decode.add_argument("--model", help="name or path of weights (default: those the file names)")

    decode.add_argument("--bf16", action="store_true", help="convolutions in bfloat16: for processors that have it; not bit-exact")

    info = command("info", _info, "what the header of an .ainn file says")
    info.add_argument("file", type=Path)

    train = command("train", _train, "train a network, or take up a stopped run again")
    train.add_argument("--recipe", type=Path, metavar="FILE", help="preset and settings to begin with; flags override them")
    train.add_argument("--preset", help="paper, student or tiny (default: tiny)")
    train.add_argument("--data", metavar="NAME|DIR", help="data set or folder of photos (default: dead leaves, drawn once)")
    train.add_argument("--out", required=True, type=Path, help="folder of the run: checkpoint, log, weights")
    length = train.add_mutually_exclusive_group()
    length.add_argument("--steps", type=int)
    length.add_argument("--minutes", type=_number, help="as many steps as fit: timed once, when the run begins")
    rate = train.add_mutually_exclusive_group()
    rate.add_argument("--lambda", type=_number, dest="lam", metavar="X", help="a network of one rate (default: all rates)")
    rate.add_argument("--quality", type=int, help="λ of this quality in the recipe file: a network of one rate")
    train.add_argument("--batch", type=int, help="of all devices together (default: 4)")
    train.add_argument("--patch", type=int, help="side of the crops (default: 128)")
    train.add_argument("--lr", type=_number, help="of the transform (default: 5e-4); the entropy model's goes along")
    train.add_argument("--hold", type=_number, help="part of the steps before the decay of the learning rate (default: 0.3)")
    train.add_argument("--only", choices=["all", "entropy"], help="entropy: the entropy model alone learns, from the rate")
    train.add_argument("--seed", type=int, help="(default: 0)")
    train.add_argument("--start", metavar="WEIGHTS", help="go on from trained weights of the same shape")
    train.add_argument("--devices", type=int, default=1, metavar="N", help="(default: 1)")
    train.add_argument("--strategy", choices=["auto", "ddp"], default="auto")
    train.add_argument("--accelerator", choices=["auto", "cpu", "gpu"], default="auto")
    train.add_argument("--precision", choices=["32-true", "bf16-mixed"], default="32-true")

    judge = command("evaluate", _evaluate, "measure rate and distortion of codecs and weights on images: one JSON file each")
    judge.add_argument("--dataset", required=True, metavar="NAME|DIR", help="kodak, embedded, ... or a folder of your own images")
    judge.add_argument("--codec", nargs="+", default=[], metavar="NAME", help="classical codecs, or all")
    judge.add_argument("--model", nargs="+", default=[], metavar="WEIGHTS", help="names or paths of weights")
    judge.add_argument("--settings", nargs="+", type=_number, help="in place of the codec's own ladder")
    judge.add_argument("--out", type=Path, default=Path("results"), metavar="DIR", help="(default: %(default)s)")
    judge.add_argument("--jobs", type=int, help="images measured side by side (default: one for each core)")

    bench = command("benchmark", _benchmark, "time the codec against CompressAI's serial loop, and the explorers")
    bench.add_argument("--output", type=Path, help="JSON file (default: figures/data/benchmark.json of the checkout)")
    bench.add_argument("--presets", nargs="+", default=["student", "paper"])

    data = command("data", _data, "data sets: list, fetch or add one; draw dead leaves to train on")
    actions = data.add_subparsers(dest="action", required=True, metavar="ACTION")
    actions.add_parser("list", help="the data sets that are known, and what is here of each")
    fetch = actions.add_parser("fetch", help="download a data set and verify it")
    fetch.add_argument("name")
    fetch.add_argument("--to", type=Path, metavar="DIR", help="folder for the images (default: in the data home)")
    add = actions.add_parser("add", help="copy a folder, or the archive, of a data set into the data home, verified")
    add.add_argument("name")
    add.add_argument("folder", type=Path, metavar="DIR")
    leaves = actions.add_parser("dead-leaves", help="draw training images with the statistics of photographs")
    leaves.add_argument("folder", type=Path, metavar="DIR")
    leaves.add_argument("--count", type=int, default=100)
    leaves.add_argument("--size", type=int, default=256)
    leaves.add_argument("--seed", type=int, default=0)
    return parser


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is no number") from None


def _encode(o: argparse.Namespace) -> None:
    from . import codec
    from .weights import load_pretrained

    with open_image(o.image) as image:
        model = load_pretrained(o.model)
        data = codec.encode(image, model, o.quality) if o.bpp is None else codec.encode_to_bpp(image, model, o.bpp)
    with whole_file(o.output) as file:
        file.write(data)
    about = codec.info(data)
    quality = "" if about.quality is None else f", quality {about.quality:g}"
    print(f"{o.output}: {about.width}x{about.height}, {about.bytes} bytes, {about.bpp:.3f} bits per pixel{quality}")


def _decode(o: argparse.Namespace) -> None:
    from PIL import Image

    from . import codec
    from .weights import load_pretrained

    data = read_bytes(o.file)
    kind = Image.registered_extensions().get(o.output.suffix.lower())
    if kind not in Image.SAVE:
        raise AINNError(f"{o.output.name}: no image format is known by this ending; try .png")
    image = codec.decode(data, load_pretrained(o.model) if o.model else None, o.bf16)
    try:
        with whole_file(o.output) as file:
            image.save(file, kind, icc_profile=image.info.get("icc_profile"))
    except (*UNREADABLE, KeyError, OverflowError) as error:  # a format that cannot hold this mode or size
        raise AINNError(f"{o.output.name} cannot be written as {kind}: {error}") from None
    print(f"{o.output}: {image.width}x{image.height}, {image.mode}")


def _info(o: argparse.Namespace) -> None:
    from dataclasses import asdict

    from . import codec

    about = codec.info(read_bytes(o.file))
    for key, value in {**asdict(about), "bpp": f"{about.bpp:.4f}"}.items():
        print(f"{key:14}{value}")


def _train(o: argparse.Namespace) -> None:
    from .recipe import RecipeFile, read_recipe
    from .train import Devices, train_preset

    file = read_recipe(o.recipe) if o.recipe else RecipeFile()
    flags = {name: getattr(o, name) for name in ("steps", "minutes", "batch", "patch", "lr", "hold", "only", "seed")}
    recipe = file.recipe(o.lam, o.quality, **{name: value for name, value in flags.items() if value is not None})
    weights = train_preset(o.preset or file.preset, o.data, recipe, o.out, o.start, file.config,
                           Devices(o.accelerator, o.devices, o.strategy, o.precision))
    if weights:
        print(f"weights: {weights}")


def _evaluate(o: argparse.Namespace) -> None:
    from . import data
    from .codecs import CODECS
    from .evaluate import embedded, evaluate, subject, workers

    if not o.codec and not o.model:
        raise AINNError("nothing to measure: name codecs (--codec jpeg webp) or weights (--model tiny)")
    with contextlib.ExitStack() as stack:
        if o.dataset == "embedded":
            images = embedded(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            images = data.images(o.dataset)
        pool = stack.enter_context(workers(o.jobs))
        label, planned = Path(o.dataset).resolve().name, {}
        wanted = [("codec", name) for name in (CODECS if o.codec == ["all"] else o.codec)]
        for kind, name in [*wanted, *(("model", name) for name in o.model)]:
            # an unknown name is told before anything is measured
            output = o.out / f"{label}-{subject(kind, name).name}.json"
            if output in planned:
                raise AINNError(f"{planned[output][1]} and {name} would both become {output}: measure them one by one, "
                                "with two --out")
            planned[output] = kind, name
        for output, (kind, name) in planned.items():
            evaluate(images, label, kind, name, output, o.settings, pool)
            results = json.loads(output.read_text())["results"]
            print(f"{output}:")
            for setting, bpp, psnr in zip(results["setting"], results["bpp"], results["psnr-rgb"], strict=True):
                print(f"    {setting:6g}  {bpp:.3f} bpp  {'lossless' if psnr is None else f'{psnr:.2f} dB'}")


def _benchmark(o: argparse.Namespace) -> None:
    from .benchmark import benchmark, latency_table

    path = benchmark(o.presets, o.output)
    print(f"written: {path}\nHow fast the explorers answer:\n{latency_table(path)}")


def _data(o: argparse.Namespace) -> None:
    from . import data

    if o.action == "list":
        for known in data.DATASETS.values():
            print(data.holding(known.name))
            print(f"    {known.title}, for {known.purpose}; {known.sizes}; {known.licence}; {known.homepage}")
    elif o.action == "dead-leaves":
        from .dead_leaves import write_dead_leaves

        print(f"{write_dead_leaves(o.folder, o.count, o.size, o.seed)}: {o.count} images")
    else:
        held = data.fetch(o.name, o.to) if o.action == "fetch" else data.add(o.name, o.folder)
        print(f"{held}\nin {held.folder}")


def open_image(path: Path):
    """A photo from disk. Raises AINNError when it is missing or no image."""
    from PIL import Image, UnidentifiedImageError

    try:
        return Image.open(path)
    except FileNotFoundError:
        raise AINNError(f"{path} does not exist") from None
    except UnidentifiedImageError:
        raise AINNError(f"{path} is no image that Pillow knows") from None
    except UNREADABLE as error:
        raise AINNError(f"{path} cannot be read: {error}") from None


def read_bytes(path: Path) -> bytes:
    """The bytes of a file. Raises AINNError when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise AINNError(f"{path} cannot be read: {error.strerror or error}") from None


if __name__ == "__main__":
    sys.exit(main())
