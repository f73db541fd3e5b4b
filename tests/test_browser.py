"""Explorers in a real browser: JupyterLab, Voila and pages without a kernel, at three widths.

Headless Chromium moves every control. A request to anything but this machine fails the test.
Screenshots are left in build/screenshots.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import ipywidgets
import matplotlib.pyplot as plt
import nbformat
import numpy as np
import psutil
import pytest
from conftest import BROWSERS, CHROMIUM
from nbconvert import HTMLExporter
from PIL import Image

from ainn_lib import codec
from ainn_lib.measure.datasets import photo
from ainn_lib.paths import ROOT
from ainn_lib.ui import explorers
from ainn_lib.ui.compare_page import compare_page
from ainn_lib.ui.dashboard import EXPLORERS
from ainn_lib.ui.stage import BITS, static_page

playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: make setup brings it"
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        CHROMIUM is None,
        reason=f"needs {' or '.join(BROWSERS)} on the PATH (Debian: apt-get install chromium)",
    ),
]
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
SCREENSHOTS = ROOT / "build" / "screenshots"
WIDTHS = (390, 768, 1440)
HERE = ("http://127.0.0.1:", "ws://127.0.0.1:", "file:", "data:", "blob:")
TOKEN = "for-this-test-alone"
DASHBOARD = ("ainn_lib", "app", "--no-browser", "--port={port}", f"--Voila.token={TOKEN}")
CULLING = (  # the idle time is longer than a page needs to connect
    "--MappingKernelManager.cull_idle_timeout=30",
    "--MappingKernelManager.cull_interval=2",
)
FIRST_VIEW = ".ainn-explorer .ainn-layer img"
PATIENCE = 300  # seconds, after which something counts as hung; nothing here asserts a speed
READ = """e => [
    [...e.querySelectorAll('.ainn-stage figure > img, .ainn-layer img')].map(i => i.src).join(),
    [...e.querySelectorAll('.ainn-words')].map(m => m.innerText).join()]"""

BEYOND = """() => {  // what is in sight and sticks out of the page
    const page = document.querySelector('.ainn-page') || document.body
    const edge = page.getBoundingClientRect().right + 1
    return [...page.querySelectorAll('*')]
        .filter(e => e.offsetParent && !e.closest('.ainn-wipe, .ainn-scrolls')
            && e.getBoundingClientRect().right > edge)
        .map(e => e.className)
}"""


# -- servers and browser ---------------------------------------------------------------------------


@contextlib.contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """A Jupyter server of this environment with its own settings, on a free port; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {
        name: str(folder / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    log = folder / "server.log"
    with log.open("w") as output:
        server = psutil.Popen(
            [sys.executable, "-m", *(word.format(port=port) for word in command)],
            cwd=folder,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **places, "JUPYTER_PREFER_ENV_PATH": "1"},
        )
    family: list[psutil.Process] = []
    try:
        wait(lambda: server.poll() is not None or answers(port))
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        family = server.children(recursive=True)
        kernels = [words for words in map(command_line, family) if "ipykernel_launcher" in words]
        assert kernels or command[0] != "jupyterlab"  # those of the dashboard end on their own
        assert all(words.split()[0] == sys.executable for words in kernels), kernels
    finally:
        family = family or (server.children(recursive=True) if server.is_running() else [])
        server.terminate()
        for process in psutil.wait_procs([server, *family], timeout=15)[1]:
            process.kill()


def command_line(process: psutil.Process) -> str:
    """Of a process; empty where it has ended, perhaps just now."""
    try:
        return " ".join(process.cmdline())
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return ""


def answers(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", f"/?token={TOKEN}")
        return connection.getresponse().status < 500
    except OSError:
        return False
    finally:
        connection.close()


def wait(condition, words: str = "") -> None:
    end = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < end, f"nothing happened in {PATIENCE} s: {words}"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """A fresh page; at the end it is pictured, and no error may be in its console."""
    page = browser.new_page(viewport={"width": 1280, "height": 1000})
    page.set_default_timeout(1000 * PATIENCE)
    errors = []
    page.on("request", lambda r: r.url.startswith(HERE) or errors.append(f"asked for {r.url}"))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "console",
        lambda message: (
            message.type == "error"
            and errors.append(f"{message.text} {message.location['url']}")
        ),
    )
    yield page
    picture(page, request.node.name.translate({ord("["): "-", ord("]"): None}))
    page.close()
    assert not errors


def picture(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


# -- moves -----------------------------------------------------------------------------------------


def changes(explorer, act, words: bool = True) -> None:
    """What ``act`` does must change the picture, and the words if asked, and leave no error."""
    before = explorer.evaluate(READ)
    act()

    def changed() -> bool:
        after = explorer.evaluate(READ)
        return bool(errors_in(explorer)) or (
            after[0] != before[0] and (after[1] != before[1] or not words)
        )

    wait(changed, f"still {before[1]!r}")
    assert not errors_in(explorer)


def errors_in(place) -> list[str]:
    kinds = ".ainn-error, [data-mime-type*=error], [data-mime-type*=stderr]"
    return place.locator(kinds).all_inner_texts()


def drag(page, handle) -> None:
    handle.scroll_into_view_if_needed()
    box, track = (
        handle.bounding_box(),
        handle.locator("xpath=ancestor::div[contains(@class, 'noUi-base')]").bounding_box(),
    )
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    to_the_right = x < track["x"] + track["width"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + (0.3 if to_the_right else -0.3) * track["width"], y, steps=5)
    page.mouse.up()


def move_everything(page, explorer) -> int:
    """Each slider by keyboard and by drag, each dropdown by choice; the number of sliders."""
    handles = explorer.locator(".noUi-handle")
    for handle in handles.all():
        name = (
            handle.locator("xpath=ancestor::div[contains(@class, 'widget-inline-hbox')]")
            .locator("label")
            .inner_text()
        )
        assert name and handle.get_attribute("aria-label") == name, "a slider without a name"
        at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        step = "ArrowLeft" if at_the_end else "ArrowRight"
        changes(explorer, lambda h=handle, key=step: h.press(key))
        changes(explorer, lambda h=handle: drag(page, h))
    for choice in explorer.locator("select:not([multiple])").all():
        if choice.locator("option", has_text="300 steps").count():
            continue  # a refined file takes long
        options = choice.locator("option").count()
        before = choice.evaluate("e => e.selectedIndex")
        for index in (options - 1 if before != options - 1 else 0, before):
            changes(explorer, lambda c=choice, i=index: c.select_option(index=i), words=False)
    return handles.count()


# -- JupyterLab ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    settings = {
        "apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
        "notebook-extension/tracker": {"windowingMode": "none"},
    }  # every cell is on the page, in sight or not
    for name, values in settings.items():
        file = folder / "jupyterlab_settings_dir" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with served(
        folder,
        "jupyterlab",
        "--no-browser",
        "--allow-root",
        "--ServerApp.port={port}",
        "--ServerApp.port_retries=0",
        f"--IdentityProvider.token={TOKEN}",
        f"--ServerApp.root_dir={folder}",
        "--LabApp.news_url=",
        "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
    ) as address:
        yield folder, address


@pytest.mark.parametrize("name", ["00_start_here", "06_pdm_denoising"])
def test_a_notebook_in_jupyterlab(lab, page, name):
    folder, address = lab
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    nbformat.write(notebook, folder / f"{name}.ipynb")
    shutil.copytree(ROOT / "notebooks" / "here", folder / "here", dirs_exist_ok=True)
    page.goto(
        f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}"
    )  # no tabs of the test before
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
    for _ in range(5):  # what is run before the kernel has connected is lost
        page.get_by_role("menuitem", name="Run", exact=True).click()
        page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
        with contextlib.suppress(playwright.TimeoutError):
            prompts.filter(has_text=re.compile(r"\[[*\d]")).first.wait_for(timeout=20_000)
            break
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    done = [f"[{number + 1}]:" for number in range(count)]
    wait(
        lambda: errors_in(page) or [text.strip() for text in prompts.all_inner_texts()] == done,
        "cells still run",
    )
    assert not errors_in(page)
    explorers = page.locator(".ainn-explorer")
    assert explorers.count() == sum(
        "explore(" in cell.source for cell in notebook.cells if cell.cell_type == "code"
    )
    for number, explorer in enumerate(explorers.all()):
        explorer.locator("img").first.wait_for()
        assert move_everything(page, explorer)
        picture(page, f"{name}-{number}")


