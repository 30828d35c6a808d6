"""The command line: thin over the functions that the jobs call."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from saff import __version__
from saff.cli.commands import Command, Commands
from saff.errors import SaffError, printable
from saff.log import LOG, say, structured
from saff.retries import what_next

INTERRUPTED = 130  # exit code of typer after Ctrl-C

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="""Foreground masks from unlabelled images, without any annotation.

    Commands for a start:

    [bold]saff segment photo.jpg -o mask.png[/]      writes the mask of one picture

    [bold]saff label photos/ --output out/[/]        labels a folder, and resumes if it is run again

    [bold]saff report out/[/]                        writes a page of the results

    [bold]saff export out/ --to masks/[/]            writes PNG files, or those of other tools
    """,
)


@app.callback(invoke_without_command=True)
def _version(
    version: Annotated[bool, typer.Option("--version", help="Print the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Run the command line; an error that the user can correct is one line and exit code 2."""
    explain(app)


def run_alone(command: Callable[..., None]) -> None:
    """Run one command as a program of its own: a job."""
    alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    alone.command(cls=Command)(command)
    explain(alone)


def explain(program: Callable[[], None]) -> None:
    """Call a program and turn errors that the user can correct into one line and exit code 2.

    These are a :class:`SaffError`, and an OSError of a storage or a disk that failed later on.
    Ctrl-C is exit code 130.
    """
    use_utf8()
    try:
        program()
    except SystemExit as stop:
        if stop.code == INTERRUPTED:
            say("saff: interrupted; what is done stays", "interrupted", logging.ERROR)
            silence()
        raise
    except SaffError as error:
        line, kind = str(error), type(error).__name__
    except OSError as error:
        kind = type(error).__name__
        line = f"{kind}: {error}; {what_next(error)}"
    except Exception:  # a defect, of which a log of objects holds the traceback as well
        if not structured():
            raise
        LOG.critical("saff: ended by a defect", exc_info=True, extra={"event": "error"})
        silence()
        sys.exit(1)
    else:
        return
    message = f"saff: {printable(' '.join(line.split()))}"
    say(message, "error", logging.ERROR, kind=kind)
    silence()
    sys.exit(2)


def silence() -> None:
    """End all logging: threads of Ray that still wait for tasks complain of its end in pages."""
    logging.disable()


def use_utf8() -> None:
    """Begin again in Python's UTF-8 mode where the locale has another encoding.

    File names are text in Parquet, and a locale that lacks their letters cannot name their files.
    The processes that Ray starts here inherit the mode.
    """
    if sys.getfilesystemencoding().lower().replace("-", "") == "utf8":
        return
    environment = os.environ | {"PYTHONUTF8": "1"}
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
