import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from ainn_lib import codec, data
from ainn_lib.cli import main
from ainn_lib.files import whole_file

PHOTO = data.photo("chelsea").crop((100, 40, 196, 104))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    PHOTO.save(tmp_path / "photo.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_photo_there_and_back(folder, capsys, tiny):
    assert main(["encode", "photo.png", "photo.ainn", "--quality", "4.5"]) == 0
    assert "quality 4.5" in capsys.readouterr().out
    assert main(["info", "photo.ainn"]) == 0
    assert "96" in capsys.readouterr().out
    for name in ("back.png", "back.jpg", "back.webp"):
        assert main(["decode", "photo.ainn", name]) == 0
    assert Image.open("back.png").tobytes() == codec.reconstruct(PHOTO, tiny, 4.5).tobytes()


def test_aiming_at_a_size(folder):
    assert main(["encode", "photo.png", "photo.ainn", "--bpp", "0.8"]) == 0
    assert 0.7 < codec.info((folder / "photo.ainn").read_bytes()).bpp <= 0.8


@pytest.mark.parametrize("arguments, words", [
    (["encode", "missing.png", "out.ainn"], "does not exist"),
    (["encode", "photo.ainn.txt", "out.ainn"], "no image"),
    (["encode", "photo.png", "no/such/folder/out.ainn"], "cannot be written"),
    (["encode", "photo.png", "out.ainn", "--quality", "9"], "from 1"),
    (["encode", "photo.png", ".", "--quality", "4"], "cannot be written"),
    (["evaluate", "--dataset", ".", "--codec", "jpeg", "--jobs", "0"], "jobs must be at least 1"),
    (["encode", "photo.png", "out.ainn", "--bpp", "0.001"], "smallest file"),
    (["encode", "photo.png", "out.ainn", "--model", "nope"], "no weights named"),
    (["decode", "missing.ainn", "out.png"], "cannot be read"),
    (["decode", "photo.png", "out.png"], "no A-INN file"),
    (["decode", "photo.png", "out.xyz"], "ending"),
    (["decode", "cut.ainn", "out.png"], "truncated"),
    (["info", "photo.png"], "no A-INN file"),
    (["info", "."], "cannot be read"),
    (["train", "--data", "nowhere", "--out", "run", "--steps", "1"], "neither a folder"),
    (["train", "--data", ".", "--out", "photo.png", "--steps", "1"], "cannot be written to"),
    (["evaluate", "--dataset", ".", "--codec", "jpeg", "--out", "photo.png"], "cannot be written to"),
    (["benchmark", "--output", "photo.png/times.json"], "cannot be written to"),
    (["benchmark", "--output", "."], "is a folder"),
    (["encode", "photo.png", "out.ainn", "--model", "/"], "no weights named"),
    (["train", "--data", ".", "--out", "run", "--steps", "1"], "no photo"),
    (["benchmark", "--presets", "nope"], "unknown preset"),
])
def test_a_users_mistake_is_one_line_and_leaves_nothing(folder, capsys, tiny, arguments, words):
    (folder / "photo.ainn.txt").write_text("not an image")
    (folder / "cut.ainn").write_bytes(codec.encode(PHOTO, tiny)[:-9])
    before = sorted(p.name for p in folder.iterdir())
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "Traceback" not in error
    assert sorted(p.name for p in folder.iterdir()) == before


def test_a_failed_write_leaves_the_older_file(folder):
    target = folder / "kept.bin"
    target.write_bytes(b"old")
    with pytest.raises(RuntimeError), whole_file(target) as file:
        file.write(b"half")
        raise RuntimeError
    assert target.read_bytes() == b"old" and len(list(folder.glob(".kept*"))) == 0


def test_a_picture_that_the_format_cannot_hold(folder, capsys, tiny):
    image = PHOTO.convert("RGBA")
    (folder / "alpha.ainn").write_bytes(codec.encode(image, tiny))
    assert main(["decode", "alpha.ainn", "out.jpg"]) == 2
    assert "out.jpg" in capsys.readouterr().err and not (folder / "out.jpg").exists()


def test_losses_are_told(folder, capsys):
    Image.fromarray(np.asarray(PHOTO.convert("L")).astype(np.uint16) * 257).save("deep.png")
    assert main(["encode", "deep.png", "deep.ainn"]) == 0
    assert "note: the samples are reduced to 8 bits" in capsys.readouterr().err


def test_the_installed_command_runs():
    done = subprocess.run([sys.executable, "-m", "ainn_lib.cli", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and "encode" in done.stdout


def test_a_reader_that_stops_early_is_no_error(tmp_path):
    program = "import sys; from ainn_lib.cli import main; sys.exit(main(['data', 'list']))"
    run = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    run.stdout.close()
    errors = run.stderr.read()
    assert run.wait() == 141 and errors == ""