# -- the dashboard ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def voila(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voila")
    with served(folder, *DASHBOARD) as address:
        yield address


@pytest.fixture
def dashboard(voila, page):
    page.goto(f"{voila}/?token={TOKEN}")
    page.locator(FIRST_VIEW).first.wait_for()
    return page


def test_every_explorer_of_the_dashboard(dashboard):
    sliders = 0
    for entry in EXPLORERS:
        dashboard.get_by_role("tab", name=entry.title, exact=True).click()
        explorer = dashboard.locator(".ainn-explorer:visible")
        explorer.locator("img").first.wait_for()
        sliders += move_everything(dashboard, explorer)
        picture(dashboard, f"dashboard-{entry.title.lower().replace(' ', '-')}")
        assert not dashboard.evaluate(BEYOND)
    assert sliders == sum(
        "Slider" in type(c).__name__ for entry in EXPLORERS for c in entry.controls().values()
    )


def test_the_first_view_of_the_dashboard(dashboard):
    """The wipe, its words, what can be saved; nothing sticks out of a narrow page."""
    assert dashboard.title() == "A-INN Lab"
    explorer = dashboard.locator(".ainn-explorer:visible")
    dashboard.get_by_text("times smaller").wait_for()
    dashboard.get_by_text("JPEG of that size: ").first.wait_for()
    assert not explorer.locator("img:not([alt])").count()
    for width in WIDTHS:
        dashboard.set_viewport_size({"width": width, "height": 900})
        wait(lambda: not dashboard.evaluate(BEYOND), f"{width}: {dashboard.evaluate(BEYOND)}")
        for name in ("your own photo", "reset", "save PNG"):
            box = dashboard.get_by_role("button", name=name).bounding_box()
            assert box["x"] >= 0 and box["x"] + box["width"] <= width
        assert explorer.locator(".ainn-wipe").bounding_box()["width"] <= width
        picture(dashboard, f"dashboard-{width}")
    with dashboard.expect_download() as saved:
        dashboard.get_by_text("save .ainn").click()
    assert codec.info(Path(saved.value.path()).read_bytes()).width == 256
    with dashboard.expect_download() as saved:
        dashboard.get_by_role("button", name="save PNG").click()
    assert Image.open(saved.value.path()).size == (256, 256)
    handle = explorer.locator(".noUi-handle").first
    changes(explorer, lambda: handle.press("ArrowRight"))
    changes(explorer, lambda: dashboard.get_by_role("button", name="reset").click())
    assert handle.get_attribute("aria-valuenow") == "3.0"


