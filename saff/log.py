"""What a command says beside its results: lines for a person, or JSON objects for machines.

``SAFF_LOG_FORMAT=json`` in the environment of a command or a job chooses the objects.  Each has
``time``, ``level``, ``command``, ``job`` (one process), ``output`` (the run), ``event`` and
``message``, which is the line that a person would see; some have counts.
"""

import json
import logging
import os
import sys
import uuid
from datetime import datetime, timezone
from typing import Any

from saff.errors import SettingsError

VARIABLE = "SAFF_LOG_FORMAT"
FORMATS = ("text", "json")
JOB = uuid.uuid4().hex[:12]
LOG = logging.getLogger("saff")
ERROR = logging.ERROR


def structured() -> bool:
    """Whether lines are JSON objects."""
    return os.environ.get(VARIABLE) == "json"


class JsonFormatter(logging.Formatter):
    """One JSON object for each record.

    Parameters
    ----------
    **same : str
        What every object says, such as the command and the output.
    """

    def __init__(self, **same: str) -> None:
        super().__init__()
        self.same = same

    def format(self, record: logging.LogRecord) -> str:
        """Give the line of a record."""
        when = datetime.fromtimestamp(record.created, timezone.utc)
        entry: dict[str, Any] = {
            "time": when.isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            **self.same,
            "event": getattr(record, "event", "message"),
            "message": record.getMessage(),
            **getattr(record, "figures", {}),
        }
        if not record.name.startswith("saff"):
            entry["logger"] = record.name
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


_formatter = JsonFormatter(job=JOB)


def begin(command: str, output: str | None) -> None:
    """Let all that this process logs be JSON objects of a command, where they are wanted.

    Raises
    ------
    SettingsError
        If the environment names a format that does not exist.
    """
    global _formatter
    named = os.environ.get(VARIABLE) or "text"
    if named not in FORMATS:
        raise SettingsError(f"{VARIABLE} is {named!r}, expected one of: {', '.join(FORMATS)}")
    if not structured():
        return
    about = {"output": output} if output else {}
    _formatter = JsonFormatter(command=command, job=JOB, **about)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_formatter)
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.captureWarnings(True)
    LOG.setLevel(logging.INFO)


def adopt(name: str) -> None:
    """Let a library's logger, which has handlers of its own, warn as everything else does."""
    logger = logging.getLogger(name)
    logger.handlers.clear()
    logger.propagate = True
    logger.setLevel(logging.WARNING)


def say(message: str, event: str = "note", level: int = logging.INFO, /, **figures: Any) -> None:
    """Print a line to standard error, or a JSON object with the figures that the line holds."""
    print(line_of(message, event, level, **figures), file=sys.stderr, flush=True)


def line_of(message: str, event: str, level: int = logging.INFO, /, **figures: Any) -> str:
    """Give the line that :func:`say` prints."""
    if not structured():
        return message
    record = LOG.makeRecord("saff", level, __file__, 0, message, (), None)
    record.event, record.figures = event, figures
    return _formatter.format(record)
