"""Rewrites requirements.lock from the packages of the environment that runs it.

Start it in a fresh environment into which the project was installed by its ranges:
``pip install -e ".[test]"``. It follows the project's dependencies through the metadata of the
installed packages, once for each platform and Python version that the lock serves, and writes
every package with its installed version. A package that only some of them need gets a marker. One
that is not installed here (another platform's) keeps the pin of the old lock, or that of the
command line: ``python tools/lock.py colorama==0.4.6``.
"""

import itertools
import sys
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent
PYTHONS = ("3.11", "3.12")
PLATFORMS = {
    "linux": {"sys_platform": "linux", "platform_system": "Linux", "os_name": "posix"},
    "darwin": {"sys_platform": "darwin", "platform_system": "Darwin", "os_name": "posix"},
    "win32": {"sys_platform": "win32", "platform_system": "Windows", "os_name": "nt"},
}
EVERYWHERE = frozenset(itertools.product(PYTHONS, PLATFORMS))
NOT_OURS_TO_PIN = ("nvidia-", "cuda-", "triton")  # torch's metadata asks for what its build needs
FOR_EARLY_311 = {"soupsieve": "2.10"}  # later ones refuse Python 3.11.0 to 3.11.4 (Debian 12)
HEADER = """\
# Every package that the project needs, directly or not, for Python 3.11 and 3.12 on Linux, macOS
# and Windows. Written by tools/lock.py from the ranges in pyproject.toml (CONTRIBUTING.md says
# how). Do not edit by hand. The CUDA packages and Triton are left out: torch's own metadata asks
# for them, and only some builds of it do. setuptools and wheel stand here because torch,
# CompressAI and JupyterLab need them when they run.
"""


def closure(roots: list[Requirement], python: str, platform: str) -> set[str]:
    """Names of all packages that ``roots`` need on one platform, by the installed metadata."""
    environment = {
        "python_version": python,
        "python_full_version": f"{python}.9",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        **PLATFORMS[platform],
    }
    found, seen, waiting = set(), set(), [(r, "") for r in roots]
    while waiting:
        requirement, extra = waiting.pop()
        if requirement.marker and not requirement.marker.evaluate({**environment, "extra": extra}):
            continue
        name = canonicalize_name(requirement.name)
        if name.startswith(NOT_OURS_TO_PIN):
            continue
        found.add(name)
        for wanted in ("", *requirement.extras):
            if (name, wanted) not in seen:
                seen.add((name, wanted))
                waiting += [(Requirement(text), wanted) for text in requires(name)]
    return found


def requires(name: str) -> list[str]:
    """What an installed package says it needs; nothing for one that is not installed here."""
    try:
        return metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return []


def marker(where: set[tuple[str, str]]) -> str:
    """The shortest environment marker that holds in these (Python, platform) and in no others."""
    pythons = {
        "": set(PYTHONS),
        'python_version < "3.12"': {"3.11"},
        'python_version >= "3.12"': {"3.12"},
    }
    platforms = {"": set(PLATFORMS)}
    for name in PLATFORMS:
        platforms[f'sys_platform == "{name}"'] = {name}
        platforms[f'sys_platform != "{name}"'] = set(PLATFORMS) - {name}
    for python_clause, some_pythons in pythons.items():
        for platform_clause, some_platforms in platforms.items():
            if where == set(itertools.product(some_pythons, some_platforms)):
                return " and ".join(clause for clause in (python_clause, platform_clause) if clause)
    raise SystemExit(f"no simple marker says {sorted(where)}")


def pins(lines: list[str]) -> dict[str, str]:
    """Name -> version of lines ``name==version``; comments and markers are passed over."""
    found = {}
    for line in lines:
        name, _, version = line.partition(";")[0].partition("#")[0].strip().partition("==")
        if version:
            found[canonicalize_name(name)] = version
    return found


def main(named: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    texts = project["dependencies"] + project["optional-dependencies"]["test"]
    roots = [Requirement(text) for text in texts]
    lock = ROOT / "requirements.lock"
    versions = pins(lock.read_text().splitlines()) if lock.exists() else {}
    for package in metadata.distributions():
        versions[canonicalize_name(package.name)] = Version(package.version).public
    versions |= pins(named)
    needed = {where: closure(roots, *where) for where in EVERYWHERE}
    lines = []
    for name in sorted(set.union(*needed.values())):
        if name not in versions:
            raise SystemExit(f"{name} is not installed and has no pin: name one, {name}==VERSION")
        clause = marker({place for place, names in needed.items() if name in names})
        if name in FOR_EARLY_311:
            lines.append(f'{name}=={FOR_EARLY_311[name]} ; python_full_version < "3.11.5"')
            clause = 'python_full_version >= "3.11.5"'
        lines.append(f"{name}=={versions[name]}" + (f" ; {clause}" if clause else ""))
    lock.write_text(HEADER + "\n".join(lines) + "\n")
    print(f"{lock.name}: {len(lines)} packages")


if __name__ == "__main__":
    main(sys.argv[1:])