def test_photos_weights_and_uploads(dashboard, tmp_path):
    explorer = dashboard.locator(".ainn-explorer:visible")
    changes(explorer, lambda: dashboard.get_by_role("radio", name="coffee").check())
    changes(explorer, lambda: dashboard.get_by_label("weights").select_option("tiny"))

    def upload(file: Path) -> None:
        with dashboard.expect_file_chooser() as chooser:
            dashboard.get_by_role("button", name="your own photo").click()
        chooser.value.set_files(file)

    (tmp_path / "no.png").write_text("words")
    upload(tmp_path / "no.png")
    dashboard.get_by_text("no image that can be read").wait_for()
    picture(dashboard, "dashboard-no-image")
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2500, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "large.png", compress_level=0)
    assert (
        tmp_path / "large.png"
    ).stat().st_size > 12e6  # more than a Jupyter server takes by default
    changes(explorer, lambda: upload(tmp_path / "large.png"))
    dashboard.get_by_text("2500x2000 pixels, shrunk").wait_for()
    picture(dashboard, "dashboard-own-photo")


def test_the_address_and_two_people(voila, dashboard, browser):
    """The address brings a view back; who opens it in a page of their own disturbs nobody."""
    dashboard.get_by_role("tab", name="Codecs", exact=True).click()
    explorer = dashboard.locator(".ainn-explorer:visible")
    explorer.locator("img").first.wait_for()
    changes(explorer, lambda: explorer.get_by_role("checkbox", name="WebP").click())
    wait(lambda: "tab=Codecs" in dashboard.url and "WebP" not in dashboard.url)
    picture(dashboard, "dashboard-check-boxes")
    shown = explorer.locator(".ainn-words").inner_text()
    other = browser.new_page()
    other.goto(dashboard.url, timeout=1000 * PATIENCE)
    theirs = other.locator(".ainn-explorer:visible")
    other.get_by_role("checkbox", name="WebP").wait_for(timeout=1000 * PATIENCE)
    wait(lambda: theirs.locator(".ainn-words").inner_text() == shown)
    changes(theirs, lambda: theirs.get_by_role("checkbox", name="JPEG", exact=True).click())
    assert explorer.locator(".ainn-words").inner_text() == shown
    other.close()


