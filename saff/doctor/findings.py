"""What checks find, and how it is said: one line for each finding, without any secret."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from saff.errors import SaffError

LONGEST_MESSAGE = 500  # characters of an error that is not ours
SECRET = re.compile(r"key|token|secret|password|credential", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check has found.

    Attributes
    ----------
    check : str
        Its name.
    ok : bool
        Whether all is well.
    message : str
        What was found.
    remedy : str
        What to do, where something is wrong and ``message`` does not say it.
    """

    check: str
    ok: bool
    message: str
    remedy: str = ""

    def __str__(self) -> str:
        """One line for a person, without any password."""
        text = "; ".join(filter(None, (f"{self.check}: {self.message}", self.remedy)))
        return f"{'ok' if self.ok else 'WRONG':5} {redact_secrets(' '.join(text.split()))}"


class Fault(NamedTuple):
    """What is wrong with a node, and what to do."""

    message: str
    remedy: str


@dataclass(frozen=True, slots=True)
class Node:
    """A node of the cluster as Ray knows it; ``store`` is its object store in bytes."""

    id: str
    address: str
    cpus: float
    gpus: float
    store: int
    head: bool = False

    def __str__(self) -> str:
        """Address and, as a machine may hold several nodes, the start of its id."""
        return f"{self.address} ({self.id[:6]}{', head' if self.head else ''})"


@dataclass(frozen=True, slots=True)
class Answer:
    """The value that a node returned, or in ``error`` why it returned none."""

    node: Node
    value: Any = None
    error: str = ""


def describe_error(error: BaseException) -> str:
    """Say what was raised: the message alone where it was written for people."""
    words = redact_secrets(" ".join(str(error).split()))
    words = words if len(words) <= LONGEST_MESSAGE else words[:LONGEST_MESSAGE] + "..."
    return words if isinstance(error, SaffError) else f"{type(error).__name__}: {words}"


def redact_secrets(text: str) -> str:
    """Take out passwords of URIs and what the environment holds under names of secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8 and not os.path.exists(value):
            text = text.replace(value, "***")
    return re.sub(r"://[^/\s]*@", "://***@", text)


def format_bytes(size: float) -> str:
    """Give a size in GiB or MiB."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def format_count(things: Sequence[Any] | float, name: str) -> str:
    """Count things of one kind: ``2 nodes``, ``1 node``."""
    number = things if isinstance(things, (int, float)) else len(things)
    return f"{number:g} {name}{'' if number == 1 else 's'}"


def format_counts(kinds: Sequence[str]) -> str:
    """Count things of several kinds, given by name: ``1 CPU and 2 GPUs``."""
    return " and ".join(format_count(kinds.count(kind), kind) for kind in dict.fromkeys(kinds))
