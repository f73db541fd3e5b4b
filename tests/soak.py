"""Hard use: damaged and forged files, killed processes, one folder for many, a reloaded dashboard.

``make soak`` runs every part; ``python tests/soak.py PART ...`` runs some. Each part is one
function; what it counted replaces its entry in figures/data/soak.json. A fault that `make test`
must keep away has a test there; this counts how often it occurs in thousands of tries.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch
from PIL import Image
from test_browser import (
    CHROMIUM,
    CULLING,
    DASHBOARD,
    FIRST_VIEW,
    FLAGS,
    TOKEN,
    command_line,
    playwright,
    served,
)
from test_codec import resealed

from ainn_lib import codec
from ainn_lib.codec import container
from ainn_lib.codec.weights import load_pretrained
from ainn_lib.errors import AINNError
from ainn_lib.measure.datasets import photo
from ainn_lib.measure.results import write_results
from ainn_lib.paths import FIGURES
from ainn_lib.provenance import provenance
from ainn_lib.studies.benchmark import peak_mib

RESULT = FIGURES / "data" / "soak.json"
FILES = Path(__file__).parent / "files"
AINN = [sys.executable, "-m", "ainn_lib"]
SEED = 0


# -- files that are not what they were -------------------------------------------------------------


def originals(model) -> list[bytes]:
    """Small files of every kind that these weights decode."""
    streams = [path.read_bytes() for path in sorted(FILES.glob("*.ainn"))]
    return [stream for stream in streams if decodes(stream, model)]


def decodes(stream: bytes, model) -> bool:
    try:
        codec.decode(stream, model)
    except AINNError:
        return False
    return True


def damage(stream: bytes, other: bytes, rng: random.Random) -> bytes:
    """What disks, networks and editors do to a file."""
    start, end = sorted(rng.randrange(len(stream) + 1) for _ in range(2))
    kind = rng.randrange(8)
    if kind == 0:
        return stream[:start]
    if kind == 1:
        return stream[:start] + stream[end:]
    if kind == 2:
        return stream[:start] + bytes(end - start) + stream[end:]
    if kind == 3:
        return stream[:end] + stream[start:]
    if kind == 4:
        return stream[:start] + rng.randbytes(end - start) + stream[end:]
    if kind == 5:
        return stream[:start] + other[start:]
    if kind == 6:
        return stream.replace(b"\n", b"\r\n")
    broken = bytearray(stream)
    for _ in range(rng.randint(1, 8)):
        broken[rng.randrange(len(broken))] ^= 1 << rng.randrange(8)
    return bytes(broken)


def damaged(count: int = 10_000) -> dict:
    """A file with a random fault is refused: a picture would be a wrong one."""
    model, rng = load_pretrained("tiny"), random.Random(SEED)
    streams, counts = originals(model), {"files": 0, "refused": 0, "wrong pictures": 0}
    while counts["files"] < count:
        stream, other = rng.choice(streams), rng.choice(streams)
        broken = damage(stream, other, rng)
        if broken in (stream, other):
            continue
        counts["files"] += 1
        counts["wrong pictures" if decodes(broken, model) else "refused"] += 1
    return counts


def forge(stream: bytes, rng: random.Random) -> bytes:
    """Fields of the header, or the parts behind it, changed by somebody who mends the checksum."""
    forged = bytearray(stream)
    for _ in range(rng.randint(1, 4)):
        # half of the changes strike the 36 bytes of the header
        end = container.OVERHEAD - 4 if rng.random() < 0.5 else len(forged) - 4
        forged[rng.randrange(end)] = rng.randrange(256)
    return resealed(bytes(forged))


def forged(count: int = 2_000) -> dict:
    """A forged file is refused, or gives a picture of the size in its header, at a bounded cost."""
    model, rng = load_pretrained("tiny"), random.Random(SEED)
    streams = originals(model)
    memory = peak_mib()
    counts = {"files": count, "refused": 0, "pictures": 0, "other sizes": 0, "crashes": 0}
    seconds = []
    for _ in range(count):
        data = forge(rng.choice(streams), rng)
        began = time.process_time()
        try:
            picture = codec.decode(data, model)
        except AINNError:
            counts["refused"] += 1
        except Exception as error:  # what this part looks for
            counts["crashes"] += 1
            print(f"{type(error).__name__}: {error}", data.hex(), file=sys.stderr)
        else:
            about = codec.info(data)
            fits = picture.size == (about.width, about.height)
            counts["pictures" if fits else "other sizes"] += 1
        seconds.append(time.process_time() - began)
    return {**counts, "slowest_seconds_of_cpu": round(max(seconds), 2),
            "more_mib": round(peak_mib() - memory)}


# -- processes that die ----------------------------------------------------------------------------


def photos(folder: Path, count: int = 4, side: int = 96) -> Path:
    """Crops of an embedded photo as PNG files."""
    folder.mkdir()
    image = photo("astronaut")
    columns = image.width // side
    for number in range(count):
        left, top = side * (number % columns), side * (number // columns)
        image.crop((left, top, left + side, top + side)).save(folder / f"{number}.png")
    return folder


def start(command: list) -> subprocess.Popen:
    """The command in a process group of its own, without output."""
    return subprocess.Popen([*AINN, *map(str, command)], stdout=subprocess.DEVNULL,
                            stderr=subprocess.DEVNULL, start_new_session=True)


def killed(command: list, out: Path, read, times: int) -> dict:
    """Kill the command's process at random moments, run it to its end, and compare the results.

    Args:
        command: of ``ainn``; it writes ``out``.
        read: what of ``out`` has to be equal; raises where a file is not whole.
    """
    rng = random.Random(SEED)
    began = time.monotonic()
    assert start(command).wait() == 0
    whole, wanted = time.monotonic() - began, read(out)
    counts = {"kills": 0, "half files": 0, "other results": 0, "processes left": 0}
    while counts["kills"] < times:
        shutil.rmtree(out, ignore_errors=True)  # it may be a folder
        out.unlink(missing_ok=True)
        process = start(command)
        try:
            process.wait(rng.uniform(0, whole))
            continue  # it had ended before
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)  # it alone, not what it started
            process.wait()
        counts["kills"] += 1
        counts["processes left"] += bool(family_after(process.pid))
        half = out.is_file() and read(out) != wanted
        resumed = start(command).wait() == 0  # what is not whole in a folder stops it
        counts["half files"] += half or not resumed
        counts["other results"] += resumed and read(out) != wanted
    return {**counts, "seconds_of_a_whole_run": round(whole, 1)}


def family_after(group: int, patience: float = 10) -> list[int]:
    """Processes of a group that live on ``patience`` seconds after its leader was killed."""
    end = time.monotonic() + patience
    while True:
        left = [p.pid for p in psutil.process_iter() if group_of(p.pid) == group
                and command_line(p)]
        if not left or time.monotonic() > end:
            for pid in left:
                os.kill(pid, signal.SIGKILL)
            return left
        time.sleep(0.1)


def group_of(pid: int) -> int | None:
    try:
        return os.getpgid(pid)
    except ProcessLookupError:
        return None


def killed_encode(times: int = 20) -> dict:
    with tempfile.TemporaryDirectory() as place:
        picture, out = Path(place) / "photo.png", Path(place) / "photo.ainn"
        photo("coffee").save(picture)
        command = ["encode", picture, out, "--model", "tiny"]
        return killed(command, out, Path.read_bytes, times)


def killed_evaluate(times: int = 20) -> dict:
    def rows(out: Path) -> list:
        facts = json.loads((out / f"{source.name}-tiny.json").read_text())
        return [facts["results"], facts["per_image"]]

    with tempfile.TemporaryDirectory() as place:
        source, out = photos(Path(place) / "crops"), Path(place) / "out"
        command = ["evaluate", "--dataset", source, "--model", "tiny", "--out", out, "--jobs", 2]
        return killed(command, out, rows, times)


def killed_train(times: int = 20) -> dict:
    def weights(out: Path) -> list:
        tensors = torch.load(out / "checkpoint.pt", weights_only=True)["model"]
        numbers = [tensors[name].numpy().tobytes() for name in sorted(tensors)]
        return [hashlib.sha256(b"".join(numbers)).hexdigest()]

    with tempfile.TemporaryDirectory() as place:
        source, out = photos(Path(place) / "crops", 16, 128), Path(place) / "run"
        command = ["train", "--data", source, "--out", out, "--steps", 12, "--batch", 1,
                   "--patch", 64]
        return killed(command, out, weights, times)


def killed_reproduce(times: int = 3) -> dict:
    """Killed in its first quarter of an hour, resumed each time; at its end all must agree."""
    rng, command = random.Random(SEED), ["reproduce"]
    for _ in range(times):
        process = start(command)
        time.sleep(rng.uniform(30, 300))
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        family_after(process.pid)
    process = subprocess.run([*AINN, *command], capture_output=True, text=True)
    return {"kills": times, "exit_status": process.returncode,
            "last_line": process.stdout.strip().splitlines()[-1].split(";")[0]}


# -- many at once ----------------------------------------------------------------------------------


def one_folder(processes: int = 4) -> dict:
    """Several processes write the same files: each file is whole, whoever wrote it."""
    counts = {"processes": processes, "done": 0, "refused": 0, "half files": 0}
    with tempfile.TemporaryDirectory() as place:
        source, out = photos(Path(place) / "crops"), Path(place) / "out"
        pictures = sorted(source.iterdir())
        model = load_pretrained("tiny")
        wanted = {p.stem: codec.encode(Image.open(p), model) for p in pictures}
        command = ["encode", *pictures, "--out", out, "--model", "tiny", "--jobs", 1]
        running = [start(command) for _ in range(processes)]
        for process in running:
            counts["done" if process.wait() == 0 else "refused"] += 1
        for name, data in wanted.items():
            counts["half files"] += (out / f"{name}.ainn").read_bytes() != data
        counts["files left over"] = len(list(out.iterdir())) - len(wanted)
    return counts


def reloads(times: int = 50) -> dict:
    """The dashboard, reloaded again and again in one tab."""
    def kernels() -> list[psutil.Process]:
        family = psutil.Process().children(recursive=True)
        return [p for p in family if "ipykernel_launcher" in command_line(p)]

    errors = []
    with tempfile.TemporaryDirectory() as place, playwright.sync_playwright() as browsers, \
            served(Path(place), *DASHBOARD, *CULLING) as address:
        browser = browsers.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page()
        page.set_default_timeout(300_000)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.goto(f"{address}/?token={TOKEN}")
        page.locator(FIRST_VIEW).first.wait_for()
        for _ in range(times):
            page.reload()
            page.locator(FIRST_VIEW).first.wait_for()
        time.sleep(60)  # kernels of pages that are gone end after 30 seconds
        alive = len(kernels())
        browser.close()
        end = time.monotonic() + 120
        while kernels() and time.monotonic() < end:
            time.sleep(1)
        return {"reloads": times, "kernels": alive, "kernels_after_closing": len(kernels()),
                "page_errors": len(errors)}


PARTS = {part.__name__: part for part in (
    damaged, forged, killed_encode, killed_evaluate, killed_train, one_folder, reloads,
    killed_reproduce)}


def main(names: list[str]) -> None:
    for name in names or PARTS:
        began = time.monotonic()
        counted = PARTS[name]()
        counted["seconds"] = round(time.monotonic() - began)
        print(name, counted, flush=True)
        before = json.loads(RESULT.read_text())["parts"] if RESULT.exists() else {}
        origin = provenance()
        part = {**counted, "commit": origin["commit"], "date": origin["date"]}
        write_results(RESULT, {"source": "measured here", "what": __doc__.splitlines()[0], **origin,
                               "parts": {**before, name: part}})


if __name__ == "__main__":
    main(sys.argv[1:])
