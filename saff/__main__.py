"""The command ``saff``, which is also ``python -m saff``."""

import sys


def main() -> None:
    """Run the command line; Ctrl-C is one line, also while it is still being loaded."""
    said = "interrupted before anything was done"
    try:
        from saff.cli import main as command_line

        said = "interrupted; what is done stays"
        command_line()
    except KeyboardInterrupt:  # typer catches it while a command runs
        from saff.log import ERROR, say

        say(f"saff: {said}", "interrupted", ERROR)
        sys.exit(130)


if __name__ == "__main__":
    main()
