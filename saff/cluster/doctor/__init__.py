"""``saff doctor``: what a run needs, tried out where it will be needed.

A check gathers facts, on the driver or by a task on every node, and judges them; the judgements are
functions of the facts alone.  Whatever a check raises is a finding as well.
"""

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from saff.cluster.doctor.cluster import (
    TO_START,
    alive_nodes,
    check_start,
    check_workers,
    find_growth,
    join,
    to_start,
)
from saff.cluster.doctor.driver import check_run, check_space, check_storage, check_upload
from saff.cluster.doctor.findings import (
    LONGEST,
    TO_ANSWER,
    Finding,
    ask,
    caught,
    count,
    gather,
    tried,
)
from saff.cluster.doctor.nodes import (
    TO_FETCH,
    check_authentication,
    check_clocks,
    check_cpus,
    check_gpus,
    check_models,
    check_network,
    check_shared,
    check_store,
    check_threads,
    judge_versions,
    look_at_versions,
)
from saff.config import Config


def examine(
    output: str | None,
    *,
    address: str | None,
    config: Config,
    network: str | None,
    workers: int | None = None,
    gpus: int | None = None,
    start_nodes: bool = False,
) -> Iterator[Finding]:
    """Check everything that a run needs, telling each finding as it comes.

    Parameters
    ----------
    output : str, optional
        Folder or prefix that runs write to.
    address : str, optional
        ``HOST:PORT`` of a cluster; otherwise that of ``RAY_ADDRESS``, or a Ray started here.
    config : Config
        Whose models are loaded on every node.
    network : str, optional
        Run whose trained network is loaded on every node.
    workers, gpus : int, optional
        As a stage is to be asked for; compared with the cluster if any is named.
    start_nodes : bool
        On a cluster that grows, ask for a CPU and for ``gpus`` GPUs, so that there are such nodes.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    if address or os.environ.get("RAY_API_SERVER_ADDRESS"):  # jobs may be submitted from here
        yield from tried("upload", partial(check_upload, Path.cwd()))
    if output:
        storage = tried("storage", partial(check_storage, output))
        yield from storage
        if all(finding.ok for finding in storage):
            yield from tried("space", partial(check_space, output))
            yield from tried("run", partial(check_run, output))
        else:
            output = None  # what it holds, and how nodes reach it, would be the same again
    joined = caught(
        "cluster", partial(join, address)
    )  # here: Ray dies with the thread it is born in
    yield from joined
    if not all(finding.ok for finding in joined):
        return
    growth = find_growth(alive_nodes())
    if workers is not None or gpus is not None:
        yield from tried("workers", partial(check_workers, address, workers, gpus, growth))
    if start_nodes:
        wanted, told = to_start(alive_nodes(), gpus or 0, growth)
        yield told  # before the wait
        if wanted:
            yield from tried("start", partial(check_start, wanted), TO_START + LONGEST)
    answers = ask(alive_nodes(), look_at_versions)
    yield from gather(
        "versions",
        answers,
        partial(judge_versions, look_at_versions()),
        lambda fine: f"{fine[0].seen} on the driver and {count(fine, 'node')}",
    )
    nodes = [answer.node for answer in answers if not answer.error]  # the others are told
    for check, of_nodes in (
        ("authentication", check_authentication),
        ("clocks", check_clocks),
        ("CPUs", partial(check_cpus, growth=growth)),
        ("GPUs", check_gpus),
        ("threads", check_threads),
        ("models", partial(check_models, config=config, network=network)),
        ("storage of nodes", partial(check_shared, output=output)),
        ("object store", check_store),
    ):
        yield from tried(check, partial(of_nodes, nodes))
    made = partial(check_network, nodes, config.training)
    yield from tried("training network", made, TO_FETCH + TO_ANSWER)