def test_a_refinement_is_stopped(dashboard):
    explorer = dashboard.locator(".ainn-explorer:visible")
    quick = explorer.locator(".ainn-words").inner_text()
    explorer.get_by_label("effort").select_option("3: 300 steps")
    explorer.get_by_role("button", name="stop", exact=True).click()
    wait(lambda: explorer.get_by_label("effort").input_value() == "0: at once")
    wait(lambda: explorer.locator(".ainn-words").inner_text() == quick)


def test_kernels_end(browser, tmp_path):
    """Five reloads leave one kernel, a closed page none."""
    def kernels() -> list[str]:
        family = psutil.Process().children(recursive=True)
        found = [command_line(process) for process in family if process.create_time() > began]
        return [words for words in found if "ipykernel_launcher" in words]

    began = time.time()  # those of the module's own servers are older
    with served(tmp_path, *DASHBOARD, *CULLING) as address:
        page = browser.new_page()
        for _ in range(6):
            page.goto(f"{address}/?token={TOKEN}", timeout=1000 * PATIENCE)
            page.locator(FIRST_VIEW).first.wait_for(timeout=1000 * PATIENCE)
        wait(lambda: len(kernels()) == 1, "more than one kernel lives")
        page.close()
        wait(lambda: not kernels(), "a kernel lives that nobody looks at")


