"""Encode and decode one embedded photo, with a given major version of numpy.

python tools/smoke.py 2    fails unless numpy 2 was imported and the photo comes back
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from ainn_lib import cli
from ainn_lib.measure.datasets import photo
from ainn_lib.measure.metrics import psnr


def main(major: str) -> None:
    if np.__version__.split(".")[0] != major:
        sys.exit(f"numpy {np.__version__} was imported, not numpy {major}")
    original = photo("chelsea")
    with tempfile.TemporaryDirectory() as scratch:
        before, file, after = (Path(scratch, name) for name in ("a.png", "a.ainn", "b.png"))
        original.save(before)
        for command in (["encode", before, file], ["info", file], ["decode", file, after]):
            if status := cli.main([str(word) for word in command]):
                sys.exit(status)
        quality = psnr(original, Image.open(after))
    print(f"numpy {np.__version__}: {quality:.2f} dB")
    if not quality > 28:
        sys.exit("the photo did not come back")


if __name__ == "__main__":
    main(sys.argv[1])
