"""What a newcomer installs and types: ranges, lock, wheel, documents and CI."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ainn_lib
from ainn_lib import cli
from ainn_lib.paths import PACKAGE, ROOT, WEIGHTS

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
NEEDED = [Requirement(line) for line in PROJECT["dependencies"]]
RANGES = NEEDED + [Requirement(line) for line in PROJECT["optional-dependencies"]["test"]]
EXTRA = [Requirement(line) for line in PROJECT["optional-dependencies"]["onnx"]]
LOCK_LINES = [
    line
    for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]
LOCK = [Requirement(line) for line in LOCK_LINES]
PLACES = [
    {"python_version": full[:4], "python_full_version": full, "sys_platform": platform}
    for full in ("3.11.2", "3.11.9", "3.12.1")
    for platform in ("linux", "darwin", "win32")
]
PIN = re.compile(r'[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z_]+ (==|!=|<|>=) "[a-z0-9.]+")?')
PACKAGE_SERVER = re.compile(
    r"\bpypi\.(?:python\.)?org\b|\bpythonhosted\.org\b|\bdownload\.pytorch\.org\b"
    r"|\banaconda\.org\b|https?://\S+/simple\b"
)
PATH_OF_A_MACHINE = re.compile(
    r"(?<![\w.~:/-])/(?:home|root|work|Users)/\w|\b[A-Z]:\\+Users\\+\w"
)
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def names(requirements: list[Requirement]) -> set[str]:
    return {canonicalize_name(requirement.name) for requirement in requirements}


# -- ranges and lock -------------------------------------------------------------------------------


@pytest.mark.parametrize("wanted", RANGES, ids=lambda wanted: wanted.name)
def test_a_range_is_pinned_once_and_admits_its_pin(wanted):
    name = canonicalize_name(wanted.name)
    (pin,) = [pin for pin in LOCK if canonicalize_name(pin.name) == name]
    (specifier,) = pin.specifier
    assert wanted.specifier, "no range"
    assert pin.marker is None and wanted.specifier.contains(specifier.version)


def test_lock_holds_plain_pins_only():
    for line in LOCK_LINES:  # no URL, option, hash, extra, local version or leading space
        assert PIN.fullmatch(line), line
    assert LOCK_LINES == sorted(LOCK_LINES, key=lambda line: line.split("==")[0])
    assert not [name for name in names(LOCK) if name.startswith(("nvidia", "cuda", "triton"))]
    assert not names(LOCK) & {"pip", "ainn-lab"}


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place.values()))
def test_lock_pins_nothing_twice_on_any_platform(place):
    here = [pin for pin in LOCK if pin.marker is None or pin.marker.evaluate(place)]
    assert len(here) == len(names(here))


def test_lock_is_complete_here(monkeypatch):
    """Everything that the installed packages need on this platform: pip has nothing to choose."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import lock

    platform = sys.platform if sys.platform in lock.PLATFORMS else "linux"
    needed = lock.closure(RANGES, f"3.{sys.version_info.minor}", platform)
    assert needed <= names([pin for pin in LOCK if pin.marker is None or pin.marker.evaluate()])
    assert "typing-extensions" in needed  # reached through others only: the closure was followed


def third_party(folder: Path) -> set[str]:
    """Packages that the Python files of a folder import, without the standard library."""
    found = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(node.module.partition(".")[0])
    return found - set(sys.stdlib_module_names) - {"ainn_lib"}


@pytest.mark.parametrize("folder, declared", [("ainn_lib", NEEDED + EXTRA), ("tools", RANGES)])
def test_what_is_imported_is_declared(folder, declared):
    providers = metadata.packages_distributions()
    imported = third_party(ROOT / folder)
    missing = {name for name in imported if not _declared(providers.get(name, [name]), declared)}
    assert imported and not missing


def _declared(distributions: list[str], declared: list[Requirement]) -> bool:
    return bool({canonicalize_name(name) for name in distributions} & names(declared))


def test_one_version():
    assert yaml.safe_load(text("CITATION.cff"))["version"] == ainn_lib.__version__
    assert f"## {ainn_lib.__version__}" in text("CHANGELOG.md")


# -- the wheel -------------------------------------------------------------------------------------

