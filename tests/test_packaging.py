"""What a newcomer installs and types: ranges, lock, environment.yml, Makefile, README and CI say the same."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import ainn_lib

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS = PROJECT["project"]["optional-dependencies"]
RANGES = [Requirement(text) for texts in (PROJECT["project"]["dependencies"], *EXTRAS.values()) for text in texts]
LOCK_LINES = [line for line in (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
              if line and not line.startswith("#")]
LOCK = [Requirement(line) for line in LOCK_LINES]
PLACES = [{"python_version": full[:4], "python_full_version": full, "sys_platform": platform}
          for full in ("3.11.2", "3.11.9", "3.12.1") for platform in ("linux", "darwin", "win32")]
UNTRACKED = {".git", ".venv", "runs", "build", "__pycache__", ".pytest_cache", ".hypothesis", ".ipynb_checkpoints",
             ".ruff_cache"}
PACKAGE_SERVER = re.compile(r"\bpypi\.(?:python\.)?org\b|\bpythonhosted\.org\b|\bdownload\.pytorch\.org\b|\banaconda\.org\b"
                            r"|https?://\S+/simple\b")
PATH_OF_A_MACHINE = re.compile(r"(?<![\w.~:/-])/(?:home|root|work|Users)/\w|\b[A-Z]:\\+Users\\+\w")


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def tracked_files() -> list[Path]:
    """Files of the repository, and new ones that git would take; all files where this is no checkout."""
    try:
        listed = subprocess.run(["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT,
                                capture_output=True, text=True, check=True).stdout
        files = [ROOT / name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):
        files = [f for f in ROOT.rglob("*") if not UNTRACKED & set(f.relative_to(ROOT).parts) and ".egg-info" not in str(f)]
    return [f for f in files if f.is_file()]


# -- ranges and lock ------------------------------------------------------------------------------------------------


def test_every_range_is_pinned_once_and_admits_its_pin():
    for wanted in RANGES:
        pins = [pin for pin in LOCK if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
        assert len(pins) == 1, f"{wanted.name} stands {len(pins)} times in the lock"
        (specifier,) = pins[0].specifier
        assert pins[0].marker is None and wanted.specifier.contains(specifier.version), f"{pins[0]} is outside {wanted}"
        assert wanted.specifier, f"{wanted.name} has no range"


def test_lock_holds_plain_pins_only():
    for line in LOCK_LINES:  # no URL, option, hash, extra, local version or leading space gets through this
        assert re.fullmatch(r'[a-z0-9-]+==[0-9][0-9a-z.]*( ; [a-z_]+ (==|!=|<|>=) "[a-z0-9.]+")?', line), line
    assert "://" not in text("requirements.lock") and "--" not in text("requirements.lock")
    assert LOCK_LINES == sorted(LOCK_LINES, key=lambda line: line.split("==")[0])


@pytest.mark.parametrize("place", PLACES, ids=lambda place: "-".join(place.values()))
def test_lock_pins_nothing_twice_on_any_platform(place):
    names = [canonicalize_name(pin.name) for pin in LOCK if pin.marker is None or pin.marker.evaluate(place)]
    assert len(names) == len(set(names))


def test_lock_leaves_out_what_is_not_ours_to_pin():
    names = {canonicalize_name(pin.name) for pin in LOCK}
    assert not [name for name in names if name.startswith(("nvidia", "cuda", "triton"))]
    assert not names & {"pip", "ainn-lab"}


def test_lock_is_complete_here():
    """Everything that the installed packages need on this platform is in the lock, so pip chooses nothing by itself."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        import lock
    finally:
        sys.path.pop(0)
    needed = lock.closure(RANGES, f"{sys.version_info.major}.{sys.version_info.minor}",
                          sys.platform if sys.platform in lock.PLATFORMS else "linux")
    assert needed <= {canonicalize_name(pin.name) for pin in LOCK if pin.marker is None or pin.marker.evaluate()}
    assert "typing-extensions" in needed  # reached through others only: the closure was followed


def test_python_versions():
    assert PROJECT["project"]["requires-python"] == ">=3.11,<3.13"
    assert "(3, 11) <= sys.version_info[:2] <= (3, 12)" in text("Makefile")


