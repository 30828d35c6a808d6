"""What the addresses in a list of images may name: schemes, places on the network, sizes.

A list may have been written by a stranger.  Whoever runs it lends it the rights and the network of
this machine, so it reaches no further than its own place and what is public, unless that is allowed
by name.
"""

import dataclasses
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from saff.addresses import S3, WEB, redact, split_uri
from saff.errors import RefusedAddressError, UnreadableError

OBJECT_STORES = S3 | {"gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "oss", "obs"}
LARGEST_FILE = 2 * 2**30  # bytes; no image of max_pixels is larger
TOO_LARGE = "TooLarge"
OF_MANIFEST = "manifest "  # begins the source of a run, in run.json, that is a list
SECONDS = 300.0  # of one download
LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")
NOT_PUBLIC = tuple(  # beside what Python knows, which depends on its version
    map(
        ipaddress.ip_network,
        (
            "192.0.0.0/24",  # of protocols; metadata of Oracle's cloud
            "168.63.129.16/32",  # services of Azure for its machines
            "64:ff9b:1::/48",  # gateways of a network of one's own
            "::/96",  # IPv4 in IPv6, as it was once written
        ),
    )
)
METADATA_NAMES = (
    *("metadata", "metadata.google.internal"),
    *("instance-data", "instance-data.ec2.internal"),
)
ALLOW_PRIVATE = "--allow-private-addresses"
ALLOW_SCHEME = "--allow-scheme"


@dataclass(frozen=True, kw_only=True, slots=True)
class Access:
    """What may be read for the images of a run, and how much of it.

    Attributes
    ----------
    schemes : frozenset of str, optional
        Schemes that an address may have, ``"file"`` for paths of this machine; None: any.
    private : bool
        Whether a web address may lead to this machine or to a private network.
    from_own_list : bool
        Whether a list on this machine names the addresses.  Its writer may name a loopback or
        private IP address outright; a name that resolves to one, a redirect to another host and the
        addresses of clouds' metadata stay refused.
    own_host : str, optional
        Such a host of the address that is being read.
    largest : int
        Bytes of a file.
    seconds : float
        Time limit of one download.
    """

    schemes: frozenset[str] | None = None
    private: bool = False
    from_own_list: bool = False
    own_host: str | None = None
    largest: int = LARGEST_FILE
    seconds: float = SECONDS

    @classmethod
    def of_source(
        cls, source: str, *, private: bool = False, schemes: Iterable[str] = ()
    ) -> "Access":
        """What the images of a list, folder or prefix may name.

        That is whatever has the scheme of the source's own place, the web, and object stores; paths
        of this machine only where the source lies on this machine.

        Parameters
        ----------
        source : str
            Path or URI of the list, folder or prefix.
        private : bool
            As the attribute.
        schemes : iterable of str
            More schemes to allow.
        """
        own, _ = split_uri(source, signed=True)
        more = {scheme.lower().removesuffix("://") for scheme in schemes}
        return cls(
            schemes=frozenset({own} | WEB | OBJECT_STORES | more),
            private=private,
            from_own_list=own == "file",
        )

    @classmethod
    def of_run(cls, source: str, *, private: bool = False) -> "Access":
        """What the images of a run may name that a job continues.

        Parameters
        ----------
        source : str
            As it stands in the run's run.json: ``manifest /photos/list.csv``.
        private : bool
            As the attribute.
        """
        uri = source.removeprefix(OF_MANIFEST)
        own = bool(uri) and split_uri(uri, signed=True)[0] == "file"
        return cls(private=private, from_own_list=own)

    def for_host(self, host: str) -> "Access":
        """Access to an address whose host a list names, perhaps in its writer's own network."""
        if not self.from_own_list or not is_own_network(host):
            return self
        return dataclasses.replace(self, own_host=host)

    def refuse_scheme(self, uri: str) -> None:
        """Refuse an address whose scheme is not allowed.

        Raises
        ------
        RefusedAddressError
            If it is another; the message says how to allow it.
        """
        protocol, _ = split_uri(uri, signed=True)
        if self.schemes is not None and protocol not in self.schemes:
            what = "a file of this machine" if protocol == "file" else f"an address {protocol}://"
            raise RefusedAddressError(
                f"{redact(uri)} is {what}, which a list from elsewhere may not name; if that is "
                f"meant: {ALLOW_SCHEME} {protocol}"
            )


ANYTHING = Access(private=True)  # for an address that a caller or a person names


def too_large(access: Access, size: int | None = None) -> UnreadableError:
    """Say that a file is larger than may be read; how large, where that is known."""
    bytes_read = f"{size:,}" if size is not None else f"more than {access.largest:,}"
    return UnreadableError(f"a file of {bytes_read} bytes is no image", TOO_LARGE)


def is_public(address: str) -> bool:
    """Whether an IP address is one of the public internet.

    >>> is_public("169.254.169.254"), is_public("::ffff:10.0.0.1"), is_public("1.1.1.1")
    (False, False, True)
    """
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address):
        for inner in (found.ipv4_mapped, found.sixtofour, _nat64(found)):
            if inner is not None:
                return is_public(str(inner))
    if any(found in network for network in NOT_PUBLIC):
        return False
    return found.is_global and not found.is_multicast


def is_own_network(host: str) -> bool:
    """Whether a host is written as a loopback or private IP address, not a link-local one.

    >>> is_own_network("127.0.0.1"), is_own_network("169.254.169.254"), is_own_network("localhost")
    (True, False, False)
    """
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return (found.is_private or found.is_loopback) and not (
        found.is_link_local or found.is_unspecified or found.is_multicast
    )


def _nat64(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """IPv4 address that a gateway of IPv6 to IPv4 (RFC 6052) would ask."""
    if address not in ipaddress.ip_network("64:ff9b::/96"):
        return None
    return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def refuse_private(host: str, addresses: Iterable[str]) -> None:
    """Refuse a host that leads to this machine or to a private network.

    Parameters
    ----------
    host : str
        As it stands in the address.
    addresses : iterable of str
        IP addresses that it stands for.

    Raises
    ------
    RefusedAddressError
        If it is such a name, or any of these addresses is not public.
    """
    name = host.lower().rstrip(".")
    private = [address for address in addresses if not is_public(address)]
    if private or name in (*LOCAL_NAMES, *METADATA_NAMES) or name.endswith(".localhost"):
        raise RefusedAddressError(
            f"{host} is {', '.join(private) or 'a name'} of this machine or of a private network, "
            f"which a list of images may not name; if that is meant: {ALLOW_PRIVATE}"
        )