IMPORT_ALL = """
import importlib, pathlib, pkgutil, sys
import ainn_lib
assert pathlib.Path(ainn_lib.__file__).is_relative_to(sys.argv[1]), ainn_lib.__file__
for module in pkgutil.walk_packages(ainn_lib.__path__, "ainn_lib."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
from ainn_lib import AINN, AINNConfig, AINNError, check_invertible, codec, load_pretrained
print(ainn_lib.paths.STYLE.is_file(), callable(codec.encode), AINN.__name__)
from PIL import Image
from ainn_lib.cli import main
from ainn_lib.codec.known import available
from ainn_lib.measure import datasets
from ainn_lib.measure.curves import measured, published
from ainn_lib.paths import NOTEBOOKS, RECIPES
Image.new("RGB", (64, 64), "red").save("photo.png")
print(len(datasets.evaluation_hashes()) > 60, datasets.dataset("kodak").fetchable,
      len(measured()) > 9, len(published()) > 9, len(list(RECIPES.iterdir())),
      (NOTEBOOKS / "app.ipynb").is_file(), not any("ablation" in name for name in available()))
print(main(["encode", "photo.png", "photo.ainn", "--quiet"]), main(["info", "photo.ainn"]),
      main(["decode", "photo.ainn", "back.png", "--quiet"]), main(["reproduce"]))
"""


