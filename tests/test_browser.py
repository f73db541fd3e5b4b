"""Sliders in a real browser: JupyterLab runs notebooks, Voila serves the dashboard, headless Chromium moves every control.

Screenshots are left in build/screenshots.
"""

import contextlib
import http.client
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import nbformat
import numpy as np
import psutil
import pytest
from PIL import Image

from ainn_lib.app import EXPLORERS
from ainn_lib.reproduce import ROOT

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: make setup brings it")
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(
    CHROMIUM is None, reason=f"needs a browser on the PATH: {' or '.join(BROWSERS)} (Debian: apt-get install chromium)")]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]
SCREENSHOTS = ROOT / "build" / "screenshots"
ELSEWHERE = "https://"  # Voila asks the web for an icon font; a machine without the web goes without it
TOKEN = "for-this-test-alone"
PATIENCE = 300  # seconds that anything may take before it counts as hung; nothing here asserts a speed
READ = """e => [[...e.querySelectorAll('img')].map(i => i.src).join(), [...e.querySelectorAll('.jp-RenderedMarkdown')]
    .map(m => m.innerText).join()]"""

BEYOND = """() => {  // what is in sight and sticks out of the page
    const page = document.querySelector('.ainn-page'), edge = page.getBoundingClientRect().right + 1
    return [...page.querySelectorAll('*')].filter(e => e.offsetParent && e.getBoundingClientRect().right > edge)
        .map(e => e.className)
}"""


# -- servers and browser -----------------------------------------------------------------------------------------------