def test_environment_yml_installs_the_lock_and_the_project():
    environment = yaml.safe_load(text("environment.yml"))
    assert environment["name"] == "ainn" and environment["channels"] == ["conda-forge"]
    assert environment["dependencies"] == ["python=3.11", "pip", {"pip": ["-r requirements.lock", "-e ."]}]


def test_one_version():
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "ainn_lib.__version__"}
    assert yaml.safe_load(text("CITATION.cff"))["version"] == ainn_lib.__version__


def test_citation_names_the_paper():
    paper = yaml.safe_load(text("CITATION.cff"))["preferred-citation"]
    assert [set(author) for author in paper["authors"]] == [{"family-names"}] * 8
    assert [author["family-names"] for author in paper["authors"]] == "Gao Li Fu Lv Yang Cai Yuan Ye".split()
    assert paper["title"] in text("README.md") and "doi" not in paper


# -- commands -------------------------------------------------------------------------------------------------------


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z]+):(?!=)", text("Makefile"), re.M))


def ci_run(folder: Path, commands: dict[str, str]) -> tuple[int, str, str]:
    """.ci/run in a copy, where only these commands exist; status, output and what was called, line by line."""
    (folder / ".ci").mkdir()
    shutil.copy(ROOT / ".ci" / "run", folder / ".ci")
    (folder / "bin").mkdir()
    for name, body in commands.items():
        tool = folder / "bin" / name
        tool.write_text(f"#!/bin/sh\necho {name} \"$@\" >> {folder}/called\n{body}\n")
        tool.chmod(0o755)
    for name in ("bash", "sh", "dirname"):
        (folder / "bin" / name).symlink_to(shutil.which(name))
    done = subprocess.run([shutil.which("bash"), folder / ".ci" / "run"], env={"PATH": str(folder / "bin")},
                          capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr, (folder / "called").read_text()


INSTALL = "apt-get update\napt-get install --yes --no-install-recommends chromium\n"


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
@pytest.mark.parametrize("commands, called, said", [
    ({"apt-get": "", "make": ""}, INSTALL + "make test\n", ""),
    ({"apt-get": "exit 100", "make": ""}, "apt-get update\nmake test\n", "will be skipped"),
    ({"make": ""}, "make test\n", "will be skipped"),
    ({"chromium": "", "make": ""}, "make test\n", ""),
])
def test_ci_installs_a_browser_if_it_can_and_runs_the_readmes_test_command(tmp_path, commands, called, said):
    status, output, calls = ci_run(tmp_path, commands)
    assert (status, calls) == (0, called) and said in output and (said or not output)
    assert os.access(ROOT / ".ci" / "run", os.X_OK) and re.search(r"^make test\b", text("README.md"), re.M)


@pytest.mark.skipif(os.name == "nt", reason="a shell script")
def test_ci_fails_when_the_tests_fail(tmp_path):
    assert ci_run(tmp_path, {"chromium": "", "make": "exit 2"})[0] == 2
    assert re.search(r"^make test\b", text("README.md"), re.M)


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md"])
def test_make_commands_in_the_documents_exist(name):
    named = set(re.findall(r"(?:^|`)make ([a-z]+)", text(name), re.M))
    assert named and named <= make_targets()
    assert {"reproduce", "test", "setup", "app", "clean", "help"} <= make_targets()


def test_readme_without_make_is_what_make_does():
    runs = re.findall(r"^\t\$\(VENV_PYTHON\) (-m .*)$", text("Makefile"), re.M)
    assert sorted(runs) == ["-m ainn_lib.app", "-m ainn_lib.reproduce", "-m pip install --no-deps --no-build-isolation -e .",
                            "-m pip install -r requirements.lock", "-m pytest"]
    for python in (".venv/bin/python ", ".venv\\Scripts\\python "):
        lines = [line.removeprefix(python) for line in text("README.md").splitlines() if line.startswith(python)]
        assert sorted(lines) == sorted(runs)


def test_installed_command_is_ours():
    module, _, function = PROJECT["project"]["scripts"]["ainn"].partition(":")
    assert (module, function) == ("ainn_lib.cli", "main")
    result = subprocess.run([sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0 and "encode" in result.stdout, result.stderr


def test_no_file_names_a_package_server_or_a_path_of_a_machine():
    files = tracked_files()
    assert ROOT / "pyproject.toml" in files and Path(__file__).resolve() in files
    found = []
    for file in files:
        data = file.read_bytes()
        if b"\0" in data:
            continue  # an image or weights
        for number, line in enumerate(data.decode("utf-8", errors="replace").splitlines(), 1):
            for pattern in (PACKAGE_SERVER, PATH_OF_A_MACHINE):
                if match := pattern.search(line):
                    found.append(f"{file.relative_to(ROOT)}:{number}: {match.group()}")
    assert not found


def test_the_patterns_find_what_they_are_for():
    for parts in (("https://pypi", ".org/simple"), ("files.python", "hosted.org"), ("download.py", "torch.org/whl/cpu"),
                  ("https://mirror.example/x/sim", "ple/")):
        assert PACKAGE_SERVER.search("".join(parts)), parts
    for parts in (("see /ho", "me/me/x"), ('"/wo', 'rk/x"'), ("/Use", "rs/me"), ("C:\\Us", "ers\\me")):
        assert PATH_OF_A_MACHINE.search("".join(parts)), parts
    for harmless in ("https://arxiv.org/abs/2408.17073", "data/work/x", "#!/usr/bin/env bash", "https://pytorch.org"):
        assert not PACKAGE_SERVER.search(harmless) and not PATH_OF_A_MACHINE.search(harmless)


# -- torchvision beside a CPU-only torch ------------------------------------------------------------------------------


LOAD_SHIM = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("shim", sys.argv[1])
shim = importlib.util.module_from_spec(spec)
spec.loader.exec_module(shim)
assert "torchvision" in sys.modules
import torch, torchvision
print(shim.ensure_torchvision(), hasattr(torch.ops.torchvision, "nms"), len(shim._kept_alive), torchvision.__file__)
"""


def with_torchvision(tmp_path: Path, source: str) -> subprocess.CompletedProcess:
    """Load the shim by itself, in a process of its own, where ``torchvision`` is a package of that source."""
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "part.py").write_text("loaded = True\n")
    (package / "__init__.py").write_text(source)
    return subprocess.run([sys.executable, "-c", LOAD_SHIM, str(ROOT / "ainn_lib" / "_torchvision.py")], cwd=tmp_path,
                          env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)


def test_a_fresh_process_imports_ainn_lib_and_compressai():
    code = "import ainn_lib, sys; print('compressai' in sys.modules, 'torchvision' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.stdout.split() == ["True", "True"], result.stderr


def test_shim_leaves_a_torchvision_that_loads_alone(tmp_path):
    result = with_torchvision(tmp_path, "")
    assert result.stdout.split() == ["False", "False", "0", str(tmp_path / "torchvision" / "__init__.py")], result.stderr


def test_shim_declares_the_operators_that_are_missing(tmp_path):
    """The fake fails as the real one does, half-imported, until the operators are there."""
    result = with_torchvision(tmp_path, (
        "import sys, torch, torchvision.part\n"
        "sys.tries = getattr(sys, 'tries', 0) + 1\n"
        "sys.modules['torchvision.part'].seen = getattr(sys.modules['torchvision.part'], 'seen', 0) + 1\n"
        "if not (hasattr(torch.ops.torchvision, 'nms') and hasattr(torch.ops.torchvision, 'qnms')):\n"
        "    raise RuntimeError('operator torchvision::nms does not exist')\n"
        "assert sys.tries == 2\n"
        "assert sys.modules['torchvision.part'].seen == 1, 'a half-imported part was handed out again'\n"))
    assert result.stdout.split()[:3] == ["False", "True", "1"], result.stderr  # the second call finds nothing to do


@pytest.mark.parametrize("error", ["RuntimeError('another trouble')", "ImportError('torchvision::nms is not importable')"])
def test_shim_passes_other_errors_on(tmp_path, error):
    """The fake fails once only: a shim that tried again would hide the error."""
    source = f"import sys\nif not hasattr(sys, 'tried'):\n    sys.tried = True\n    raise {error}\n"
    result = with_torchvision(tmp_path, source)
    assert result.returncode == 1 and not result.stdout
    assert result.stderr.splitlines()[-1] == error.replace("('", ": ").replace("')", "")
