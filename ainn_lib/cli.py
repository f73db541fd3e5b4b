"""The command ``ainn``. Modules that need PyTorch are imported by the commands that use them."""

import argparse
import contextlib
import errno
import io
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from . import __version__
from .codec.files import atomic_write, check_file, check_replaceable, make_folder
from .errors import UNREADABLE, AINNError

if TYPE_CHECKING:
    from concurrent.futures import ProcessPoolExecutor

    from PIL import Image

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}  # of a disk, a quota, a limit
COMMANDS = {}  #: name -> help, options, function; filled by `command`
WITH_OWN_PARSER = {  # module with a function `main(arguments)`
    "eval-model": ("measure.compressai_eval", "run CompressAI's own evaluation on our weights"),
    "app": ("ui.dashboard", "open the dashboard in the browser (options are Voila's)"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit status.

    The status is 2 for a mistake of the user, which is reported in one line without a traceback.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    SOURCE.set("")
    for stream in (sys.stdout, sys.stderr):  # a terminal that lacks a letter gets an escape
        with contextlib.suppress(AttributeError, io.UnsupportedOperation):
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_note
            warnings.simplefilter("always", UserWarning)
            status = _run(arguments)
        sys.stdout.flush()
        return status
    except AINNError as error:
        print(f"ainn: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, `head` for instance, has seen enough
        _silence(sys.stdout)
        return 141
    except OSError as error:
        if error.errno not in FULL:
            raise
        _silence(sys.stdout)
        print(f"ainn: {error.filename or 'the output'} cannot be written: {error.strerror}",
              file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("ainn: stopped", file=sys.stderr)
        return 130


def _silence(stream: io.TextIOBase) -> None:
    """What a stream still holds goes nowhere: Python would try to write it at the end."""
    with contextlib.suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_note(message: Warning, *rest: object) -> None:
    print(f"ainn: note: {SOURCE.get()}{message}", file=sys.stderr)


def _run(arguments: list[str]) -> int:
    if arguments and arguments[0] in WITH_OWN_PARSER:
        module, _ = WITH_OWN_PARSER[arguments[0]]
        return import_module(f"{__package__}.{module}").main(arguments[1:]) or 0
    options = _parser().parse_args(arguments)
    return options.run(options) or 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ainn", description="Image compression with an approximately invertible network."
    )
    parser.add_argument("--version", action="version", version=f"ainn {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = commands.add_parser("data", help="list, fetch or add data sets; draw dead leaves")
    groups = {"": commands, "data": data.add_subparsers(required=True, metavar="ACTION")}
    for name, (help, options, run) in COMMANDS.items():
        group, _, last = name.rpartition(" ")
        command = groups[group].add_parser(last, help=help, description=help)
        command.set_defaults(run=run)
        _add(command, options)
    for name, (_, help) in WITH_OWN_PARSER.items():  # listed here, parsed by their modules
        commands.add_parser(name, help=help)
    return parser


def _add(parser: argparse._ActionsContainer, options: tuple) -> None:
    for option in options:
        if isinstance(option, list):
            _add(parser.add_mutually_exclusive_group(), option)
        else:
            names, settings = option
            parser.add_argument(*names, **settings)


def arg(*names: str, **settings: object) -> tuple[tuple[str, ...], dict]:
    """One argument of a command, as `argparse.ArgumentParser.add_argument` takes it."""
    return names, settings


def command(name: str, help: str, *options: object) -> Callable:
    """Make a function a command. Of a list of options, at most one may be given."""
    def register(run: Callable) -> Callable:
        COMMANDS[name] = help, options, run
        return run

    return register


# -- photos and files ------------------------------------------------------------------------------

EFFORT = arg("--effort", type=int, default=0,
             help="0 to 3: how long our encoder refines the latent (default: 0)")
FORCE = arg("--force", action="store_true", help="replace whatever has the output's name")
OUT = arg("--out", type=Path, metavar="DIR", help="a folder for the outputs of several inputs")
JOBS = arg("--jobs", type=int, default=1, help="files side by side (default: 1)")
QUIET = arg("--quiet", action="store_true", help="say nothing but errors")
STREAM = Path("-")
SOURCE = ContextVar("SOURCE", default="")  # of the notes, where there are several files


def _convert(o: argparse.Namespace, ending: str, convert: Callable[[Path, Path], str]) -> int:
    """One file, or each of several into a folder; the status is 2 where one could not be."""
    names = [Path(name) for name in o.files]
    if o.jobs < 1:
        raise AINNError(f"the number of jobs must be at least 1, got {o.jobs}")
    if o.quiet:
        warnings.simplefilter("ignore")
    if o.out is None:
        if len(names) != 2:
            raise AINNError("name one input and one output, or several inputs and --out DIR")
        words = convert(*names)
        if not o.quiet:
            print(words, file=sys.stderr if names[1] == STREAM else sys.stdout)
        return 0
    if STREAM in names:
        raise AINNError("a stream gives no name to a file in --out: name its output")
    targets = [o.out / f"{name.stem}{ending}" for name in names]
    _check_distinct(targets, "inputs")
    make_folder(o.out)
    return _convert_all(o, names, targets, convert)


def _convert_all(o: argparse.Namespace, names: list[Path], targets: list[Path],
                 convert: Callable[[Path, Path], str]) -> int:
    """Convert each file, with a progress bar on a terminal and a summary at the end."""
    from tqdm import tqdm

    def attempt(name: Path, target: Path) -> tuple[str, int, int] | AINNError:
        SOURCE.set(f"{name}: ")
        try:
            return convert(name, target), name.stat().st_size, target.stat().st_size
        except AINNError as error:
            return error

    began, sizes = time.monotonic(), []
    bar = tqdm(_side_by_side(attempt, names, targets, o.jobs), total=len(names), unit="file",
               disable=o.quiet or None, leave=False)
    for name, result in zip(names, bar, strict=True):
        if isinstance(result, AINNError):
            bar.write(f"ainn: {name}: {result}", file=sys.stderr)
            continue
        words, *before_and_after = result
        sizes.append(before_and_after)
        if not o.quiet:
            bar.write(words)
    if not o.quiet:
        before, after = (sum(column) for column in zip(*sizes, strict=True)) if sizes else (0, 0)
        print(f"{len(sizes)} of {len(names)} files in {o.out}: {before} bytes became {after}, "
              f"{time.monotonic() - began:.1f} s")
    return 0 if len(sizes) == len(names) else 2


def _side_by_side(function: Callable, names: list, targets: list, jobs: int) -> Iterator:
    """`map`, in threads where there are several jobs."""
    if jobs == 1:
        yield from map(function, names, targets)
        return
    import torch

    torch.set_num_threads(max(1, torch.get_num_threads() // jobs))
    pool = ThreadPoolExecutor(jobs)
    try:
        yield from pool.map(function, names, targets)
    finally:  # Ctrl-C waits for what has begun
        pool.shutdown(cancel_futures=True)


def _check_distinct(outputs: list[Path], what: str) -> None:
    for output in outputs:
        if outputs.count(output) > 1:
            raise AINNError(f"two {what} would both become {output}: give one another --out")


def _check_output(o: argparse.Namespace, path: Path, magic: bytes | None = None) -> None:
    """Before the work: can it be written, and is nothing of the user's lost?"""
    if path != STREAM:
        check_file(path)
        if not path.parent.is_dir():
            raise AINNError(f"{path} cannot be written: there is no folder {path.parent}")
        if not o.force:
            check_replaceable(path, magic)


def _output(path: Path) -> contextlib.AbstractContextManager[BinaryIO]:
    return contextlib.nullcontext(sys.stdout.buffer) if path == STREAM else atomic_write(path)


@command(
    "encode", "turn photos into .ainn files",
    arg("files", nargs="+", metavar="FILE",
        help="IMAGE OUTPUT, or several images and --out; - is a stream"),
    OUT,
    arg("--model", default="tiny", help="name or path of weights (default: %(default)s)"),
    [arg("--quality", type=float, help="1 (smallest file) to 8 (best); default 4"),
     arg("--bpp", type=float, help="the best file of at most so many bits per pixel")],
    EFFORT,
    FORCE,
    JOBS,
    QUIET,
)
def encode(o: argparse.Namespace) -> int:
    from . import codec
    from .codec.container import MAGIC
    from .codec.images import open_image
    from .codec.weights import load_pretrained

    def convert(source: Path, target: Path) -> str:
        _check_output(o, target, MAGIC)
        stream = io.BytesIO(sys.stdin.buffer.read()) if source == STREAM else source
        with open_image(stream) as image:
            if o.bpp is None:
                data = codec.encode(image, model, o.quality, o.effort)
            else:
                data = codec.encode_to_bpp(image, model, o.bpp, o.effort)
        with _output(target) as file:
            file.write(data)
        about = codec.info(data)
        quality = "" if about.quality is None else f", quality {about.quality:g}"
        size = f"{about.width}x{about.height}, {about.bytes} bytes, {about.bpp:.3f} bits per pixel"
        return f"{target}: {size}{quality}"

    model = load_pretrained(o.model)
    return _convert(o, ".ainn", convert)


@command(
    "decode", "turn .ainn files into images again",
    arg("files", nargs="+", metavar="FILE",
        help="FILE OUTPUT (PNG, JPEG, WebP, ... by its name), or files and --out; - is a stream"),
    OUT,
    arg("--model", help="name or path of weights (default: those the file names)"),
    arg("--bf16", action="store_true", help="fast on processors with bfloat16; not bit-exact"),
    FORCE,
    JOBS,
    QUIET,
)
def decode(o: argparse.Namespace) -> int:
    from PIL import Image

    from . import codec
    from .codec.weights import load_pretrained

    def convert(source: Path, target: Path) -> str:
        ending = ".png" if target == STREAM else target.suffix.lower()
        kind = Image.registered_extensions().get(ending)
        if kind not in Image.SAVE:
            raise AINNError(f"{target.name}: no image format is known by this ending; try .png")
        _check_output(o, target)
        data = sys.stdin.buffer.read() if source == STREAM else _read_bytes(source)
        image = codec.decode(data, model, o.bf16)
        written = _as_file(image, kind, target)
        with _output(target) as file:
            file.write(written)
        return f"{target}: {image.width}x{image.height}, {image.mode}"

    model = load_pretrained(o.model) if o.model else None
    return _convert(o, ".png", convert)


def _as_file(image: "Image.Image", kind: str, target: Path) -> bytes:
    """The bytes of an image file; a warning where the format drops transparency."""
    from PIL import Image

    buffer = io.BytesIO()
    try:
        image.save(buffer, kind, icc_profile=image.info.get("icc_profile"))
    except (*UNREADABLE, KeyError, OverflowError) as error:  # cannot hold this mode or size
        raise AINNError(f"{target.name} cannot be written as {kind}: {error}") from None
    if kind in Image.OPEN:
        with Image.open(buffer) as kept:
            if kept.size != image.size:
                raise AINNError(f"{target.name} cannot be written as {kind}: it would have "
                                f"{kept.width}x{kept.height} pixels")
            if image.has_transparency_data and not kept.has_transparency_data:
                warnings.warn(f"{kind} drops the transparency", stacklevel=2)
    return buffer.getvalue()


@command("info", "show what the header of an .ainn file says", arg("file", type=Path))
def info(o: argparse.Namespace) -> None:
    from .codec import container, known

    about = container.info(_read_bytes(o.file))
    weights = ", ".join(file.stem for file in known.descriptions(about.fingerprint))
    lines = {"weights": weights or "not here", **asdict(about), "bpp": f"{about.bpp:.4f}"}
    for key, value in lines.items():
        print(f"{key:14}{value}")


@command(
    "export", "write the transforms as ONNX files, for programs without PyTorch",
    arg("--onnx", type=Path, required=True, metavar="DIR", help="folder for the files"),
    arg("--model", default="tiny", help="name or path of weights (default: %(default)s)"),
)
def export(o: argparse.Namespace) -> None:
    from .codec.onnx_export import export_onnx
    from .codec.weights import load_pretrained

    for name, difference in export_onnx(load_pretrained(o.model), o.onnx).items():
        print(f"{o.onnx / name}.onnx: differs from PyTorch by at most {difference:.1e}")


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise AINNError(f"{path} cannot be read: {error.strerror or error}") from None


# -- training and measuring ------------------------------------------------------------------------


@command(
    "train", "train a network, or resume a stopped run",
    arg("--recipe", type=Path, metavar="FILE", help="preset and settings; flags override them"),
    arg("--preset", help="paper, student or tiny (default: tiny)"),
    arg("--data", metavar="NAME|DIR", help="(default: dead leaves, drawn once)"),
    arg("--out", required=True, type=Path, help="folder of the run: checkpoint, log, weights"),
    [arg("--steps", type=int),
     arg("--minutes", type=float, help="as many steps as fit, timed at the start")],
    [arg("--lambda", type=float, dest="lam", help="of a network of one rate (default: all rates)"),
     arg("--quality", type=int, help="one rate: the lambda of this quality in FILE")],
    arg("--start", metavar="WEIGHTS", help="begin with trained weights of the same shape"),
    arg("--batch", type=int, help="of all devices together (default: 4)"),
    arg("--patch", type=int, help="side of the crops (default: 128)"),
    arg("--lr", type=float, help="of the transform; scales the entropy model's (default: 5e-4)"),
    arg("--hold", type=float, dest="constant_fraction", metavar="FRACTION",
        help="fraction of the steps before the learning rate decays (default: 0.3)"),
    arg("--only", choices=["all", "entropy"], dest="train_part",
        help="entropy: train the entropy model for the rate, with a fixed transform"),
    arg("--seed", type=int, help="(default: 0)"),
    arg("--devices", type=int, default=1, metavar="N", help="(default: 1)"),
    arg("--strategy", choices=["auto", "ddp"], default="auto"),
    arg("--accelerator", choices=["auto", "cpu", "gpu"], default="auto"),
    arg("--precision", choices=["32-true", "bf16-mixed"], default="32-true"),
)
def train(o: argparse.Namespace) -> None:
    from .training.recipe import RecipeFile, read_recipe
    from .training.train import train_preset
    from .training.trainer import Devices

    file = read_recipe(o.recipe) if o.recipe else RecipeFile()
    names = "steps", "minutes", "batch", "patch", "lr", "constant_fraction", "train_part", "seed"
    flags = {name: getattr(o, name) for name in names if getattr(o, name) is not None}
    recipe = file.recipe(o.lam, o.quality, **flags)
    devices = Devices(o.accelerator, o.devices, o.strategy, o.precision)
    preset = o.preset or file.preset
    weights = train_preset(preset, o.data, recipe, o.out, o.start, file.config, devices)
    if weights:
        print(f"weights: {weights}")


@command(
    "evaluate", "measure rate and distortion: one JSON each",
    arg("--dataset", required=True, metavar="NAME|DIR", help="kodak, embedded, ... or a folder"),
    arg("--codec", nargs="+", default=[], metavar="NAME", help="classical codecs, or all"),
    arg("--model", nargs="+", default=[], metavar="WEIGHTS", help="names or paths of weights"),
    arg("--settings", nargs="+", type=float, help="in place of the codec's own list"),
    arg("--out", type=Path, default="results", metavar="DIR", help="(default: %(default)s)"),
    EFFORT,
    FORCE,
    arg("--jobs", type=int, help="images measured side by side (default: one for each core)"),
)
def evaluate(o: argparse.Namespace) -> int:
    from .measure import datasets
    from .measure.classical import CODECS
    from .measure.evaluate import check_result, embedded, look_at, subject, workers

    wanted = [("codec", name) for name in (CODECS if o.codec == ["all"] else o.codec)]
    wanted += [("model", name) for name in o.model]
    if not wanted:
        raise AINNError("nothing to measure: name codecs (--codec jpeg) or weights (--model tiny)")
    label = datasets.label(o.dataset)
    subjects = [subject(*one, o.effort) for one in wanted]
    outputs = [o.out / f"{label}-{measured.name}.json" for measured in subjects]
    _check_distinct(outputs, "results")
    with contextlib.ExitStack() as stack:
        if o.dataset == "embedded":
            images = embedded(stack.enter_context(tempfile.TemporaryDirectory()))
        else:
            images = datasets.images(o.dataset)
        pool = stack.enter_context(workers(o.jobs))
        hashes = look_at(images, pool)
        for measured, output in zip(subjects if not o.force else (), outputs, strict=False):
            check_result(output, hashes, measured, o.settings)
        print(f"{label}: {len(images)} images in {_folder_of(images)}")
        done = [_measured(o, images, label, *one, output, pool)
                for output, one in zip(outputs, wanted, strict=True)]
    return 0 if all(done) else 2


def _measured(o: argparse.Namespace, images: dict[str, Path], label: str, kind: str, name: str,
              output: Path, pool: "ProcessPoolExecutor") -> bool:
    """Measure one codec and show its curve; whether that went well: the other codecs go on."""
    from .measure.evaluate import evaluate

    try:
        evaluate(images, label, kind, name, output, o.settings, o.effort, pool=pool)
    except AINNError as error:
        print(f"ainn: {name}: {error}", file=sys.stderr)
        return False
    print(f"{output}:\n{_points(output)}")
    return True


def _folder_of(images: dict[str, Path]) -> Path:
    name, path = next(iter(images.items()))
    return path.parents[name.count("/")]


def _points(output: Path) -> str:
    """The curve of a result as a table."""
    import json

    import pandas as pd

    facts = json.loads(output.read_text(encoding="utf-8"))
    table = pd.DataFrame(facts["results"], columns=["setting", "bpp", "psnr-rgb", "lossless"])
    counts = table.pop("lossless").fillna(0).astype(int)
    if counts.any():
        table["without loss"] = [f"{count} of {facts['images']} images lossless" if count else ""
                                 for count in counts]
    return table.to_string(index=False, na_rep="lossless")


@command(
    "bd-rate", "compare two rate-distortion files: ours, CompressAI's or CSV",
    arg("anchor", type=Path, metavar="ANCHOR"),
    arg("test", type=Path, metavar="TEST"),
    arg("--metric", choices=["psnr", "ms-ssim"], default="psnr"),
    arg("--plot", type=Path, metavar="FILE", help="draw both curves: .png, .pdf or .svg"),
    FORCE,
)
def compare_curves(o: argparse.Namespace) -> None:
    from .measure.compare import compare, read_curve

    if o.plot:
        _check_output(o, o.plot)
    print("\n".join(compare(o.anchor, o.test, o.metric)))
    if o.plot:
        from .measure.figures import two_curves

        figure = two_curves([read_curve(path)[0] for path in (o.anchor, o.test)], o.metric)
        drawn = io.BytesIO()
        try:
            figure.savefig(drawn, format=o.plot.suffix[1:] or "png", dpi=200)
        except ValueError as error:  # an ending that matplotlib does not know
            raise AINNError(f"{o.plot} cannot be drawn: {error}") from None
        with _output(o.plot) as file:
            file.write(drawn.getvalue())
        print(f"figure: {o.plot}")


@command(
    "benchmark", "time codec, training step and explorers",
    arg("--output", type=Path, default=Path("results/benchmark.json"),
        help="JSON file (default: %(default)s)"),
    arg("--presets", nargs="+", default=["tiny", "student", "paper"]),
)
def benchmark(o: argparse.Namespace) -> None:
    import json

    from .measure.results import write_results
    from .studies.benchmark import benchmark
    from .ui.latency import explorer_latency

    path = benchmark(o.presets, o.output)
    facts = json.loads(path.read_text(encoding="utf-8"))
    write_results(path, {**facts, "explorers": explorer_latency()})
    print(f"written: {path}")


@command(
    "compare-page", "write a page with our files beside other codecs' of equal size",
    arg("--out", type=Path, default="build/compare", metavar="DIR", help="(default: %(default)s)"),
    arg("--model", metavar="WEIGHTS", help="name or path of weights (default: student)"),
    arg("--refined", type=Path, metavar="DIR", help="files of effort 3 (default: data/refined)"),
    arg("--refine", action="store_true", help="make those that are missing: minutes each"),
)
def compare_page(o: argparse.Namespace) -> None:
    from .codec.weights import load_pretrained
    from .paths import REFINED
    from .ui import compare_page as page

    refined = o.refined or REFINED
    if o.refine:
        page.make_refined(refined, load_pretrained(o.model or page.default_weights()))
    print(f"open {page.compare_page(o.out, o.model, refined)} in a browser")


@command(
    "reproduce", "measure, draw and execute everything again, and compare",
    arg("--update", action="store_true", help="then replace figures, numbers and notebooks here"),
)
def reproduce(o: argparse.Namespace) -> int:
    from . import paths, reproduce

    if not paths.IN_CHECKOUT:
        raise AINNError("reproduce needs the notebooks: run it in a checkout of the repository")
    return reproduce.main(o.update)


# -- data sets -------------------------------------------------------------------------------------


@command("data list", "the known data sets, and what is here of each")
def list_data(o: argparse.Namespace) -> None:
    from .measure import datasets

    for known in datasets.DATASETS.values():
        print(datasets.holding(known.name))
        print(f"    for {known.purpose}: {known.about}; {known.homepage}")


@command(
    "data fetch", "download a data set and verify it",
    arg("name"),
    arg("--to", type=Path, metavar="DIR", help="(default: in the data home)"),
)
def fetch_data(o: argparse.Namespace) -> None:
    from .measure import datasets

    held = datasets.fetch(o.name, o.to)
    print(f"{held}\nin {held.folder}")


@command(
    "data add", "copy a folder or archive into the data home, verified",
    arg("name"),
    arg("folder", type=Path, metavar="DIR"),
)
def add_data(o: argparse.Namespace) -> None:
    from .measure import datasets

    held = datasets.add(o.name, o.folder)
    print(f"{held}\nin {held.folder}")


@command(
    "data dead-leaves", "draw synthetic training images",
    arg("folder", type=Path, metavar="DIR"),
    arg("--count", type=int, default=100),
    arg("--size", type=int, default=256),
    arg("--seed", type=int, default=0),
)
def dead_leaves(o: argparse.Namespace) -> None:
    from .training.dead_leaves import write_dead_leaves

    folder = write_dead_leaves(o.folder, o.count, o.size, o.seed)
    print(f"{folder}: {o.count} images")
