"""``python -m ainn_lib`` is the command ``ainn``."""

import sys


def start() -> int:
    """The command, from its first import on: Ctrl-C during that is no traceback either."""
    try:
        from .cli import main

        return main()
    except KeyboardInterrupt:
        print("ainn: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(start())
