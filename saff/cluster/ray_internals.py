"""What Ray does not make public: private modules, log names, flags of its processes.

Each is used where Ray 2.60 has no public way to know the same.  Nothing else of this package names
them, so a new version of Ray is looked through in this file.
"""

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ray._private import ray_constants, services
from ray._private.authentication import authentication_utils
from ray._private.runtime_env import packaging
from ray._private.utils import get_num_cpus

HEAD_RESOURCE = "node:__internal_head__"
"""A resource that Ray gives to the head node alone."""
# What `ray job submit` may send: the dashboard's limit on a request comes before Ray's own.
UPLOAD_LIMIT = min(ray_constants.DASHBOARD_CLIENT_MAX_SIZE, packaging.GCS_STORAGE_MAX_SIZE)
"""Bytes of a working directory that ``ray job submit`` may send."""
CONNECT_CODE = "import sys; from ray._raylet import GcsClient; GcsClient(address=sys.argv[1])"
"""Program that connects to the Ray at an address as ``ray.init`` does, and then ends."""
KUBERAY_VARIABLES = (
    "RAY_USAGE_STATS_KUBERAY_IN_USE",
    "RAY_CLOUD_INSTANCE_ID",
    "RAY_NODE_TYPE_NAME",
)
"""Variables of the head's environment by which Ray knows that KubeRay starts nodes for it."""


def quiet_data_logs() -> None:
    """Keep Ray Data from logging its plans, and that its progress bars are off."""
    for name in ("execution", "progress"):
        logging.getLogger(f"ray.data._internal.{name}").setLevel(logging.ERROR)


def split_address(address: str) -> tuple[str, str, int]:
    """Give an address as ``ray.init`` would use it, its host and its port.

    Raises
    ------
    ValueError
        If it is no ``HOST:PORT``.
    """
    full = services.canonicalize_bootstrap_address(address) or address
    host, port = services.extract_ip_port(full)
    return full, host, int(port)


def uses_token() -> bool:
    """Whether this process, and so the node that started it, authenticates with a token."""
    return bool(authentication_utils.is_token_auth_enabled())


def usable_cores() -> int:
    """Cores that this process may use, as Ray counts them when a node starts."""
    return int(get_num_cpus())


def visit_uploaded_files(folder: Path, visit: Callable[[Path], None]) -> None:
    """Call a function with every path that ``ray job submit --working-dir`` would send."""
    ignored = os.environ.get(ray_constants.RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    quiet = logging.Logger("saff.doctor", logging.CRITICAL)
    packaging._dir_travel(folder, [], visit, include_gitignore=ignored, logger=quiet)


def autoscaler_settings(gcs_port: str) -> dict[str, Any] | None:
    """Settings of the autoscaler beside a head node, as its monitor was started with; or None."""
    import psutil  # Ray brings its own
    import yaml  # type: ignore[import-untyped]  # as Ray reads them

    for process in psutil.process_iter(["cmdline"]):
        flags = _flags(process.info["cmdline"] or ())
        path = flags.get("--autoscaling-config")
        if path and flags.get("--gcs-address", "").rpartition(":")[2] == gcs_port:
            settings: dict[str, Any] = yaml.safe_load(Path(path).expanduser().read_text())
            return settings
    return None


def object_store_folders() -> tuple[str, str] | None:
    """Where this node keeps Ray's objects, and where it spills them; None outside of a worker.

    The raylet, which has started this process, was itself started with both.
    """
    import psutil

    for process in psutil.Process().parents():
        flags = _flags(process.cmdline())
        if "--plasma_directory" in flags:
            return flags["--plasma_directory"], flags["--fallback_directory"]
    return None


def _flags(words: Iterable[str]) -> dict[str, str]:
    return {name: value for name, _, value in (word.partition("=") for word in words)}
