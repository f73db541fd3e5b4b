"""The book: every link leads somewhere, nothing comes from outside, and a browser is content.

`make book` makes its environment; without it these tests are skipped.
"""

import functools
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from conftest import BROWSERS, CHROMIUM

from ainn_lib.paths import NOTEBOOKS, ROOT

BOOK = ROOT / "build" / "book"
LOADED = {("img", "src"), ("script", "src"), ("link", "href"), ("iframe", "src"),
          ("source", "src")}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (ROOT / "build" / "book-env" / ".ready").exists(),
                       reason="needs the book's tools: make book"),
    pytest.mark.skipif(shutil.which("make") is None or sys.platform == "win32",
                       reason="needs make"),
]


class Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self, path: Path):
        super().__init__()
        self.path, self.anchors, self.links, self.loads = path, set(), set(), set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        for name, value in attributes:
            if name in ("id", "name"):
                self.anchors.add(value)
            elif (tag, name) in LOADED and ("rel", "canonical") not in attributes:
                self.loads.add(value)
            elif (tag, name) == ("a", "href"):
                self.links.add(value)


@functools.cache
def page(path: Path) -> Page:
    return Page(path)


@pytest.fixture(scope="module")
def pages():
    done = subprocess.run(["make", "book"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr  # a warning of Sphinx is an error
    page.cache_clear()
    paths = [path for path in sorted(BOOK.rglob("*.html")) if "_static" not in path.parts]
    return [page(path) for path in paths]  # in _static lie templates of the theme


def dead(source: Page) -> list[str]:
    """Links of a page that lead nowhere in the book."""
    found = []
    for link in source.links | source.loads:
        parts = urlsplit(link)
        if parts.scheme or not (parts.path or parts.fragment):
            continue
        path = (source.path.parent / unquote(parts.path)).resolve() if parts.path else source.path
        if not path.is_file():
            found.append(link)
        elif parts.fragment and path.suffix == ".html":
            if unquote(parts.fragment) not in page(path).anchors:
                found.append(link)
    return found


def test_no_link_anchor_or_picture_is_missing(pages):
    assert {source.path.name: dead(source) for source in pages if dead(source)} == {}


def test_dead_links_are_found(tmp_path):
    path = tmp_path / "a.html"
    path.write_text("<p id=here><a href='#here'>1</a><a href='#there'>2</a><a href='b.html'>3</a>"
                    "<img src='no.png'><a href='https://example.org'>4</a>")
    assert sorted(dead(Page(path))) == ["#there", "b.html", "no.png"]


def test_nothing_is_loaded_from_outside(pages):
    outside = {link for source in pages for link in source.loads if urlsplit(link).netloc}
    assert not outside


def test_every_notebook_is_a_page_with_its_neighbours(pages):
    names = sorted(path.stem for path in NOTEBOOKS.glob("[0-9]*.ipynb"))
    found = {source.path.stem: source for source in pages if source.path.parent.name == "notebooks"}
    assert sorted(found) == names
    for before, after in zip(names, names[1:], strict=False):
        assert f"{after}.html" in found[before].links and f"{before}.html" in found[after].links


def test_the_first_page_has_the_claims_and_leads_to_the_comparison(pages):
    """The table is the README's; its numbers are checked in test_notebooks."""
    first = next(source for source in pages if source.path == BOOK / "index.html")
    assert "CFRM recovers the channels" in first.path.read_text(encoding="utf-8")
    assert "compare/index.html" in first.links


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip(f"needs {' or '.join(BROWSERS)} on the PATH")
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.mark.parametrize("width", [390, 1440])
def test_a_browser_shows_every_page_without_an_error(pages, browser, width):
    """No error in the console, no request outside, nothing wider than the screen, all TeX set."""
    shown = browser.new_page(viewport={"width": width, "height": 900})
    shown.set_default_timeout(120_000)
    errors, requests = [], []
    shown.on("pageerror", lambda error: errors.append(str(error)))
    shown.on("console", lambda m: m.type == "error" and errors.append(m.text))
    shown.on("request", lambda r: r.url.startswith(("file:", "data:")) or requests.append(r.url))
    for source in pages:
        shown.goto(source.path.as_uri())
        shown.wait_for_function("!document.querySelector('.math') || "
                                "document.querySelector('mjx-container')")
        beyond = shown.evaluate("document.documentElement.scrollWidth - window.innerWidth")
        assert beyond <= 1, f"{source.path.name} is {beyond} pixels too wide"
        assert not shown.locator("mjx-merror").count(), f"{source.path.name}: TeX"
        assert not errors and not requests, f"{source.path.name}: {errors} {requests}"
    shown.close()


def test_the_search_finds_a_word(pages, browser):
    shown = browser.new_page()
    shown.set_default_timeout(120_000)
    shown.goto((BOOK / "search.html").as_uri() + "?q=wavefront")
    shown.locator("#search-results li").first.wait_for()
    found = " ".join(shown.locator("#search-results li").all_inner_texts())
    assert "Entropy coding" in found
    shown.close()
