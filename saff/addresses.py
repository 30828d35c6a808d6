"""Paths and URIs: which file system one names, and what of it a message must not repeat."""

import os
import re
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from saff.errors import SettingsError

LOCAL = LocalFileSystem()
OWN_SERVER = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # of another than AWS
VALIDATION = "AWS_RESPONSE_CHECKSUM_VALIDATION"
VALIDATION_OPTION = "response_checksum_validation"  # botocore 1.36 and later
# A user name before a web address, or a password before any place; "host:8080/a@b" has neither.
LOGIN = re.compile(
    r"https?://[^/?#]*@|[^:]+://(?!arn:|\[)[^/?#@:]*:(?!\d*(?:[/?#]|$))[^@]*@", re.IGNORECASE
)


def is_local(fs: Any) -> bool:
    """Whether a file system is this machine's own."""
    return isinstance(fs, LocalFileSystem)


def locate(uri: str, *, signed: bool = False) -> tuple[Any, str]:
    """Split a path or URI into its fsspec file system and the path on it.

    Parameters
    ----------
    uri : str
        Local path, or ``protocol://...``.
    signed : bool
        Let a web address have a query, as the pre-signed address of one image has; what a person
        names is written into run.json and told in messages.

    Raises
    ------
    SettingsError
        If it is empty, the protocol is unknown or its package is not installed, or it holds a
        password or such a query, which the message does not repeat.
    """
    protocol, rest = split_uri(uri, signed)
    fs = file_system(protocol, uri)
    path = os.path.abspath(rest) if protocol == "file" else fs._strip_protocol(uri)
    return fs, path


def split_uri(uri: str, signed: bool) -> tuple[str, str]:
    """Protocol of a URI, ``file`` for a path, and what follows; refuses what would be stored."""
    if not uri:
        raise SettingsError("a path or URI is empty")
    protocol, _, rest = uri.partition("://")
    if not rest:
        protocol, rest = "file", uri
    if LOGIN.match(uri):
        raise SettingsError(
            f"a URI {protocol}://...@... holds a user name or password, which would be stored; "
            "give credentials in the environment or by the machine's role, and the URI without them"
        )
    if not signed and redact(uri) != uri:
        raise SettingsError(
            f"{redact(uri)} stands for an address with a query, which may be a signature and "
            "would be stored; name a folder or prefix, or list signed addresses of single images "
            "in a manifest"
        )
    return protocol, rest


def file_system(protocol: str, uri: str) -> Any:
    """File system of a protocol; a SettingsError names the URI if its package is not there."""
    if protocol == "file":
        return LOCAL  # asked for with every image
    try:
        return fsspec.filesystem(protocol, **_options(protocol))
    except Exception as error:  # every protocol raises its own
        raise SettingsError(f"cannot open {redact(uri)}: {error}") from error


def _options(protocol: str) -> dict[str, Any]:
    """What a file system is to be asked for: of S3's likes, no checksums for pieces of objects.

    AWS sends none with a piece; some servers send that of the whole, which then does not fit.
    """
    if protocol not in ("s3", "s3a") or not any(os.environ.get(name) for name in OWN_SERVER):
        return {}
    from botocore.config import Config

    if VALIDATION in os.environ or VALIDATION_OPTION not in Config.OPTION_DEFAULTS:
        return {}
    return {"config_kwargs": {VALIDATION_OPTION: "when_required"}}


def redact(uri: str) -> str:
    """Leave out of a URI what a message must not repeat: a login, and the query of a web address.

    >>> redact("https://user:password@host/cat.jpg?signature=1")
    'https://...@host/cat.jpg?...'
    """
    protocol, separator, rest = uri.partition("://")
    if LOGIN.match(uri):
        rest = f"...@{rest.rpartition('@')[2]}"
    if protocol.lower() in ("http", "https") and "?" in rest:
        rest = f"{rest.partition('?')[0]}?..."
    return protocol + separator + rest


def uri_of(fs: Any, path: str) -> str:
    """Absolute path of a local file, ``protocol://path`` of any other."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))
