"""`python -m mgsr`, and what the program `mgsr` calls."""

import sys


def main() -> int:
    """The command line; see `mgsr.cli.main`. Ctrl-C is answered from the first moment on."""
    try:
        from mgsr.cli.main import main as command_line

        return command_line()
    except KeyboardInterrupt:
        print("mgsr: stopped", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