@contextlib.contextmanager
def served(folder: Path, *command: str) -> Iterator[str]:
    """A Jupyter server of this environment with settings of its own, on a free port of this machine; gives its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    places = {name: str(folder / name.lower()) for name in (
        "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "JUPYTERLAB_SETTINGS_DIR",
        "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")}
    log = folder / "server.log"
    with log.open("w") as output:
        server = psutil.Popen([sys.executable, "-m", *(word.format(port=port) for word in command)], cwd=folder, stdout=output,
                              stderr=subprocess.STDOUT, env={**os.environ, **places, "JUPYTER_PREFER_ENV_PATH": "1"})
    family: list[psutil.Process] = []
    try:
        wait(lambda: server.poll() is not None or answers(port))
        assert server.poll() is None, log.read_text()
        yield f"http://127.0.0.1:{port}"
        family = server.children(recursive=True)
        kernels = [p.cmdline() for p in family if "ipykernel_launcher" in " ".join(p.cmdline())]
        assert kernels and all(words[0] == sys.executable for words in kernels), kernels
    finally:
        family = family or (server.children(recursive=True) if server.is_running() else [])
        server.terminate()
        for process in psutil.wait_procs([server, *family], timeout=15)[1]:
            process.kill()


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
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: message.type == "error" and not message.location["url"].startswith(ELSEWHERE)
            and errors.append(f"{message.text} {message.location['url']}"))
    yield page
    picture(page, request.node.name.translate({ord("["): "-", ord("]"): None}))
    page.close()
    assert not errors


def picture(page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


# -- moves -------------------------------------------------------------------------------------------------------------

def changes(explorer, act, words: bool = True) -> None:
    """What ``act`` does must change the picture and, where asked, the words under it, and leave no error."""
    before = explorer.evaluate(READ)
    act()

    def changed() -> bool:
        after = explorer.evaluate(READ)
        return bool(errors_in(explorer)) or (after[0] != before[0] and (after[1] != before[1] or not words))

    wait(changed, f"still {before[1]!r}")
    assert not errors_in(explorer)


def errors_in(place) -> list[str]:
    return place.locator("[data-mime-type*=error], [data-mime-type*=stderr]").all_inner_texts()


def drag(page, handle) -> None:
    handle.scroll_into_view_if_needed()
    box, track = handle.bounding_box(), handle.locator("xpath=ancestor::div[contains(@class, 'noUi-base')]").bounding_box()
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
        name = handle.locator("xpath=ancestor::div[contains(@class, 'widget-inline-hbox')]").locator("label").inner_text()
        assert name, "a slider without a name"
        at_the_end = handle.get_attribute("aria-valuenow") == handle.get_attribute("aria-valuemax")
        step = "ArrowLeft" if at_the_end else "ArrowRight"
        changes(explorer, lambda h=handle, key=step: h.press(key))
        changes(explorer, lambda h=handle: drag(page, h))
    for choice in explorer.locator("select:not([multiple])").all():
        options = choice.locator("option").count()
        before = choice.evaluate("e => e.selectedIndex")
        for index in (options - 1 if before != options - 1 else 0, before):
            changes(explorer, lambda c=choice, i=index: c.select_option(index=i), words=False)
    return handles.count()


# -- JupyterLab --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lab")
    settings = {"apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
                "notebook-extension/tracker": {"windowingMode": "none"}}  # every cell is on the page, in sight or not
    for name, values in settings.items():
        file = folder / "jupyterlab_settings_dir" / "@jupyterlab" / f"{name}.jupyterlab-settings"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(values))
    with served(folder, "jupyterlab", "--no-browser", "--allow-root", "--ServerApp.port={port}", "--ServerApp.port_retries=0",
                f"--IdentityProvider.token={TOKEN}", f"--ServerApp.root_dir={folder}", "--LabApp.news_url=",
                "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
                "--LabApp.extension_manager=readonly") as address:
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
    page.goto(f"{address}/lab/workspaces/{name}/tree/{name}.ipynb?token={TOKEN}")  # no tabs of the test before
    page.locator(".jp-Notebook .jp-CodeCell").first.wait_for()
    page.locator(".jp-Notebook-ExecutionIndicator[data-status=idle]").wait_for(state="attached")
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()
    prompts = page.locator(".jp-Notebook .jp-CodeCell .jp-InputPrompt")
    count = sum(cell.cell_type == "code" for cell in notebook.cells)
    done = [f"[{number + 1}]:" for number in range(count)]
    wait(lambda: errors_in(page) or [text.strip() for text in prompts.all_inner_texts()] == done, "cells still run")
    assert not errors_in(page)
    explorers = page.locator(".ainn-explorer")
    assert explorers.count() == sum("explore(" in cell.source for cell in notebook.cells if cell.cell_type == "code")
    for number, explorer in enumerate(explorers.all()):
        explorer.locator("img").wait_for()
        assert move_everything(page, explorer)
        picture(page, f"{name}-{number}")


# -- the dashboard -----------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def voila(tmp_path_factory):
    folder = tmp_path_factory.mktemp("voila")
    with served(folder, "ainn_lib.app", "--no-browser", "--port={port}", f"--Voila.token={TOKEN}") as address:
        yield address


@pytest.fixture
def dashboard(voila, page):
    page.goto(f"{voila}/?token={TOKEN}")
    page.locator(".ainn-explorer img").first.wait_for()
    return page


def test_every_explorer_of_the_dashboard(dashboard):
    sliders = 0
    for entry in EXPLORERS:
        dashboard.get_by_role("tab", name=entry.title, exact=True).click()
        explorer = dashboard.locator(".ainn-explorer:visible")
        explorer.locator("img").wait_for()
        sliders += move_everything(dashboard, explorer)
        picture(dashboard, f"dashboard-{entry.title.lower().replace(' ', '-')}")
        assert not dashboard.evaluate(BEYOND)
    assert sliders == sum("Slider" in type(c).__name__ for entry in EXPLORERS for c in entry.controls().values())


def test_photos_weights_and_uploads(dashboard, tmp_path):
    explorer = dashboard.locator(".ainn-explorer:visible")
    changes(explorer, lambda: dashboard.get_by_label("photo").select_option("coffee"))
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
    assert (tmp_path / "large.png").stat().st_size > 12e6  # more than a Jupyter server takes unless it is told to
    changes(explorer, lambda: upload(tmp_path / "large.png"))
    dashboard.get_by_text("2500x2000 pixels, shrunk").wait_for()
    picture(dashboard, "dashboard-own-photo")