@pytest.mark.slow
def test_the_wheel_holds_every_module_and_imports_anywhere(tmp_path):
    source, site, empty = tmp_path / "source", tmp_path / "site", tmp_path / "empty"
    shutil.copytree(PACKAGE, source / "ainn_lib", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("data", "figures", "notebooks"):
        shutil.copytree(ROOT / name, source / name)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    empty.mkdir()
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index", "--quiet"]
    wheel = [*pip, "wheel", *offline, "--no-build-isolation", "-w", tmp_path, source]
    subprocess.run(wheel, check=True, capture_output=True)
    (built,) = tmp_path.glob("*.whl")
    subprocess.run([*pip, "install", *offline, "--target", site, built], check=True)
    for path in (source / "ainn_lib").rglob("*.*"):
        assert (site / path.relative_to(source)).is_file(), path.name
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, site],
        cwd=empty,
        env={**os.environ, "PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )
    first, second, *_, last = done.stdout.splitlines()
    assert first == "True True AINN", done.stderr
    assert second == "True True True True 3 True True"
    assert last == "0 0 0 2" and "run it in a checkout" in done.stderr


# -- commands --------------------------------------------------------------------------------------


def commands(name: str, program: str) -> list[list[str]]:
    """Arguments of every line of the document's code blocks that calls ``program``."""
    blocks = re.findall(r"^```bash\n(.*?)^```", text(name), re.M | re.S)
    lines = [line.partition("#")[0].split() for block in blocks for line in block.splitlines()]
    return [words[1:] for words in lines if words and words[0] == program]


@pytest.mark.parametrize("arguments", commands("README.md", "ainn"), ids=" ".join)
def test_the_readmes_commands_are_commands(arguments):
    if arguments[0] not in cli.WITH_OWN_PARSER:
        assert callable(cli._parser().parse_args(arguments).run)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("name", DOCUMENTS)
def test_make_targets_of_the_documents_exist(name):
    targets = sorted(set(re.findall(r"(?:^|`)make ([a-z0-9]+)", text(name), re.M)))
    assert targets
    for target in targets:
        done = subprocess.run(["make", "-n", target], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("given, seen", [(None, "1000"), ("7", "7")])
def test_make_sets_the_spin_count_unless_the_user_did(tmp_path, given, seen):
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    if given:
        environment["GOMP_SPINCOUNT"] = given
    (tmp_path / "Makefile").write_text(text("Makefile") + "\nshow:\n\t@echo $$GOMP_SPINCOUNT\n")
    command = ["make", "--no-print-directory", "show"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == [seen]


def ci_run(folder: Path, **tools: str) -> tuple[int, list[str]]:
    """Run .ci/run where only these commands exist; its status and the commands that it called."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    (folder / "bin").mkdir()
    for name, body in tools.items():
        tool = folder / "bin" / name.replace("_", "-")
        tool.write_text(f'#!/bin/sh\necho {tool.name} "$@" >> {folder}/called\n{body}\n')
        tool.chmod(0o755)
    for name in ("bash", "sh", "dirname"):
        (folder / "bin" / name).symlink_to(shutil.which(name))
    environment = {"PATH": str(folder / "bin")}
    script = folder / ".ci" / "run"
    done = subprocess.run([shutil.which("bash"), script], env=environment, capture_output=True)
    return done.returncode, (folder / "called").read_text().splitlines()


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("apt_get", ["", "exit 100"])
def test_ci_runs_the_readmes_test_command_also_without_a_browser(tmp_path, apt_get):
    status, called = ci_run(tmp_path, apt_get=apt_get, make="")
    assert status == 0
    assert {"make test", "make lint", "make book", "make numpy2"} <= set(called)
    assert re.search(r"^make test\b", text("README.md"), re.M)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("target", ["test", "lint", "book", "numpy2"])
def test_ci_fails_when_a_part_of_it_fails(tmp_path, target):
    assert ci_run(tmp_path, chromium="", make=f'[ "$1" != {target} ] || exit 2')[0] == 2


def test_the_readme_knows_the_size_of_student():
    model = ainn_lib.load_pretrained("student")
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    megabytes = (WEIGHTS / "student.safetensors").stat().st_size / 1e6
    assert f"({millions:.1f} million parameters, {megabytes:.1f} MB)" in text("README.md")


# -- what must not stand in a file -----------------------------------------------------------------


def tracked_files() -> list[Path]:
    """Files of the repository, and new ones that git would add."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = [ROOT / name for name in listed.stdout.split("\0") if name]
    return [file for file in files if file.is_file()]


def test_no_file_names_a_package_server_or_a_path_of_a_machine():
    found = []
    for file in tracked_files():
        data = file.read_bytes()
        if b"\0" in data:
            continue  # an image or weights
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            if PACKAGE_SERVER.search(line) or PATH_OF_A_MACHINE.search(line):
                found.append(f"{file.relative_to(ROOT)}:{number}")
    assert not found


def test_the_patterns_find_what_they_are_for():
    servers = (
        ("https://pypi", ".org/simple"),
        ("files.python", "hosted.org"),
        ("download.py", "torch.org/whl/cpu"),
        ("https://mirror.example/x/sim", "ple/"),
    )
    for parts in servers:
        assert PACKAGE_SERVER.search("".join(parts)), parts
    machines = (("see /ho", "me/me/x"), ('"/wo', 'rk/x"'), ("/Use", "rs/me"), ("C:\\Us", "ers\\me"))
    for parts in machines:
        assert PATH_OF_A_MACHINE.search("".join(parts)), parts
    harmless = (
        "https://arxiv.org/abs/2408.17073",
        "data/work/x",
        "#!/usr/bin/env bash",
        "https://pytorch.org",
    )
    for line in harmless:
        assert not PACKAGE_SERVER.search(line) and not PATH_OF_A_MACHINE.search(line)


# -- torchvision beside a CPU-only torch -----------------------------------------------------------

LOAD_SHIM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("shim", sys.argv[1])
shim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shim)
assert "torchvision" in sys.modules
import torch, torchvision
declared = hasattr(torch.ops.torchvision, "nms")
print(shim.ensure_torchvision(), declared, len(shim._kept_alive), torchvision.__file__)
"""
FAILS_UNTIL_DECLARED = """
import sys, torch, torchvision.part
sys.tries = getattr(sys, "tries", 0) + 1
part = sys.modules["torchvision.part"]
part.seen = getattr(part, "seen", 0) + 1
known = torch.ops.torchvision
if not (hasattr(known, "nms") and hasattr(known, "qnms")):
    raise RuntimeError("operator torchvision::nms does not exist")
assert sys.tries == 2
assert part.seen == 1, "a half-imported part was handed out again"
"""


def with_torchvision(tmp_path: Path, source: str) -> subprocess.CompletedProcess:
    """Load only the shim, in a new process where ``torchvision`` is a package of that source."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "part.py").write_text("loaded = True\n")
    (package / "__init__.py").write_text(source)
    return subprocess.run(
        [sys.executable, "-c", LOAD_SHIM, str(PACKAGE / "_torchvision.py")],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )


def test_a_fresh_process_imports_ainn_and_compressai():
    code = "from ainn_lib import AINN; import sys; print('compressai' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["True"], result.stderr


def test_shim_leaves_a_torchvision_that_loads_alone(tmp_path):
    result = with_torchvision(tmp_path, "")
    file = str(tmp_path / "torchvision" / "__init__.py")
    assert result.stdout.split() == ["False", "False", "0", file], result.stderr


def test_shim_declares_the_operators_that_are_missing(tmp_path):
    """The fake fails as the real one does, half-imported, until the operators are there."""
    result = with_torchvision(tmp_path, FAILS_UNTIL_DECLARED)
    # the second call finds nothing to do
    assert result.stdout.split()[:3] == ["False", "True", "1"], result.stderr


@pytest.mark.parametrize(
    "error", ["RuntimeError('another trouble')", "ImportError('torchvision::nms is missing')"]
)
def test_shim_passes_other_errors_on(tmp_path, error):
    """The fake fails once only: a shim that tried again would hide the error."""
    source = f"import sys\nif not hasattr(sys, 'tried'):\n    sys.tried = True\n    raise {error}\n"
    result = with_torchvision(tmp_path, source)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.splitlines()[-1] == error.replace("('", ": ").replace("')", "")
