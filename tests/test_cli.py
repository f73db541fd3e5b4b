"""The command ``ainn``."""

import io
import os
import re
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import ainn_lib
from ainn_lib import cli, codec
from ainn_lib.cli import main
from ainn_lib.codec.files import atomic_write
from ainn_lib.measure import datasets

PHOTO = datasets.photo("chelsea").crop((100, 40, 196, 104))
ALL = ["data", *(name for name in cli.COMMANDS if " " not in name)]
IS_LIGHT = """
import sys
from ainn_lib.cli import main
try:
    status = main(sys.argv[1:])
except SystemExit as end:
    status = end.code
heavy = {"torch", "compressai", "torchvision", "scipy", "matplotlib"} & set(sys.modules)
sys.exit(f"imported: {heavy}" if heavy else status)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    PHOTO.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )


# -- the door --------------------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["info", "photo.ainn"]])
def test_what_needs_no_network_does_not_import_torch(folder, tiny, arguments):
    (folder / "photo.ainn").write_bytes(codec.encode(PHOTO, tiny))
    done = python("-c", IS_LIGHT, *arguments)
    assert done.returncode == 0 and done.stdout, done.stderr


def test_python_m_ainn_lib_is_the_command():
    assert python("-m", "ainn_lib", "--version").stdout == f"ainn {ainn_lib.__version__}\n"
    assert python("-m", "ainn_lib", "info", "missing").returncode == 2


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_help_in_a_narrow_encoding(encoding):
    code = "import sys; from ainn_lib.cli import main; main([*sys.argv[1:], '--help'])"
    for command in [[], *([name] for name in ALL)]:
        done = python("-c", code, *command, PYTHONIOENCODING=encoding)
        assert done.returncode == 0 and "usage: ainn" in done.stdout, done.stderr


def test_a_name_that_the_terminal_cannot_show(folder, tiny, monkeypatch):
    (folder / "photo.ainn").write_bytes(codec.encode(PHOTO, tiny))
    screen = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr("sys.stdout", screen)
    assert main(["decode", "photo.ainn", "\u56fe.png"]) == 0
    assert screen.buffer.getvalue() == b"\\u56fe.png: 96x64, RGB\n"


def test_every_command_is_listed(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--help"])
    assert end.value.code == 0
    words = capsys.readouterr().out.split()
    assert {*ALL, *cli.WITH_OWN_PARSER} <= set(words)


@pytest.mark.parametrize("name", cli.WITH_OWN_PARSER)
def test_arguments_are_passed_on(monkeypatch, name):
    module, _ = cli.WITH_OWN_PARSER[name]
    passed = []
    monkeypatch.setattr(f"ainn_lib.{module}.main", passed.append)
    assert main([name, "run", "--help"]) == 0
    assert passed == [["run", "--help"]]


def test_reproduce_gives_its_status(monkeypatch):
    monkeypatch.setattr("ainn_lib.reproduce.main", lambda update: int(not update))
    assert main(["reproduce"]) == 1 and main(["reproduce", "--update"]) == 0


def test_ctrl_c_stops_without_a_traceback(monkeypatch, capsys):
    def stopped(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("ainn_lib.reproduce.main", stopped)
    assert main(["reproduce"]) == 130
    assert capsys.readouterr().err == "ainn: stopped\n"


def test_a_reader_that_stops_early_is_no_error():
    command = [sys.executable, "-m", "ainn_lib", "data", "list"]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    errors = run.stderr.read()
    assert run.wait() == 141 and errors == ""


def test_the_package_sets_the_spin_count_unless_the_user_did(monkeypatch):
    code = "import os, ainn_lib; print(os.environ['GOMP_SPINCOUNT'])"
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    assert python("-c", code).stdout == "1000\n"
    assert python("-c", code, GOMP_SPINCOUNT="7").stdout == "7\n"


# -- photos and files ------------------------------------------------------------------------------


def test_a_photo_there_and_back(folder, capsys, tiny):
    assert main(["encode", "photo.png", "photo.ainn", "--quality", "4.5"]) == 0
    assert "quality 4.5" in capsys.readouterr().out
    assert main(["info", "photo.ainn"]) == 0
    shown = capsys.readouterr().out
    assert "96" in shown and "weights       tiny\n" in shown
    for name in ("back.png", "back.jpg", "back.webp"):
        assert main(["decode", "photo.ainn", name]) == 0
    assert Image.open("back.png").tobytes() == codec.reconstruct(PHOTO, tiny, 4.5).tobytes()


def test_aiming_at_a_size(folder):
    assert main(["encode", "photo.png", "photo.ainn", "--bpp", "0.8"]) == 0
    assert 0.7 < codec.info((folder / "photo.ainn").read_bytes()).bpp <= 0.8


ENCODE = ["encode", "photo.png", "out.ainn"]
TRAIN = ["train", "--steps", "1", "--data", "."]
EVALUATE = ["evaluate", "--dataset", ".", "--codec", "jpeg"]


@pytest.mark.parametrize("arguments, words", [
    (["encode", "missing.png", "out.ainn"], "does not exist"),
    (["encode", "photo.ainn.txt", "out.ainn"], "no image"),
    (["encode", "photo.png", "no/such/folder/out.ainn"], "there is no folder no/such/folder"),
    (["encode", "photo.png", "."], "cannot be written"),
    (["encode", "-", "--out", "coded"], "a stream gives no name"),
    ([*ENCODE, "--quality", "9"], "from 1"),
    ([*ENCODE, "--bpp", "0.001"], "smallest file"),
    ([*ENCODE, "--model", "nope"], "no weights named"),
    ([*ENCODE, "--model", "/"], "no weights named"),
    (["decode", "missing.ainn", "out.png"], "cannot be read"),
    (["decode", "photo.png", "out.png"], "no A-INN file"),
    (["decode", "photo.png", "out.xyz"], "ending"),
    (["decode", "cut.ainn", "out.png"], "truncated"),
    (["info", "photo.png"], "no A-INN file"),
    (["info", "."], "cannot be read"),
    ([*TRAIN[:3], "--data", "nowhere", "--out", "run"], "neither a folder"),
    ([*TRAIN, "--out", "photo.png"], "cannot be written to"),
    ([*TRAIN, "--out", "run"], "two photos"),
    (EVALUATE[:3], "nothing to measure"),
    ([*EVALUATE, "--out", "photo.png"], "cannot be written to"),
    ([*EVALUATE, "--jobs", "0"], "jobs must be at least 1"),
    ([*EVALUATE, "webp", "jpeg"], "another --out"),
    (["benchmark", "--output", "photo.png/times.json"], "cannot be written to"),
    (["benchmark", "--output", "."], "is a folder"),
    (["benchmark", "--presets", "nope"], "unknown preset"),
])
def test_a_users_mistake_is_one_line_and_leaves_nothing(folder, capsys, tiny, arguments, words):
    (folder / "photo.ainn.txt").write_text("not an image")
    (folder / "cut.ainn").write_bytes(codec.encode(PHOTO, tiny)[:-9])
    before = sorted(p.name for p in folder.iterdir())
    assert main(arguments) == 2
    shown = capsys.readouterr().err.splitlines()
    [error] = [line for line in shown if not line.startswith("ainn: note: ")]
    assert words in error
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_failed_write_leaves_the_older_file(folder):
    target = folder / "kept.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old" and not list(folder.glob(".kept*"))


def test_a_picture_that_the_format_cannot_hold(folder, capsys, tiny):
    image = PHOTO.convert("RGBA")
    (folder / "alpha.ainn").write_bytes(codec.encode(image, tiny))
    assert main(["decode", "alpha.ainn", "out.jpg"]) == 2
    assert "out.jpg" in capsys.readouterr().err and not (folder / "out.jpg").exists()


@pytest.mark.parametrize("arguments, kept", [
    (["encode", "photo.png", "photo.png"], "photo.png"),
    (["encode", "photo.png", "notes.txt"], "notes.txt"),
    (["decode", "photo.ainn", "photo.png"], "photo.png"),
    (["decode", "photo.ainn", "photo.ainn.png"], "photo.ainn.png"),
])
def test_nothing_of_the_users_is_overwritten(folder, tiny, capsys, arguments, kept):
    (folder / "photo.ainn").write_bytes(codec.encode(PHOTO, tiny))
    for name in ("notes.txt", "photo.ainn.png"):
        (folder / name).write_text("mine")
    before = (folder / kept).read_bytes()
    assert main(arguments) == 2
    assert f"{kept} exists already; --force replaces it" in capsys.readouterr().err
    assert (folder / kept).read_bytes() == before
    assert main([*arguments, "--force"]) == 0
    assert (folder / kept).read_bytes() != before


def test_what_may_be_replaced(folder):
    (folder / "empty").write_bytes(b"")
    assert main(["encode", "photo.png", "empty"]) == 0
    assert main(["encode", "photo.png", "empty", "--quality", "2"]) == 0  # an .ainn file by now
    (folder / "empty.png").write_bytes(b"")
    assert main(["decode", "empty", "empty.png"]) == 0


def test_many_files_into_a_folder(folder, capsys):
    PHOTO.convert("L").save("grey.png")
    (folder / "words.txt").write_text("no image")
    assert main(["encode", "photo.png", "words.txt", "grey.png", "--out", "new/coded"]) == 2
    shown = capsys.readouterr()
    assert "ainn: words.txt: words.txt is no image" in shown.err
    assert re.search(r"\n2 of 3 files in new/coded: \d+ bytes became \d+, \d", shown.out)
    coded = ["new/coded/photo.ainn", "new/coded/grey.ainn"]
    assert main(["decode", *coded, "--out", "decoded"]) == 0
    with Image.open("decoded/grey.png") as grey, Image.open("decoded/photo.png") as photo:
        assert (grey.mode, photo.mode) == ("L", "RGB")
    assert main(["encode", "photo.png", "photo.jpg", "--out", "coded"]) == 2
    assert "would both become" in capsys.readouterr().err
    assert main(["encode", "photo.png"]) == 2
    assert "one input and one output" in capsys.readouterr().err


def test_side_by_side_and_quiet(folder, capsys):
    Image.fromarray(np.zeros((64, 64), np.uint16)).save("deep.png")
    command = ["encode", "photo.png", "missing.png", "deep.png"]
    assert main([*command, "--out", "coded", "--jobs", "2"]) == 2
    shown = capsys.readouterr()
    assert "ainn: note: deep.png: the samples are reduced" in shown.err
    assert [line.split(":")[0] for line in shown.out.splitlines()] == [
        "coded/photo.ainn", "coded/deep.ainn", "2 of 3 files in coded"]
    assert main([*command, "--out", "quiet", "--quiet"]) == 2
    shown = capsys.readouterr()
    assert shown.out == "" and shown.err == "ainn: missing.png: missing.png does not exist\n"
    for name in ("photo.ainn", "deep.ainn"):
        assert codec.decode((folder / "quiet" / name).read_bytes()).tobytes() == codec.decode(
            (folder / "coded" / name).read_bytes()).tobytes()
    assert main([*command, "--out", "coded", "--jobs", "0"]) == 2


def test_the_benchmark_does_not_write_the_committed_file():
    options = cli._parser().parse_args(["benchmark"])
    assert options.output.as_posix() == "results/benchmark.json"


def test_a_dash_is_a_stream(folder, tiny):
    program = [sys.executable, "-m", "ainn_lib"]
    photo = (folder / "photo.png").read_bytes()
    coded = subprocess.run([*program, "encode", "-", "-"], input=photo, capture_output=True)
    assert coded.stdout == codec.encode(PHOTO, tiny) and b"96x64" in coded.stderr
    back = subprocess.run([*program, "decode", "-", "-"], input=coded.stdout, capture_output=True)
    with Image.open(io.BytesIO(back.stdout)) as image:
        assert image.format == "PNG"
        assert image.tobytes() == codec.decode(coded.stdout, tiny).tobytes()
    assert not (folder / "-").exists()


def test_links_are_followed_and_permissions_stay(folder):
    target = folder / "target.ainn"
    target.write_bytes(b"")
    target.chmod(0o600)
    (folder / "link.ainn").symlink_to(target)
    assert main(["encode", "photo.png", "link.ainn"]) == 0
    assert (folder / "link.ainn").is_symlink() and target.stat().st_size > 100
    assert target.stat().st_mode & 0o777 == 0o600
    assert main(["encode", "photo.png", "n" * 245 + ".ainn"]) == 0


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_is_written_to(folder, tiny):
    os.mkfifo(folder / "pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE)
    assert main(["encode", "photo.png", "pipe"]) == 0
    assert reader.communicate()[0] == codec.encode(PHOTO, tiny)
    assert (folder / "pipe").is_fifo()


def test_what_an_image_format_loses_is_said(folder, tiny, capsys):
    image = PHOTO.convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize(PHOTO.size))
    (folder / "alpha.ainn").write_bytes(codec.encode(image, tiny))
    assert main(["decode", "alpha.ainn", "out.png"]) == 0
    assert "note" not in capsys.readouterr().err
    assert main(["decode", "alpha.ainn", "out.gif"]) == 0  # one transparent colour is kept
    large = PHOTO.resize((400, 300))
    (folder / "large.ainn").write_bytes(codec.encode(large, tiny))
    assert main(["decode", "large.ainn", "out.ico"]) == 2
    assert "it would have" in capsys.readouterr().err and not (folder / "out.ico").exists()


def test_losses_are_reported(folder, capsys):
    grey = np.asarray(PHOTO.convert("L")).astype(np.uint16)
    Image.fromarray(grey * 257).save("deep.png")
    assert main(["encode", "deep.png", "deep.ainn"]) == 0
    assert "note: the samples are reduced to 8 bits" in capsys.readouterr().err
