"""The command that answers over HTTP: serve."""

import signal
import threading
from contextlib import suppress
from typing import Annotated

import typer

from saff.cli.options import (
    AllowCodeOption,
    ConfigOption,
    NetworkOption,
    refuse_relative,
)
from saff.config_files import read_config
from saff.errors import SettingsError


def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen at; 0.0.0.0 lets other machines connect.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 8000,
    network: NetworkOption = None,
    replicas: Annotated[
        int, typer.Option(min=1, help="Processes, each with the network and one CPU.")
    ] = 1,
    queue: Annotated[
        int,
        typer.Option(
            min=0, help="Images that may wait for each replica; more are refused with status 503."
        ),
    ] = 8,
    megabytes: Annotated[
        float,
        typer.Option(
            "--max-megabytes",
            min=0.001,
            help="Largest image that is taken, in units of 10^6 bytes.",
        ),
    ] = 32.0,
    config: ConfigOption = "default",
    allow_code: AllowCodeOption = None,
) -> None:
    """Answer with masks over HTTP, and to a browser with a page for photographs.

    POST an image to /mask, /confidence, /overlay or /cutout for a PNG file, or to /boxes for JSON;
    the masks are those of [bold]saff segment[/]. Ctrl-C ends it.
    """
    if network:
        refuse_relative(network)
    read_config(config)  # before packages that take seconds to import
    try:
        from saff.cluster.serving import Serving, served
    except ImportError as error:
        raise SettingsError(
            f"saff serve needs Ray Serve ({error}): pip install 'saff[serve]'"
        ) from error
    serving = Serving(
        network=network,
        config=config,
        replicas=replicas,
        queue=queue,
        megabytes=megabytes,
        allow_code=allow_code or [],
    )
    ended = threading.Event()
    with served(serving, host, port) as address, suppress(KeyboardInterrupt):
        signal.signal(signal.SIGTERM, lambda *_: ended.set())  # Ray has a handler of its own
        typer.echo(f"open {address}")
        ended.wait()
