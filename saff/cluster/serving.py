"""Masks over HTTP on Ray Serve: replicas, each with the network, behind one address.

``serve run saff.cluster.serving:app replicas=2`` or a Serve config file with that import path; on
one machine ``saff serve``.
"""

import contextlib
import logging
import os
import socket
from collections.abc import Iterator

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig, HTTPOptions

from saff.cluster.ray_internals import usable_cores
from saff.cluster.resources import start_ray
from saff.config import Config
from saff.config_files import read_config
from saff.errors import SettingsError
from saff.log import adopt, structured
from saff.serving import MEGABYTES, QUEUE, Segmenter, make_app
from saff.storage import Folder
from saff.trained import load_trained

NAME = "saff"  # of the application and its deployment
OTHER_REQUESTS = (
    16  # requests that a replica holds beside its queue: uploads, the page, health checks
)
MOST_QUEUED_REQUESTS = 64  # requests that wait for any replica to take them; more are refused
RETRY_AFTER = 2.0  # seconds, where they are


class Serving(BaseModel):
    """What :func:`app` can be given, on the command line of ``serve run`` or in a config file."""

    model_config = ConfigDict(extra="forbid")

    network: str | None = None
    """Output of the run whose network is used; None: the network that comes with saff."""
    config: str = "default"
    """Settings as ``--config`` names them."""
    replicas: int = Field(1, ge=1)
    """Processes, each with the network and one CPU."""
    queue: int = Field(QUEUE, ge=0)
    """Images that may wait for each replica."""
    megabytes: float = Field(MEGABYTES, gt=0)
    """Largest body of a request, in units of 1,000,000 bytes."""
    allow_code: list[str] = []
    """Modules that the run may name as its network's."""


@serve.ingress()
class Replica:
    """The app in one process.

    Parameters
    ----------
    serving : Serving
        What it is given; ``config`` has been read.
    config : Config
        Its settings.
    """

    def __init__(self, serving: Serving, config: Config) -> None:
        self.serving = serving
        trained = load_trained(network_run(serving), serving.allow_code)
        self.segment = Segmenter(trained.network, config)

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Make the app; the replica is ready when this returns."""
        limits = self.serving
        return make_app(self.segment, queue=limits.queue, megabytes=limits.megabytes)


def app(serving: Serving) -> Application:
    """Build the application that Ray Serve runs.

    Raises
    ------
    SettingsError
        If a setting cannot work.
    """
    deployment = serve.deployment(
        name=NAME,
        num_replicas=serving.replicas,
        ray_actor_options={"num_cpus": 1},
        max_ongoing_requests=1 + serving.queue + OTHER_REQUESTS,
        max_queued_requests=MOST_QUEUED_REQUESTS,
        backpressure_config=BackpressureConfig(retry_after_s=RETRY_AFTER),
        graceful_shutdown_wait_loop_s=0.2,  # how often it looks whether all is answered
    )(Replica)
    return deployment.bind(serving, read_config(serving.config))


@contextlib.contextmanager
def served(serving: Serving, host: str, port: int) -> Iterator[str]:
    """Serve from this machine, or from the cluster that ``RAY_ADDRESS`` names, while a block runs.

    Parameters
    ----------
    serving : Serving
        What is served.
    host, port : str, int
        Where; on a cluster, on each node that has a replica.

    Yields
    ------
    address : str
        Of the page; every replica has loaded its network.

    Raises
    ------
    SettingsError
        If there is no trained network, a setting cannot work, the port is taken, there are fewer
        CPUs than replicas, or the cluster runs Ray Serve already.
    """
    application = app(serving)
    load_trained(network_run(serving), serving.allow_code)  # a bad one is refused here, in a line
    if not os.environ.get("RAY_ADDRESS"):
        check_machine(serving.replicas, host, port)
    start_ray()
    if serve.status().proxies:
        raise SettingsError(
            "Ray Serve runs on this cluster already; add saff to what it runs with serve deploy"
        )
    quiet_ray_serve()
    try:
        serve.start(http_options=HTTPOptions(host=host, port=port))
        serve.run(application, name=NAME)
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    finally:
        serve.shutdown()  # type: ignore[no-untyped-call]


def network_run(serving: Serving) -> Folder | None:
    """Output of the run whose network is used; None for the network that comes with saff."""
    return Folder.at(serving.network) if serving.network else None


def quiet_ray_serve() -> None:
    """Let Ray Serve report errors alone, not each step of its start, in the format of our log."""
    if structured():
        adopt("ray.serve")
    logging.getLogger("ray.serve").setLevel(logging.ERROR)


def check_machine(replicas: int, host: str, port: int) -> None:
    """Check that this machine can run so many replicas and listen: Ray would wait for it.

    Raises
    ------
    SettingsError
        If it cannot.
    """
    cores = max(1, usable_cores())
    if replicas > cores:
        raise SettingsError(
            f"{replicas} replicas need as many CPUs, and this machine has {cores}; use fewer "
            "--replicas"
        )
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        raise SettingsError(
            f"cannot listen at {host}, port {port}: {error.strerror or error}; choose another "
            "--port, or a --host of this machine"
        ) from error
