import hashlib
import http.server
import io
import re
import shutil
import socket
import stat
import struct
import threading
import time
import zipfile
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ainn_lib import AINNError, data
from ainn_lib.cli import main
from ainn_lib.data import Archive, Dataset, File
from ainn_lib.dead_leaves import dead_leaves, radial_spectrum, write_dead_leaves


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


def zipped(members: dict[str | zipfile.ZipInfo, bytes]) -> bytes:
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
        span = self.headers.get("Range")
        server.asked.append((name, span))
        body, bad = server.content.get(name), server.bad.get(name)
        if body is None:
            self.send_error(404)
            return
        start = int(span[6:-1]) if span and bad != "no range" else 0
        self.send_response(206 if start else 200)
        self.close_connection = True
        if bad != "no length":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if bad == "wrong":
            body = body[:-1] + bytes([body[-1] ^ 1])
        if bad in ("truncated", "vanishing", "no length"):
            self.wfile.write(body[start:start + (len(body) - start) // 2])
            self.wfile.flush()
            if bad == "vanishing":  # a reset, not an orderly end
                time.sleep(0.2)  # what was sent should be read before: a reset throws away the rest
                self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                self.connection.close()
        else:
            self.wfile.write(body[start:])


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A server on loopback, an empty data home, two data sets of three images: ``toy`` file by file, ``packed`` as zip."""
    monkeypatch.setenv("AINN_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.handle_error = lambda *_: None
        server.content, server.bad, server.asked = dict(PICTURES), {}, []
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        server.home = tmp_path / "home"
        register(monkeypatch, "toy", files=tuple(
            File(name, sha(content), rgb_sha(content), 600, urls=(url + name,)) for name, content in PICTURES.items()))

        def serve_archive(content: bytes) -> None:
            server.content["packed.zip"] = content
            register(monkeypatch, "packed", archive=Archive(url + "packed.zip", sha(content), len(content)))

        server.archive = serve_archive
        serve_archive(zipped({f"valid/{name}": content for name, content in PICTURES.items()}))
        yield server
        server.shutdown()


def register(monkeypatch, name: str, **known) -> None:
    toy = Dataset(name, name, "evaluation", "", "https://example.org", 3, "30x20", **known)
    monkeypatch.setitem(data.DATASETS, name, toy)


def left(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*")) if folder.exists() else []


# -- fetch ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["toy", "packed"])
def test_fetch_then_nothing_is_asked_again(server, name):
    held = data.fetch(name, progress=False)
    assert str(held) == f"{name}: 3 of 3 images" and left(server.home) == [name, *(f"{name}/{n}" for n in sorted(PICTURES))]
    assert {n: p.read_bytes() for n, p in data.images(name).items()} == PICTURES
    asked = len(server.asked)
    assert data.fetch(name, progress=False) == held and len(server.asked) == asked
    (server.home / name / "two.png").unlink()
    data.fetch(name, progress=False)
    assert len(server.asked) == asked + 1 and data.images(name)["two.png"].read_bytes() == PICTURES["two.png"]


def test_fetch_into_a_folder_of_the_users(server, tmp_path):
    assert data.fetch("toy", tmp_path / "mine", progress=False).folder == tmp_path / "mine"
    assert left(tmp_path / "mine") == sorted(PICTURES) and left(server.home) == []


def test_fetch_mends_a_damaged_image(server):
    data.fetch("toy", progress=False)
    damaged = server.home / "toy" / "one.png"
    damaged.write_bytes(PICTURES["one.png"][:900])
    data.fetch("toy", progress=False)
    assert damaged.read_bytes() == PICTURES["one.png"] and server.asked[3:] == [("one.png", None)]


@pytest.mark.parametrize("bad, words", [
    ("truncated", "broke off"), ("vanishing", "broke off"), ("no length", "checksum"), ("wrong", "checksum"),
    ("gone", "404")])
def test_a_bad_answer_is_one_sentence_and_leaves_whole_images_only(server, bad, words):
    server.bad["two.png"] = bad
    if bad == "gone":
        del server.content["two.png"]
    with pytest.raises(AINNError, match=words) as error:
        data.fetch("toy", progress=False)
    assert "two.png" in str(error.value) and "\n" not in str(error.value)
    assert left(server.home) == ["toy", "toy/one.png"]  # what was whole stays, so that the next try goes on
    server.content, server.bad = dict(PICTURES), {}
    asked = len(server.asked)
    assert data.fetch("toy", progress=False).names == tuple(sorted(PICTURES))
    assert [name for name, _ in server.asked[asked:]] == ["two.png", "three.png"]


def test_the_next_address_is_tried(server, monkeypatch):
    one = data.DATASETS["toy"].files[0]
    register(monkeypatch, "toy", files=(File(one.name, one.sha256, urls=(one.urls[0] + ".gone", *one.urls)),))
    assert data.fetch("toy", progress=False).names == ("one.png",)


@pytest.mark.parametrize("bad", ["truncated", "vanishing"])
def test_an_archive_goes_on_where_it_broke_off(server, bad):
    server.archive(zipped({"ballast": np.random.default_rng(0).bytes(500_000), **PICTURES}))  # several chunks long
    server.bad["packed.zip"] = bad
    with pytest.raises(AINNError, match="broke off"):
        data.fetch("packed", progress=False)
    (part,) = server.home.iterdir()
    came = part.stat().st_size
    assert part.suffix == ".part" and 0 < came <= len(server.content["packed.zip"]) // 2
    server.bad.clear()
    data.fetch("packed", progress=False)
    assert server.asked[-1] == ("packed.zip", f"bytes={came}-") and not part.exists()
    assert {n: p.read_bytes() for n, p in data.images("packed").items()} == PICTURES


def test_an_archive_begins_again_where_the_server_knows_no_ranges_or_what_came_is_wrong(server):
    part = server.home / f".{data.DATASETS['packed'].archive.sha256}.part"
    server.home.mkdir()
    part.write_bytes(b"not the beginning of it")
    with pytest.raises(AINNError, match="checksum"):
        data.fetch("packed", progress=False)
    assert left(server.home) == []
    part.write_bytes(server.content["packed.zip"][:100])
    server.bad["packed.zip"] = "no range"
    assert len(data.fetch("packed", progress=False).names) == 3
    shutil.rmtree(server.home / "packed")
    server.bad.clear()
    part.write_bytes(server.content["packed.zip"] + b"too long")
    assert len(data.fetch("packed", progress=False).names) == 3


def test_no_network(server, monkeypatch):
    register(monkeypatch, "toy", files=(File("one.png", "0" * 64, urls=("http://127.0.0.1:9/one.png",)),))
    with pytest.raises(AINNError, match="is there a network"):
        data.fetch("toy", progress=False)
    assert left(server.home) == []


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("in the way")
    for name in ("toy", "packed"):
        with pytest.raises(AINNError, match="cannot be written"):
            data.fetch(name, tmp_path / "file", progress=False)


# -- archives -------------------------------------------------------------------------------------------------------


def link() -> zipfile.ZipInfo:
    info = zipfile.ZipInfo("link.png")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return info


@pytest.mark.parametrize("name", ["../evil.png", "valid/../../evil.png", "/tmp/evil.png", "..\\evil.png", "\\evil.png",
                                  "C:\\evil.png", pytest.param(link(), id="link")])
def test_an_unsafe_archive_is_refused_whole(server, tmp_path, name):
    server.archive(zipped({"good.png": PICTURES["one.png"], name: PICTURES["two.png"]}))
    before = left(tmp_path)
    with pytest.raises(AINNError, match="not safe"):
        data.fetch("packed", progress=False)
    assert left(tmp_path) == before


def test_only_images_are_unpacked(server):
    others = {"valid/": b"", "readme.txt": b"", "__MACOSX/one.png": b"", "._one.png": b""}
    server.archive(zipped({**others, "a/b/one.png": PICTURES["one.png"]}))
    assert data.fetch("packed", progress=False).names == ("one.png",)
    assert left(server.home) == ["packed", "packed/one.png"]


@pytest.mark.parametrize("content, words", [(b"no zip file at all", "cannot be unpacked"),
                                            (zipped({"a/one.png": b"1", "b/ONE.png": b"2"}), "two images of one name")])
def test_a_strange_archive(server, content, words):
    server.archive(content)
    with pytest.raises(AINNError, match=words):
        data.fetch("packed", progress=False)
    assert left(server.home) == []


@given(st.text(st.sampled_from("./\\:aé \0-") | st.characters(codec="utf-8"), max_size=30),
       st.sampled_from(["", ".png", "/x.JPG"]))
def test_no_member_name_leads_out_of_the_folder(start, end):
    """Either refused, left aside, or a plain name: one part, the same on every system."""
    info = zipfile.ZipInfo(start + end)
    try:
        name = data._member(info)
    except AINNError:
        return
    if name is not None:
        assert name == re.split(r"[/\\]", info.filename)[-1] and not set(name) & set("/\\:\0") and name.strip(".")


# -- add ------------------------------------------------------------------------------------------------------------


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


def test_add_knows_images_by_their_content(server, mine):
    (mine / "one.png").rename(mine / "other name.png")
    Image.open(mine / "two.png").save(mine / "two.bmp")
    (mine / "two.png").unlink()
    (mine / "three.png").write_bytes(png(2, level=0))
    assert str(data.add("toy", mine)) == "toy: 3 of 3 images"
    assert left(server.home / "toy") == sorted(PICTURES)
    for name, content in PICTURES.items():
        with Image.open(server.home / "toy" / name) as image:
            assert image.format == "PNG" and sha(image.tobytes()) == rgb_sha(content)
    asked = len(server.asked)
    assert data.fetch("toy", progress=False) and len(server.asked) == asked  # the same pixels are good enough


def test_add_says_what_is_missing_and_what_does_not_belong(server, mine):
    (mine / "two.png").unlink()
    (mine / "holiday.png").write_bytes(png(9))
    (mine / "notes.txt").write_text("no image")
    assert str(data.add("toy", mine)) == "toy: 2 of 3 images: a subset; missing: two.png; left aside: holiday.png"
    assert left(server.home / "toy") == ["one.png", "three.png"]


@pytest.mark.parametrize("content", [png(9), b"no image", png(1)[:-30]])
def test_add_refuses_a_wrong_image_and_copies_nothing(server, mine, content):
    (mine / "two.png").write_bytes(content)
    with pytest.raises(AINNError, match="two.png"):
        data.add("toy", mine)
    assert left(server.home) == []


def test_add_without_hashes_goes_by_name_and_size_and_says_so(server, mine, monkeypatch):
    register(monkeypatch, "loose", files=tuple(File(name, pixels=600) for name in PICTURES))
    (mine / "three.png").rename(mine / "3.png")
    assert str(data.add("loose", mine)) == ("loose: 2 of 3 images: a subset; missing: three.png; left aside: 3.png; "
                                            "no hash to verify: one.png, two.png")
    Image.new("RGB", (31, 20)).save(mine / "two.png")
    with pytest.raises(AINNError, match="two.png"):
        data.add("loose", mine)


def test_add_an_archive(server, tmp_path):
    archive = tmp_path / "packed.zip"
    archive.write_bytes(server.content["packed.zip"])
    assert str(data.add("packed", archive)) == "packed: 3 of 3 images"
    archive.write_bytes(server.content["packed.zip"] + b".")
    with pytest.raises(AINNError, match="checksum"):
        data.add("packed", archive)


# -- what is here ---------------------------------------------------------------------------------------------------


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
    (["dead-leaves", "out", "--count", "0"], "at least 1"),
    (["dead-leaves", "out", "--size", "8"], "16"),
    (["dead-leaves", "out", "--seed", "-1"], "at least 0"),
    (["dead-leaves", "other/x.png"], "cannot be written"),
])
def test_a_users_mistake_is_one_line_and_leaves_nothing(server, tmp_path, monkeypatch, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x.png").write_bytes(png(9))
    before = left(tmp_path)
    monkeypatch.setattr(data, "tqdm", lambda rows, **_: rows)
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
    assert main(["data", "fetch", "toy", "--to", str(tmp_path / "there")]) == 0 and len(left(tmp_path / "there")) == 3
    assert main(["data", "add", "toy", str(mine)]) == 0
    assert main(["data", "list"]) == 0
    said = capsys.readouterr().out
    assert "toy: 3 of 3 images" in said and "kodak: 0 of 24 images" in said and "r0k.us" in said
    assert main(["data", "dead-leaves", str(tmp_path / "leaves"), "--count", "2", "--size", "32", "--seed", "5"]) == 0
    assert list(data.images(tmp_path / "leaves")) == ["dead_leaves_5_00000.png", "dead_leaves_5_00001.png"]


# -- the registry ---------------------------------------------------------------------------------------------------


def test_registry_is_consistent():
    listed = {path.stem for path in data.REGISTRY.glob("*.tsv")}
    assert listed == {"kodak", "clic2020-professional-valid", "train"}
    for name, known in data.DATASETS.items():
        assert known.name == name and known.purpose in ("evaluation", "training") and known.homepage.startswith("https://")
        assert len(known.files) in (known.count, 0) and len({f.name.lower() for f in known.files}) == len(known.files)
        hashes = [h for f in known.files for h in (f.sha256, f.sha256_rgb) if h]
        assert len(set(hashes)) == len(hashes), f"{name}: one image twice"
        for h in hashes + ([known.archive.sha256] if known.archive else []):
            assert re.fullmatch("[0-9a-f]{64}", h)
        for file in known.files:
            assert file.pixels and (file.sha256 is None) == (file.sha256_rgb is None) and (file.sha256 or not file.urls)
            for url in file.urls:
                assert re.fullmatch(r"https://raw\.githubusercontent\.com/[\w-]+/[\w-]+/[0-9a-f]{40}/[\w./%-]+", url)
        if known.purpose == "training":
            assert all(file.licence for file in known.files)
    fetchable = {name: sum(bool(f.urls) for f in known.files) for name, known in data.DATASETS.items()}
    assert fetchable["kodak"] == 24 and fetchable["train"] == 212 and fetchable["clic2020-professional-valid"] == 10
    assert not data.DATASETS["tecnick"].fetchable and data.DATASETS["kodak"].fetchable


def test_nothing_is_for_both_evaluation_and_training():
    kinds = SimpleNamespace(evaluation=[], training=[])
    for known in data.DATASETS.values():
        getattr(kinds, known.purpose).extend(known.files)
    assert len(kinds.evaluation) == 165 and len(kinds.training) == 354  # 24 + 41 + 100; of CLIC mobile no names are known
    names = {f.name.rsplit(".", 1)[0] for f in kinds.evaluation} | set(data.EMBEDDED)
    assert not names & {f.name.rsplit(".", 1)[0] for f in kinds.training}
    withheld = data.evaluation_hashes()
    assert len(withheld) == 2 * (24 + 10) + len(data.EMBEDDED)
    assert not withheld & {h for f in kinds.training for h in (f.sha256, f.sha256_rgb)}
    assert sha(data.photo("rocket").tobytes()) in withheld and kinds.evaluation[0].sha256_rgb in withheld


# -- dead leaves ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size, seed", [(256, 0), (256, 1), (192, 2)])
def test_dead_leaves_have_the_spectrum_of_photographs(size, seed):
    """Slope -2 +- 0.3 (issue 4), over the frequencies of which a crop of this size has several periods."""
    spectra = [radial_spectrum(dead_leaves(size, [seed, i])) for i in range(8)]
    frequency, power = spectra[0][0], np.mean([p for _, p in spectra], axis=0)
    band = (frequency >= 0.02) & (frequency <= 0.3)
    slope = np.polyfit(np.log(frequency[band]), np.log(power[band]), 1)[0]
    assert -2.3 <= slope <= -1.7


def test_dead_leaves_follow_from_size_and_seed():
    image = dead_leaves(64, 3)
    assert image.mode == "RGB" and image.size == (64, 64) and image.tobytes() == dead_leaves(64, 3).tobytes()
    assert image.tobytes() != dead_leaves(64, 4).tobytes()
    pixels = np.asarray(dead_leaves(256, 0), dtype=float).reshape(-1, 3)
    assert np.corrcoef(pixels.T).min() > 0.6 and pixels.std() > 40  # natural: the channels go together


def test_write_dead_leaves(tmp_path):
    write_dead_leaves(tmp_path / "leaves", 2, 32, seed=7, progress=False)
    second = Image.open(tmp_path / "leaves" / "dead_leaves_7_00001.png")
    assert second.tobytes() == dead_leaves(32, [7, 1]).tobytes() and len(left(tmp_path / "leaves")) == 2


@pytest.mark.parametrize("shape", [(128, 128), (96, 160)])
def test_radial_spectrum_finds_slope_and_peak(shape):
    """White noise shaped to f^-2 in power has slope -2; 0.15 is five times the spread over seeds. A grating is a peak."""
    rng = np.random.default_rng(0)
    distance = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.fftfreq(shape[1]))
    distance[0, 0] = np.inf
    field = np.fft.ifft2(np.fft.fft2(rng.normal(size=shape)) / distance).real
    grey = np.clip(128 + 40 * field / field.std(), 0, 255).astype(np.uint8)
    f, power = radial_spectrum(np.repeat(grey[..., None], 3, 2))
    assert f[0] == 1 / min(shape) and f[-1] == 0.5 and len(f) == len(power)
    band = (f >= 0.03) & (f <= 0.3)
    assert abs(np.polyfit(np.log(f[band]), np.log(power[band]), 1)[0] + 2) < 0.15
    waves = np.broadcast_to(128 + 100 * np.sin(2 * np.pi * 0.25 * np.arange(shape[1])), shape).astype(np.uint8)
    f, power = radial_spectrum(waves)
    assert f[power.argmax()] == pytest.approx(0.25)
