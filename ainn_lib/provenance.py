"""Where a number comes from: every JSON of ours says commit, versions and machine."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent  #: of the checkout, or where the package is installed
PACKAGES = ("torch", "compressai", "constriction", "numpy", "Pillow", "imagecodecs", "imageio-ffmpeg")


def provenance() -> dict:
    """Commit (with ``+`` when files differ from it; null outside a checkout), date, package versions and hardware."""
    return {
        "commit": _commit(), "date": datetime.date.today().isoformat(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES} | {"python": platform.python_version()},
        "hardware": {"processor": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(),
                     "instructions": torch.backends.cpu.get_cpu_capability(), "system": platform.system()},
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _commit() -> str | None:
    def git(*words: str) -> str:
        return subprocess.run(("git", *words), cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if not ROOT.samefile(git("rev-parse", "--show-toplevel")):  # installed inside somebody else's repository
            return None
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
