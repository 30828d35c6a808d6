"""The command ``saff``, which is also ``python -m saff``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is still being loaded is one line, too."""
    try:
        from saff.cli import INTERRUPTED, main as command_line
    except KeyboardInterrupt:
        print("saff: interrupted before anything was done", file=sys.stderr)
        sys.exit(130)  # as INTERRUPTED, which may not be there yet
    try:
        command_line()
    except KeyboardInterrupt:  # before or after typer, which catches it
        print("saff: interrupted; what is done stays", file=sys.stderr)
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
