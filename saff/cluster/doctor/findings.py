"""How checks run, on the driver and on every node, and what they give: findings, a line each."""

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saff.errors import SaffError
from saff.retries import BRIEF, retry_limit

TO_ANSWER = 60.0  # seconds for every node to answer one question; a first one starts processes
LONGEST = 120.0  # seconds for a whole check; starting Ray is one
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
    told : str
        What was found.
    remedy : str
        What to do, where something is wrong and ``told`` does not say it.
    """

    check: str
    ok: bool
    told: str
    remedy: str = ""

    def __str__(self) -> str:
        """One line for a person, without any password."""
        text = "; ".join(filter(None, (f"{self.check}: {self.told}", self.remedy)))
        return f"{'ok' if self.ok else 'WRONG':5} {hide(' '.join(text.split()))}"


class Fault(NamedTuple):
    """What is wrong with a node, and what to do."""

    told: str
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
    """What a node has seen, or in ``error`` why it did not answer."""

    node: Node
    seen: Any = None
    error: str = ""


# How checks run


def caught(check: str, work: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; one that raises is a finding."""
    found = []
    try:
        with retry_limit(BRIEF):
            for finding in work():
                found.append(finding)
    except (Exception, SystemExit) as error:  # a thread would swallow the second
        found.append(Finding(check, False, reason(error)))
    return found


def tried(
    check: str, work: Callable[[], Iterable[Finding]], seconds: float = LONGEST
) -> list[Finding]:
    """Run a check beside this thread; one that takes too long is a finding, too."""
    ended: list[list[Finding]] = []
    thread = threading.Thread(target=lambda: ended.append(caught(check, work)), daemon=True)
    thread.start()
    thread.join(seconds)
    if ended:
        return ended[0]
    remedy = "try to reach it by hand from this machine"
    return [Finding(check, False, f"no answer within {seconds:g} s", remedy)]


def reason(error: BaseException) -> str:
    """Say what was raised: the words alone where they are meant for people."""
    words = hide(" ".join(str(error).split()))
    words = words if len(words) <= 500 else words[:500] + "..."
    return words if isinstance(error, SaffError) else f"{type(error).__name__}: {words}"


def hide(text: str) -> str:
    """Take out passwords of URIs and what the environment holds under names of secrets."""
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= 8 and not os.path.exists(value):
            text = text.replace(value, "***")
    return re.sub(r"://[^/\s]*@", "://***@", text)


def ask(
    nodes: Sequence[Node],
    question: Callable[..., Any],
    *arguments: Any,
    seconds: float = TO_ANSWER,
    late: str = "",
) -> list[Answer]:
    """Call a function once on every node, whatever else is running there.

    ``late`` says what to do about one that takes longer than ``seconds``.
    """
    tasks = [
        ray.remote(_answer)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        .remote(question, arguments)
        for node in nodes
    ]
    ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
    answers = []
    for node, task in zip(nodes, tasks, strict=True):
        if task not in ready:
            ray.cancel(task, force=True)
            error = "; ".join(filter(None, (f"no answer within {seconds:g} s", late)))
            answers.append(Answer(node, error=error))
            continue
        try:
            answers.append(Answer(node, *ray.get(task)))
        except Exception as error:  # it died, or does not know this module
            answers.append(Answer(node, error=reason(getattr(error, "cause", None) or error)))
    return answers


def _answer(question: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str]:
    try:
        with retry_limit(BRIEF):
            return question(*arguments), ""
    except Exception as error:
        return None, reason(error)  # here, where the node's own secrets are known


def gather(
    check: str,
    answers: Sequence[Answer],
    judge: Callable[[Node, Any], Fault | None],
    well: Callable[[list[Answer]], str],
) -> Iterator[Finding]:
    """Tell each node with which something is wrong, and the others in one line."""
    fine = []
    for answer in answers:
        fault = Fault(answer.error, "") if answer.error else judge(answer.node, answer.seen)
        if fault is None:
            fine.append(answer)
        else:
            yield Finding(check, False, f"node {answer.node}: {fault.told}", fault.remedy)
    if fine:
        yield Finding(check, True, well(fine))


def no_fault(node: Node, seen: Any) -> None:
    """Judge what is wrong only when it raises."""


# Words


def show(size: float) -> str:
    """Bytes for a person."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def amounts(kinds: Sequence[str]) -> str:
    """``1 CPU and 2 GPUs``, each kind counted."""
    return " and ".join(count(kinds.count(kind), kind) for kind in dict.fromkeys(kinds))


def count(things: Sequence[Any] | float, name: str) -> str:
    """``2 nodes``, ``1 node``."""
    number = things if isinstance(things, (int, float)) else len(things)
    return f"{number:g} {name}{'' if number == 1 else 's'}"
