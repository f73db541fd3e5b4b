import csv
import hashlib
import http.server
import io
import re
import socket
import struct
import threading
import time
import zipfile

import numpy as np
import pytest
from PIL import Image

from ainn_lib import AINNError
from ainn_lib.cli import main
from ainn_lib.measure import datasets as data
from ainn_lib.measure.datasets import Dataset, File


def png(seed: int, level: int = 6) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG", compress_level=level)
    return buffer.getvalue()


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def rgb_sha(content: bytes) -> str:
    return sha(Image.open(io.BytesIO(content)).convert("RGB").tobytes())


PICTURES = {f"{name}.png": png(i) for i, name in enumerate(("one", "two", "three"))}


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, content in members.items():
            file.writestr(name, content)
    return buffer.getvalue()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves ``server.content``; does to the path in ``server.bad`` what stands there."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        name, server = self.path.lstrip("/"), self.server
        server.asked.append(name)
        body, bad = server.content.get(name), server.bad.get(name)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.close_connection = True
        if bad != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if bad == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if bad not in ("truncated", "vanishing", "no length"):
            self.wfile.write(body)
            return
        self.wfile.write(body[: len(body) // 2])
        self.wfile.flush()
        if bad == "vanishing":  # a reset, not an orderly end
            time.sleep(0.2)  # the client reads what was sent: a reset throws away the rest
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on loopback, an empty data home, and two data sets of three images.

    ``toy`` comes file by file, ``packed`` as zip.
    """
    monkeypatch.setenv("AINN_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None
        server.content, server.bad, server.asked = dict(PICTURES), {}, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        server.home = tmp_path / "home"
        files = [File(name, sha(content), rgb_sha(content), (url + name,))
                 for name, content in PICTURES.items()]
        register(monkeypatch, "toy", files=tuple(files))

        def serve_archive(content: bytes) -> None:
            server.content["packed.zip"] = content
            archive = File("packed.zip", sha(content), urls=(url + "packed.zip",))
            register(monkeypatch, "packed", archive=archive)

        server.archive = serve_archive
        serve_archive(zipped({f"valid/{name}": content for name, content in PICTURES.items()}))
        yield server
        server.shutdown()


def register(monkeypatch, name: str, **known) -> None:
    toy = Dataset(name, 3, "evaluation", name, "https://example.org", **known)
    monkeypatch.setitem(data.DATASETS, name, toy)


def left(folder) -> list[str]:
    """All files below a folder."""
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


# -- fetch ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "packed"])
def test_fetch_then_nothing_is_asked_again(server, name):
    held = data.fetch(name)
    assert str(held) == f"{name}: 3 of 3 images"
    assert left(server.home) == [f"{name}/{n}" for n in sorted(PICTURES)]
    assert {n: p.read_bytes() for n, p in data.images(name).items()} == PICTURES
    asked = len(server.asked)
    assert data.fetch(name) == held and len(server.asked) == asked
    (server.home / name / "two.png").unlink()
    data.fetch(name)
    assert len(server.asked) == asked + 1
    assert data.images(name)["two.png"].read_bytes() == PICTURES["two.png"]


def test_fetch_into_a_folder_of_the_users(server, tmp_path):
    assert data.fetch("toy", tmp_path / "mine").folder == tmp_path / "mine"
    assert left(tmp_path / "mine") == sorted(PICTURES) and left(server.home) == []


def test_fetch_mends_a_damaged_image(server):
    data.fetch("toy")
    damaged = server.home / "toy" / "one.png"
    damaged.write_bytes(PICTURES["one.png"][:900])
    data.fetch("toy")
    assert damaged.read_bytes() == PICTURES["one.png"] and server.asked[3:] == ["one.png"]


@pytest.mark.parametrize("bad, words", [
    ("truncated", "broke off"), ("vanishing", "broke off"), ("no length", "checksum"),
    ("wrong", "checksum"), ("gone", "404")])
def test_a_bad_answer_is_one_sentence_and_leaves_whole_images_only(server, bad, words):
    server.bad["two.png"] = bad
    if bad == "gone":
        del server.content["two.png"]
    with pytest.raises(AINNError, match=words) as error:
        data.fetch("toy")
    assert "two.png" in str(error.value) and "\n" not in str(error.value)
    assert left(server.home) == ["toy/one.png"]  # complete images stay for the next try
    server.content, server.bad = dict(PICTURES), {}
    asked = len(server.asked)
    assert data.fetch("toy").names == tuple(sorted(PICTURES))
    assert server.asked[asked:] == ["two.png", "three.png"]


@pytest.mark.parametrize("bad", ["truncated", "wrong"])
def test_a_bad_archive_leaves_nothing(server, bad):
    server.bad["packed.zip"] = bad
    with pytest.raises(AINNError, match="packed.zip cannot be fetched"):
        data.fetch("packed")
    assert left(server.home) == []


def test_the_next_address_is_tried(server, monkeypatch):
    one = data.DATASETS["toy"].files[0]
    mirrored = File(one.name, one.sha256, urls=(one.urls[0] + ".gone", *one.urls))
    register(monkeypatch, "toy", files=(mirrored,))
    assert data.fetch("toy").names == ("one.png",)


def test_no_network(server, monkeypatch):
    nowhere = File("one.png", "0" * 64, urls=("http://127.0.0.1:9/one.png",))
    register(monkeypatch, "toy", files=(nowhere,))
    with pytest.raises(AINNError, match="the connection failed"):
        data.fetch("toy")


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for name in ("toy", "packed"):
        with pytest.raises(AINNError, match="cannot be written"):
            data.fetch(name, tmp_path / "file")


# -- archives ------------------------------------------------------------------------------------


def test_only_images_are_unpacked(server):
    others = {"valid/": b"", "readme.txt": b"", "__MACOSX/._one.png": b"", "._one.png": b""}
    inside = {"a/b/one.png": PICTURES["one.png"], "../../two.png": PICTURES["two.png"]}
    server.archive(zipped(others | inside))
    assert data.fetch("packed").names == ("one.png", "two.png")
    assert left(server.home) == ["packed/one.png", "packed/two.png"]


# -- add -----------------------------------------------------------------------------------------


@pytest.fixture
def mine(server, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    for name, content in PICTURES.items():
        (folder / name).write_bytes(content)
    return folder


def test_add_a_whole_set(server, mine):
    held = data.add("toy", mine)
    assert str(held) == "toy: 3 of 3 images" and not server.asked
    assert {n: p.read_bytes() for n, p in data.images("toy").items()} == PICTURES


def test_add_a_part_and_leave_the_rest_aside(server, mine):
    (mine / "two.png").unlink()
    (mine / "holiday.png").write_bytes(png(9))
    assert str(data.add("toy", mine)) == "toy: 2 of 3 images: a subset"
    assert left(server.home / "toy") == ["one.png", "three.png"]


@pytest.mark.parametrize("content", [png(9), b"no image", png(1)[:-30]])
def test_add_refuses_a_wrong_image_and_copies_nothing(server, mine, content):
    (mine / "two.png").write_bytes(content)
    with pytest.raises(AINNError, match="two.png"):
        data.add("toy", mine)
    assert left(server.home) == []


def test_add_without_hashes_goes_by_name(server, mine, monkeypatch):
    register(monkeypatch, "loose", files=tuple(File(name) for name in PICTURES))
    (mine / "three.png").rename(mine / "3.png")
    assert str(data.add("loose", mine)) == "loose: 2 of 3 images: a subset"


def test_add_an_archive(server, tmp_path):
    archive = tmp_path / "packed.zip"
    archive.write_bytes(server.content["packed.zip"])
    assert str(data.add("packed", archive)) == "packed: 3 of 3 images"
    archive.write_bytes(server.content["packed.zip"] + b".")
    with pytest.raises(AINNError, match="checksum"):
        data.add("packed", archive)


# -- what is here --------------------------------------------------------------------------------


def test_images_of_any_folder(server, mine):
    (mine / ".hidden.png").write_bytes(b"")
    (mine / "b.JPEG").write_bytes(b"")
    assert list(data.images(mine)) == ["b.JPEG", "one.png", "three.png", "two.png"]


@pytest.mark.parametrize("arguments, words", [
    (["fetch", "nope"], "kodak, "),
    (["fetch", "tecnick"], "https://testimages.org"),
    (["add", "nope", "."], "kodak, "),
    (["add", "toy", "nowhere"], "neither a folder"),
    (["add", "toy", "empty"], "holds no image"),
    (["add", "tecnick", "other"], "no image of tecnick"),
    (["add", "clic2020-mobile-valid", "other"], "mobile_valid_2020.zip"),
])
def test_a_users_mistake_is_one_line_and_leaves_nothing(
        server, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes(png(9))
    before = left(tmp_path)
    assert main(["data", *arguments]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1 and "Traceback" not in error
    assert left(tmp_path) == before


def test_what_is_not_here_names_the_command(server):
    for name, words in (("kodak", "`ainn data fetch kodak` gets it, `ainn data add kodak DIR`"),
                        ("tecnick", "not here: `ainn data add")):
        with pytest.raises(AINNError, match=words):
            data.images(name)


def test_command_line(server, mine, tmp_path, capsys):
    assert main(["data", "fetch", "toy"]) == 0 and "3 of 3" in capsys.readouterr().out
    assert main(["data", "fetch", "toy", "--to", str(tmp_path / "there")]) == 0
    assert len(left(tmp_path / "there")) == 3
    assert main(["data", "add", "toy", str(mine)]) == 0
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert "toy: 3 of 3 images" in said and "kodak: 0 of 24 images" in said and "r0k.us" in said


# -- the registry --------------------------------------------------------------------------------


def test_registry_is_consistent():
    listed = {path.stem for path in data.REGISTRY.glob("*.tsv")}
    assert listed == {"kodak", "clic2020-professional-valid", "train"}
    for name, known in data.DATASETS.items():
        assert known.name == name and known.purpose in ("evaluation", "training")
        assert len(known.files) in (known.count, 0)
        assert len({file.name.lower() for file in known.files}) == len(known.files)
        hashes = [h for f in known.files for h in (f.sha256, f.sha256_rgb) if h]
        assert len(set(hashes)) == len(hashes), f"{name}: one image twice"
        for h in hashes + ([known.archive.sha256] if known.archive else []):
            assert re.fullmatch("[0-9a-f]{64}", h)
        for file in known.files:
            assert (file.sha256 is None) == (file.sha256_rgb is None)
            assert file.sha256 or not file.urls
    address = r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/[\w./%-]+"
    counts = {}
    for name, known in data.DATASETS.items():
        urls = [url for file in known.files for url in file.urls]
        assert all(re.fullmatch(address, url) for url in urls)
        counts[name] = sum(bool(file.urls) for file in known.files)
    assert counts == {"kodak": 24, "clic2020-mobile-valid": 0, "clic2020-professional-valid": 10,
                      "tecnick": 0, "train": 212}
    assert not data.DATASETS["tecnick"].fetchable and data.DATASETS["kodak"].fetchable


def test_every_training_photo_has_a_licence():
    lines = (data.REGISTRY / "train.tsv").read_text(encoding="utf-8").splitlines()
    rows = list(csv.DictReader([line for line in lines if line[0] != "#"], delimiter="\t"))
    assert len(rows) == 354 and all(row["licence"] for row in rows)


def test_nothing_is_for_both_evaluation_and_training():
    evaluation, training = (
        [f for known in data.DATASETS.values() if known.purpose == purpose for f in known.files]
        for purpose in ("evaluation", "training"))
    assert len(evaluation) == 24 + 41 + 100 and len(training) == 354
    names = {f.name.rsplit(".", 1)[0] for f in evaluation} | set(data.EMBEDDED)
    assert not names & {f.name.rsplit(".", 1)[0] for f in training}
    withheld = data.evaluation_hashes()
    assert len(withheld) == 2 * (24 + 10) + len(data.EMBEDDED)
    assert not withheld & {h for f in training for h in (f.sha256, f.sha256_rgb)}
    assert sha(data.photo("rocket").tobytes()) in withheld
    assert evaluation[0].sha256_rgb in withheld
