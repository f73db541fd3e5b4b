"""The one exception family of the package, and what a broken image makes Pillow raise."""

import struct

from PIL import Image

UNREADABLE = (OSError, ValueError, SyntaxError, struct.error, Image.DecompressionBombError)


class AINNError(Exception):
    """Something that the user can put right: bad input, a damaged file, a wrong setting.

    Its message is one clear sentence. The command line prints it without a traceback.
    """
