"""Paths and URIs: which file system one names, and what of it a message must not repeat.

A path is one of this machine.  A URI is ``scheme://...``; ``file:`` is the only scheme that stands
for a path of this machine.  What looks like neither is refused by name: taken for a path, ``s3:/x``
would become a folder called ``s3:``.
"""

import os
import re
from functools import cache, lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import fsspec
from fsspec.implementations.local import LocalFileSystem

from saff.errors import SettingsError

LOCAL = LocalFileSystem()
WEB = frozenset({"http", "https"})
S3 = frozenset({"s3", "s3a"})
OWN_SERVER = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")  # of another than AWS
VALIDATION = "AWS_RESPONSE_CHECKSUM_VALIDATION"
VALIDATION_OPTION = "response_checksum_validation"  # botocore 1.36 and later
# A user name before a web address, or a password before any place; "host:8080/a@b" has neither.
LOGIN = re.compile(
    r"https?://[^/?#]*@|[^:]+://(?!arn:|\[)[^/?#@:]*:(?!\d*(?:[/?#]|$))[^@]*@", re.IGNORECASE
)
SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
NEARLY_A_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/?)(?!/)")  # s3:/bucket, s3:bucket
CHAIN = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://[^?]*::[A-Za-z][A-Za-z0-9+.-]*://)")
WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
WINDOWS_FILE = re.compile(r"/+[A-Za-z]:(/|$)")
AS_IT_CAME = "".join(map(chr, range(0x21, 0x7F)))  # may stand in the line of a request


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
        Let a web address have a query, as the pre-signed address of one image has, and take ``~``
        for itself; what a person names is written into run.json and into messages, and may begin
        with the home folder ``~/``.

    Raises
    ------
    SettingsError
        If it is no address, the protocol is unknown or its package is not installed, or it holds a
        password or such a query, which the message does not repeat.
    """
    protocol, rest = split_uri(uri, signed)
    fs = file_system(protocol, uri)
    if protocol == "file":
        return fs, os.path.abspath(rest if signed else expand_home(rest))
    if protocol in WEB:
        return fs, web_address(f"{protocol}://{rest}")
    return fs, fs._strip_protocol(f"{protocol}://{rest}")


@lru_cache(maxsize=1)  # each row of a list is looked at by several functions, one after the other
def split_uri(uri: str, signed: bool) -> tuple[str, str]:
    """Protocol of a URI in small letters, ``file`` for a path, and what follows.

    What follows in a ``file:`` URI is the path that it stands for.

    >>> split_uri("S3://bucket/key", signed=False)
    ('s3', 'bucket/key')
    >>> split_uri("file://localhost/tmp/a%20b.jpg", signed=False)
    ('file', '/tmp/a b.jpg')

    Raises
    ------
    SettingsError
        If it is no address of this machine or another, or holds what would be stored.
    """
    if not uri:
        raise SettingsError("a path or URI is empty")
    if LOGIN.match(uri):
        raise SettingsError(
            f"a URI {uri.partition('://')[0]}://...@... holds a user name or password, which would "
            "be stored; give credentials in the environment or by the machine's role, and the URI "
            "without them"
        )
    if not signed and redact(uri) != uri:
        raise SettingsError(
            f"{redact(uri)} stands for an address with a query, which may be a signature and "
            "would be stored; name a folder or prefix, or list signed addresses of single images "
            "in a manifest"
        )
    refuse_unlike_address(uri)
    if not (found := SCHEME.fullmatch(uri)):
        return "file", _path_of(uri) if uri.lower().startswith("file:") else uri
    protocol, rest = found[1].lower(), found[2]
    if protocol in ("file", "local"):
        return "file", _path_of(uri)
    if not rest:
        raise SettingsError(
            f"{uri} names no place; expected {protocol}:// followed by a bucket, a host or a path"
        )
    return protocol, rest


def refuse_unlike_address(uri: str) -> None:
    """Refuse what is neither a path of this machine nor a URI, though it would pass for a path.

    Raises
    ------
    SettingsError
        With what was probably meant.
    """
    if WINDOWS.match(uri):
        raise SettingsError(
            f"{redact(uri)} is a path of Windows; expected a path of this machine, such as "
            "/data/photos, or a URI such as s3://bucket/photos"
        )
    if (chain := CHAIN.match(uri)) and (chain[1] != "::" or _is_known(uri.partition("::")[0])):
        raise SettingsError(
            f"{redact(uri)} chains protocols with '::', which is not read; name the file itself"
        )
    if SCHEME.match(uri) or not (near := NEARLY_A_SCHEME.match(uri)):
        return
    scheme = near[1].lower()
    if scheme != "file" and (near[2] or _is_known(scheme)):
        meant = f"{scheme}://{uri[near.end() :]}"
        shown = uri if redact(meant) == meant else f"{near[0]}..."  # a secret was not seen above
        raise SettingsError(
            f"{shown} is no address: two slashes follow a scheme; expected {redact(meant)}, or "
            f"./{shown} for a file of that name"
        )


@cache
def _known() -> frozenset[str]:
    """Protocols that fsspec knows."""
    return frozenset(fsspec.available_protocols())


def _is_known(scheme: str) -> bool:
    return scheme.lower() in _known()


def _path_of(uri: str) -> str:
    """Path that a ``file:`` URI stands for, as :meth:`pathlib.Path.as_uri` spells it."""
    rest = uri.partition(":")[2]
    host, slash, path = rest.removeprefix("//").partition("/")
    if not rest.startswith("/"):
        raise SettingsError(f"{uri} names no file; expected file:///path")
    if host.lower() not in ("", "localhost"):
        raise SettingsError(
            f"{uri} names the file of another machine, {host!r}; expected file:///path"
        )
    decoded = unquote_to_bytes((slash + path).encode("utf-8", "surrogateescape"))
    if not slash or b"\0" in decoded:
        raise SettingsError(f"{uri} names no file; expected file:///path")
    if WINDOWS_FILE.match(slash + path):
        raise SettingsError(f"{uri} is a file of Windows; expected a path of this machine")
    return os.fsdecode(decoded)


def expand_home(path: str) -> str:
    """Put the home folder in for a leading ``~``, which a shell leaves in ``--output=~/x``.

    Raises
    ------
    SettingsError
        If this user has no home folder.
    """
    expanded = os.path.expanduser(path)
    if expanded == path and path.partition("/")[0] == "~":
        raise SettingsError(f"{path} begins with ~, and no home folder is known; set HOME")
    return expanded


def local_path(text: str) -> Path:
    """Path of this machine that a person named, the home folder ``~`` put in.

    Raises
    ------
    SettingsError
        If it is the address of another place, which the caller cannot write to.
    """
    try:
        protocol, path = split_uri(text, signed=False)
    except SettingsError as error:
        raise SettingsError(f"expected a path of this machine: {error}") from error
    if protocol != "file":
        raise SettingsError(f"expected a path of this machine, got {redact(text)}")
    return Path(expand_home(path))


def web_address(uri: str) -> str:
    """Web address as it is sent: as it came, but for characters that no request may hold.

    >>> web_address("https://host/a%7Eb%2fü c.jpg?x=%20")
    'https://host/a%7Eb%2f%C3%BC%20c.jpg?x=%20'
    """
    return quote(uri, safe=AS_IT_CAME, errors="surrogateescape")


def plain_uri(uri: str) -> str:
    """Address of an image as a manifest keeps it: of a file, its path; the protocol in small.

    >>> plain_uri("file:///photos/a%20b.jpg"), plain_uri("HTTP://Host/x?y")
    ('/photos/a b.jpg', 'http://Host/x?y')
    """
    protocol, rest = split_uri(uri, signed=True)
    return rest if protocol == "file" else f"{protocol}://{rest}"


def file_system(protocol: str, uri: str) -> Any:
    """File system of a protocol; a SettingsError names the URI if its package is not installed."""
    if protocol == "file":
        return LOCAL  # looked up for every image
    try:
        return fsspec.filesystem(protocol, **_options(protocol))
    except Exception as error:  # every protocol raises its own
        raise SettingsError(f"cannot open {redact(uri)}: {error}") from error


def _options(protocol: str) -> dict[str, Any]:
    """Options of a file system.

    Web addresses are requested as they come, through the proxy that the environment names.  S3 and
    its likes are not asked for checksums of pieces: AWS sends none with a piece; some servers send
    that of the whole object, which then does not fit.
    """
    if protocol in WEB:
        return {"encoded": True, "client_kwargs": {"trust_env": True}}
    if protocol not in S3 or not any(os.environ.get(name) for name in OWN_SERVER):
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
    if protocol.lower() in WEB and "?" in rest:
        rest = f"{rest.partition('?')[0]}?..."
    return protocol + separator + rest


def uri_of(fs: Any, path: str) -> str:
    """Absolute path of a local file, ``protocol://path`` of any other."""
    return path if is_local(fs) else str(fs.unstrip_protocol(path))