# -- pages without a kernel ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def static(tmp_path_factory) -> str:
    """A page with a wipe and a row, each with three positions, as an exported notebook has them."""
    cat = photo("chelsea").crop((100, 40, 260, 200))

    def wiped(level):
        dark = cat.point(lambda value: value * level // 8)
        return explorers.at_wipe(cat, {"dark": (dark, 800 * level), "grey": (cat.convert("L"), 9)})

    def row(level):
        step = cat.point(lambda value: value // level * level)
        shown = {"photo": step, "map": (np.eye(4) * 100 * level, BITS)}
        return explorers._panels(shown, cat.size), f"level **{level}**"

    def plot(level):
        figure, ax = plt.subplots(figsize=(8, 2))
        ax.plot([0, level])
        return figure, f"level **{level}**"

    html = "<!doctype html><meta charset=utf-8><meta name=viewport content='width=device-width'>"
    for function in (wiped, row, plot):
        controls = {"level": ipywidgets.SelectionSlider(options=[2, 4, 8], value=4)}
        view, first = explorers.prepared(function, controls, 7)
        html += f"<div><p><img alt=first></p><div>{static_page(view, first.words)}</div></div>"
    path = tmp_path_factory.mktemp("static") / "page.html"
    path.write_text(html, encoding="utf-8")
    return path.as_uri()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_page_without_a_kernel(page, static, width):
    page.set_viewport_size({"width": width, "height": 900})
    page.goto(static)
    wipe, row, plot = page.locator(".ainn-stage").all()
    shown = plot.locator("img").evaluate("e => e.clientWidth / e.naturalWidth")
    assert shown >= 0.64 and plot.bounding_box()["width"] <= width  # its words stay readable
    assert page.locator("img[alt=first]:visible").count() == 0  # the component is in its place
    assert not page.evaluate(BEYOND)

    # the slider over prepared frames: by keyboard
    for stage, words in ((wipe, "96 times smaller"), (row, "level 8")):
        slider = stage.get_by_role("slider", name="level")
        assert slider.get_attribute("aria-valuetext") == "4"
        changes(stage, lambda s=slider: s.press("ArrowRight"))
        assert words in stage.locator(".ainn-words").inner_text() or stage is wipe
        assert slider.get_attribute("aria-valuetext") == "8"

    # the line: by mouse, keyboard, and where it stays
    line = wipe.get_by_role("slider", name="line between")
    where = lambda: int(line.get_attribute("aria-valuenow"))  # noqa: E731
    box, handle = wipe.locator(".ainn-wipe").bounding_box(), line.bounding_box()
    middle = handle["x"] + handle["width"] / 2, handle["y"] + handle["height"] / 2
    page.mouse.move(*middle)
    page.mouse.down()
    page.mouse.move(box["x"] + 0.2 * box["width"], middle[1], steps=4)
    assert 18 <= where() <= 22  # while the button is held
    page.mouse.up()
    line.press("ArrowRight")
    line.press("Shift+ArrowRight")
    assert 30 <= where() <= 34
    clip = wipe.locator(".ainn-layer").nth(1).evaluate("e => e.style.clipPath")
    assert f"{where()}" in clip

    # zoom: both sides together, a drag pans, the line stays
    wipe.get_by_role("button", name="zoom in").click()
    before = transforms(wipe)
    page.mouse.move(box["x"] + 0.8 * box["width"], box["y"] + 0.5 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 0.4 * box["height"], steps=3)
    page.mouse.up()
    after, here = transforms(wipe), where()
    assert before != after and after[0] == after[1] and "scale(2)" in after[0]
    assert 30 <= here <= 34

    # another codec on a side, with its own numbers
    wipe.get_by_role("combobox", name="right picture").select_option("grey")
    assert "9 bytes" in wipe.locator(".ainn-side").nth(1).inner_text()
    assert not page.evaluate(BEYOND)
    picture(page, f"static-{width}")


def transforms(stage) -> list[str]:
    return stage.locator(".ainn-layer img").evaluate_all("all => all.map(e => e.style.transform)")


def test_an_exported_notebook(browser, tmp_path, monkeypatch):
    """nbconvert's page: the component stands in place of the picture, and its slider moves."""
    shown = []
    monkeypatch.setattr(explorers, "display", lambda data, raw: shown.append(data))
    monkeypatch.setenv(explorers.POSITIONS, "7")
    cat = photo("chelsea").crop((100, 40, 260, 200))
    explorers.explore(lambda level: explorers.at_wipe(cat, {"dark": (cat, 800 * level)}),
                      level=ipywidgets.IntSlider(value=2, min=1, max=4))  # fmt: skip
    outputs = [nbformat.v4.new_output("display_data", data) for data in shown]
    cell = nbformat.v4.new_code_cell("explore(...)", outputs=outputs)
    notebook = nbformat.v4.new_notebook(cells=[cell])
    html, _ = HTMLExporter(mathjax_url="", require_js_url="").from_notebook_node(notebook)
    assert "children=(" not in html
    (tmp_path / "page.html").write_text(html, encoding="utf-8")
    page = browser.new_page(viewport={"width": 768, "height": 900})
    page.goto((tmp_path / "page.html").as_uri(), wait_until="domcontentloaded")
    stage = page.locator(".ainn-stage")
    stage.locator(".ainn-layer img").first.wait_for()
    assert page.locator(".jp-OutputArea-output > img:visible").count() == 0
    assert "1,600 bytes" in stage.locator(".ainn-words").inner_text()
    stage.get_by_role("slider", name="level").press("ArrowRight")
    assert "2,400 bytes" in stage.locator(".ainn-words").inner_text()
    picture(page, "exported-notebook")
    page.close()


def test_the_line_follows_a_finger(browser, static):
    context = browser.new_context(has_touch=True, viewport={"width": 390, "height": 800})
    page = context.new_page()
    page.goto(static)
    line = page.get_by_role("slider", name="line between")
    box, handle = page.locator(".ainn-wipe").bounding_box(), line.bounding_box()
    y = handle["y"] + 20
    session = context.new_cdp_session(page)
    points = [handle["x"] + handle["width"] / 2, box["x"] + 0.75 * box["width"]]
    for kind, x in (("touchStart", points[0]), ("touchMove", points[1]), ("touchEnd", None)):
        touches = [] if x is None else [{"x": x, "y": y}]
        session.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": touches})
    wait(lambda: 70 <= int(line.get_attribute("aria-valuenow")) <= 80, "the line stands still")
    context.close()


def test_the_comparison_page(page, tmp_path):
    """From disk, without a server: every picture is there, and any two can be chosen."""
    path = compare_page(tmp_path / "page", "tiny", None, ("rocket",), (1, 3), ("jpeg", "webp"))
    page.goto(path.as_uri())
    stage = page.locator(".ainn-stage")
    titles = stage.get_by_role("combobox", name="left picture").locator("option").all_inner_texts()
    assert titles == ["original", "ours", "JPEG", "WebP"]
    for title in titles:
        stage.get_by_role("combobox", name="right picture").select_option(title)
        image = stage.locator(".ainn-layer img").nth(1)
        wait(lambda i=image: i.evaluate("e => e.complete && e.naturalWidth") == 320, title)
    assert "no file so small: JPEG" not in stage.locator(".ainn-words").inner_text()
    stage.get_by_role("slider", name="quality").press("ArrowLeft")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert not page.evaluate(BEYOND)
        picture(page, f"compare-{width}")
    real = (path.parent / "pictures" / "rocket-3-jpeg.jpg").read_bytes()
    assert real[:2] == b"\xff\xd8"  # JPEG's own file
    assert sum(file.stat().st_size for file in path.parent.rglob("*.*")) < 5e6
