"""Where a number comes from: every JSON file of ours says commit, versions and machine."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

from .paths import ROOT

PACKAGES = ("torch", "compressai", "constriction", "numpy", "Pillow", "imagecodecs",
            "imageio-ffmpeg")


def provenance() -> dict:
    """Commit, date, package versions (None: not installed) and hardware.

    The commit ends with ``+`` when tracked files differ from it, and is None outside a checkout.
    """
    versions = {name: _version(name) for name in PACKAGES}
    versions["python"] = platform.python_version()
    return {
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
        "versions": versions,
        "hardware": {
            "processor": _processor(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "instructions": torch.backends.cpu.get_cpu_capability(),
            "system": platform.system(),
        },
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    try:
        if not ROOT.samefile(_git("rev-parse", "--show-toplevel")):
            return None  # installed inside somebody else's repository
        changed = _git("status", "--porcelain", "--untracked-files=no")
        return _git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(*words: str) -> str:
    done = subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.strip()
