"""The one exception family of the package, and what a broken image makes Pillow raise."""

import struct

from PIL import Image

UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)


class AINNError(Exception):
    """Something that the user can put right: bad input, a damaged file, a setting that does not fit.

    Its message is one clear sentence; the command line prints it without a traceback.
    """
