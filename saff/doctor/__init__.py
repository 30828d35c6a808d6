"""``saff doctor``: what a run needs, tried on the driver and on every node.

A check gathers facts, on the driver or by a task on every node, and compares them with what a run
needs; the comparisons are functions of the facts alone.  An error that a check raises is a finding
as well.
"""

import os
from collections.abc import Collection, Iterator
from functools import partial
from pathlib import Path

from saff.config import Config
from saff.doctor.cluster import (
    START_TIMEOUT,
    alive_nodes,
    check_cluster,
    check_start,
    check_workers,
    find_scaling_limit,
    plan_start,
)
from saff.doctor.driver import check_run, check_space, check_storage, check_upload
from saff.doctor.findings import Finding, format_count
from saff.doctor.nodes import (
    WEIGHTS_TIMEOUT,
    check_authentication,
    check_clocks,
    check_cpus,
    check_gpus,
    check_models,
    check_network,
    check_shared_storage,
    check_store,
    check_threads,
    find_version_fault,
    inspect_versions,
)
from saff.doctor.running import (
    CHECK_TIMEOUT,
    NODE_TIMEOUT,
    call_on_nodes,
    report_nodes,
    run_check,
    run_check_with_timeout,
)


def examine(
    output: str | None,
    *,
    address: str | None,
    config: Config,
    network: str | None,
    workers: int | None = None,
    gpus: int | None = None,
    allow_code: Collection[str] = (),
    start_nodes: bool = False,
) -> Iterator[Finding]:
    """Check everything that a run needs, and give each finding as soon as it is known.

    Parameters
    ----------
    output : str, optional
        Folder or prefix that runs write to.
    address : str, optional
        ``HOST:PORT`` of a cluster; otherwise that of ``RAY_ADDRESS``, or a Ray that is started on
        this machine.
    config : Config
        Whose models are loaded on every node.
    network : str, optional
        Run whose trained network is loaded on every node.
    workers, gpus : int, optional
        Numbers of a stage to come; compared with the cluster if any is given.
    allow_code : collection of str
        Modules that may be imported where ``network`` names its network as
        ``package.module:factory``.
    start_nodes : bool
        On a cluster that grows, ask for a CPU and for ``gpus`` GPUs, so that such nodes start and
        are checked too.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address or os.environ.get("RAY_API_SERVER_ADDRESS"):  # jobs may be submitted to it
        yield from run_check_with_timeout("upload", partial(check_upload, Path.cwd()))
    if output:
        storage = run_check_with_timeout("storage", partial(check_storage, output))
        yield from storage
        if all(finding.ok for finding in storage):
            yield from run_check_with_timeout("space", partial(check_space, output))
            yield from run_check_with_timeout("run", partial(check_run, output))
        else:
            output = None  # the checks that read it would find the same fault again
    # In this thread: Ray ends with the thread that started it.
    joined = run_check("cluster", partial(check_cluster, address))
    yield from joined
    if not all(finding.ok for finding in joined):
        return
    limit = find_scaling_limit(alive_nodes())
    if workers is not None or gpus is not None:
        room = partial(check_workers, address, workers, gpus, limit)
        yield from run_check_with_timeout("workers", room)
    if start_nodes:
        wanted, plan = plan_start(alive_nodes(), gpus or 0, limit)
        yield plan  # before the wait
        if wanted:
            seconds = START_TIMEOUT + CHECK_TIMEOUT
            yield from run_check_with_timeout("start", partial(check_start, wanted), seconds)
    answers = call_on_nodes(alive_nodes(), inspect_versions)
    yield from report_nodes(
        "versions",
        answers,
        partial(find_version_fault, inspect_versions()),
        lambda fine: f"{fine[0].value} on the driver and {format_count(fine, 'node')}",
    )
    nodes = [answer.node for answer in answers if not answer.error]  # the others are reported
    for name, check in (
        ("authentication", check_authentication),
        ("clocks", check_clocks),
        ("CPUs", partial(check_cpus, limit=limit)),
        ("GPUs", check_gpus),
        ("threads", check_threads),
        (
            "models",
            partial(check_models, config=config, network=network, allow_code=allow_code),
        ),
        ("storage of nodes", partial(check_shared_storage, output=output)),
        ("object store", check_store),
    ):
        yield from run_check_with_timeout(name, partial(check, nodes))
    made = partial(check_network, nodes, config.training)
    yield from run_check_with_timeout("training network", made, WEIGHTS_TIMEOUT + NODE_TIMEOUT)
