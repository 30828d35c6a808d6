"""How checks run, on the driver and on every node: what they raise is a finding as well."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from saff.doctor.findings import Answer, Fault, Finding, Node, describe_error
from saff.retries import BRIEF, retry_limit

NODE_TIMEOUT = 60.0  # seconds for every node to answer one call; the first one starts processes
CHECK_TIMEOUT = 120.0  # seconds for a whole check; starting Ray is one


def run_check(check: str, work: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """Run a check; an error that it raises is its last finding."""
    found = []
    try:
        with retry_limit(BRIEF):
            for finding in work():
                found.append(finding)
    except (Exception, SystemExit) as error:  # a thread would swallow the second
        found.append(Finding(check, False, describe_error(error)))
    return found


def run_check_with_timeout(
    check: str, work: Callable[[], Iterable[Finding]], seconds: float = CHECK_TIMEOUT
) -> list[Finding]:
    """Run a check in a thread of its own; one that takes too long is a finding, too."""
    ended: list[list[Finding]] = []
    thread = threading.Thread(target=lambda: ended.append(run_check(check, work)), daemon=True)
    thread.start()
    thread.join(seconds)
    if ended:
        return ended[0]
    remedy = "try to reach it by hand from this machine"
    return [Finding(check, False, f"no answer within {seconds:g} s", remedy)]


def call_on_nodes(
    nodes: Sequence[Node],
    function: Callable[..., Any],
    *arguments: Any,
    seconds: float = NODE_TIMEOUT,
    timeout_remedy: str = "",
) -> list[Answer]:
    """Call a function once on every node, whatever else is running on it.

    Parameters
    ----------
    nodes : sequence of Node
        Where to call it.
    function : callable
        What to call, by a task that takes no CPU.
    *arguments
        Its arguments.
    seconds : float
        After which a node counts as one that does not answer.
    timeout_remedy : str
        What to do about such a node.
    """
    tasks = [
        ray.remote(_call)
        .options(
            num_cpus=0,
            max_retries=0,
            scheduling_strategy=NodeAffinitySchedulingStrategy(node.id, soft=False),
        )
        .remote(function, arguments)
        for node in nodes
    ]
    ready, _ = ray.wait(tasks, num_returns=len(tasks), timeout=seconds)
    answers = []
    for node, task in zip(nodes, tasks, strict=True):
        if task not in ready:
            ray.cancel(task, force=True)
            error = "; ".join(filter(None, (f"no answer within {seconds:g} s", timeout_remedy)))
            answers.append(Answer(node, error=error))
            continue
        try:
            answers.append(Answer(node, *ray.get(task)))
        except Exception as error:  # its process died, or does not know this module
            cause = getattr(error, "cause", None) or error
            answers.append(Answer(node, error=describe_error(cause)))
    return answers


def _call(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, str]:
    try:
        with retry_limit(BRIEF):
            return function(*arguments), ""
    except Exception as error:
        return None, describe_error(error)  # on the node, whose own secrets are known to it


def report_nodes(
    check: str,
    answers: Sequence[Answer],
    find_fault: Callable[[Node, Any], Fault | None],
    summarise: Callable[[list[Answer]], str],
) -> Iterator[Finding]:
    """Give a finding for each node that has a fault, and one for all the others together."""
    fine = []
    for answer in answers:
        fault = Fault(answer.error, "") if answer.error else find_fault(answer.node, answer.value)
        if fault is None:
            fine.append(answer)
        else:
            yield Finding(check, False, f"node {answer.node}: {fault.message}", fault.remedy)
    if fine:
        yield Finding(check, True, summarise(fine))


def no_fault(node: Node, value: Any) -> None:
    """Find no fault in any value: only a node that raised an error has one."""
