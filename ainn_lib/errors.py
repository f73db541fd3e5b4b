"""The one exception family of the package."""


class AINNError(Exception):
    """Something that the user can put right: bad input, a damaged file, a setting that does not fit.

    Its message is one clear sentence; the command line prints it without a traceback.
    """
