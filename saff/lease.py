"""A lease on a stage of an output: of two jobs that would do the same parts, only one is at work.

A lease is a small file in ``OUTPUT/_leases/``.  Its owner writes it again every few seconds with a
higher count.  Whoever finds the lease of another watches it: a count that rises belongs to a job
that is alive; one that stands still for a minute, or whose process is known to be gone from this
machine, to a job that was killed, and is taken over.  No clock is compared with another one.
"""

import json
import os
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from math import gcd
from typing import TypeVar

from saff import layout
from saff.errors import SaffError, SettingsError, StorageError
from saff.plan import WHOLE, Share
from saff.storage import Folder, with_brief_retries

Item = TypeVar("Item")
RENEWAL_SECONDS = 5.0
LIFETIME_SECONDS = 60.0  # without a renewal, after which a lease is free
POLL_SECONDS = 1.0
NAME = re.compile(r"(\d+)-of-(\d+)\.json")


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a lease.

    Attributes
    ----------
    id : str
        Identifier of this lease alone.
    host, process : str, int
        Machine and number of the driver's process.
    machine : str
        Says whether a process of that number can be looked for here: the machine since its last
        start, and the container.
    """

    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)
    machine: str = field(default_factory=lambda: _machine())

    def __str__(self) -> str:
        """Who this is, within a sentence."""
        return f"process {self.process} on {self.host}" if self.process else self.host

    def is_gone(self) -> bool:
        """Whether this machine knows that the process has ended; False for other machines."""
        if not self.machine or self.machine != _machine():
            return False
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return True
        except OSError:  # somebody else's
            return False
        return False


def _machine() -> str:
    """Identify this machine since its last start, and this container; empty where unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def overlap(one: Share, other: Share) -> bool:
    """Whether two shares have a part in common.

    >>> overlap(Share(1, 2), Share(2, 2)), overlap(Share(1, 2), Share(3, 4))
    (False, True)
    """
    return (one.number - other.number) % gcd(one.of, other.of) == 0


class Lease:
    """The right to do a share of a stage, renewed in a thread until it is released.

    Parameters
    ----------
    output : Folder
        The run's output.
    stage : str
        Folder of the stage.
    share : Share
        Which parts of it.
    """

    def __init__(self, output: Folder, stage: str, share: Share = WHOLE) -> None:
        self.folder = layout.leases(output, stage)
        self.output, self.stage, self.share = output, stage, share
        self.name = f"{share.number}-of-{share.of}.json"
        self.owner = Owner()
        self.fault = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)

    def acquire(self, *, take_over: bool = False) -> None:
        """Take the lease, or say who has it.

        Parameters
        ----------
        take_over : bool
            Take it from whoever holds it, without watching whether that job is alive.

        Raises
        ------
        SettingsError
            If another job holds a lease on some of the same parts.
        """
        with with_brief_retries(self.folder.uri):
            for name, share in self._others():
                if overlap(share, self.share):
                    self._free(name, take_over)
            try:
                self.folder.create(self.name, self._content(0))
            except (FileExistsError, FileNotFoundError):  # the other may have gone meanwhile
                raise self._refusal(*self._read(self.name)) from None
            for name, share in self._others():
                if name < self.name and overlap(share, self.share):  # it was faster
                    self.folder.remove(self.name)
                    raise self._refusal(*self._read(name))
        self._thread.start()

    def release(self) -> None:
        """Give the lease back; what another job has taken over stays with it."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        with suppress(OSError, SaffError):
            if self._read(self.name)[0].id == self.owner.id:
                self.folder.remove(self.name)

    def check(self) -> None:
        """Raise a StorageError if another job has taken the lease over."""
        if self.fault:
            raise StorageError(self.fault)

    def _others(self) -> list[tuple[str, Share]]:
        found = ((name, NAME.fullmatch(name)) for name in self.folder.names(".json"))
        return [
            (name, Share(int(match[1]), int(match[2])))
            for name, match in found
            if match and name != self.name
        ] + ([(self.name, self.share)] if self.folder.exists(self.name) else [])

    def _free(self, name: str, take_over: bool) -> None:
        """Remove the lease of a job that is dead; refuse if it is alive."""
        owner, count = self._read(name)
        if owner.id == self.owner.id:
            return
        until = time.monotonic() + (0 if take_over or owner.is_gone() else LIFETIME_SECONDS)
        while time.monotonic() < until:
            time.sleep(POLL_SECONDS)
            if not self.folder.exists(name):
                return
            now = self._read(name)
            if now != (owner, count):
                raise self._refusal(*now)
        self.folder.remove(name)

    def _read(self, name: str) -> tuple[Owner, int]:
        try:
            content = json.loads(self.folder.read(name))
            count = int(content.pop("renewals"))
            return Owner(**content), count
        except FileNotFoundError:
            return Owner(id="", host="a job that has just ended", process=0, machine=""), 0
        except (ValueError, TypeError, LookupError):  # damaged: of nobody who renews it
            return Owner(id="", host="an unknown machine", process=0, machine=""), 0

    def _content(self, renewals: int) -> bytes:
        return json.dumps(asdict(self.owner) | {"renewals": renewals}).encode()

    def _refusal(self, owner: Owner, _: int) -> SettingsError:
        return SettingsError(
            f"another job is at work on {self.stage} of {self.output.uri}: {owner}; wait until it "
            "has ended, share the work with --part i/n in both jobs, or, if it is known to be "
            "dead, take over with --take-over"
        )

    def _renew(self) -> None:
        """Write the lease again and again; note if another job has taken it over."""
        renewals = 0
        while not self._ended.wait(RENEWAL_SECONDS):
            renewals += 1
            try:
                owner, _ = self._read(self.name)
                if owner.id != self.owner.id:
                    self.fault = (
                        f"{self.stage} of {self.output.uri} was taken over by another job "
                        f"({owner}); this one ends, what is done stays"
                    )
                    return
                self.folder.write(self.name, self._content(renewals))
            except (OSError, SaffError):
                continue  # a storage that is busy; the next renewal may succeed


@contextmanager
def leased(
    output: Folder, stage: str, share: Share = WHOLE, *, take_over: bool = False
) -> Iterator[Lease]:
    """Hold the lease on a share of a stage while the block runs."""
    lease = Lease(output, stage, share)
    lease.acquire(take_over=take_over)
    try:
        yield lease
    finally:
        lease.release()


class HeldLeases:
    """Leases that a job holds while it is at work; none before and after."""

    def __init__(self) -> None:
        self._held: list[Lease] = []

    @contextmanager
    def hold(
        self, output: Folder, stage: str, share: Share = WHOLE, *, take_over: bool = False
    ) -> Iterator[None]:
        """Hold one more while the block runs; as :func:`leased`."""
        with leased(output, stage, share, take_over=take_over) as lease:
            self._held.append(lease)
            try:
                yield
            finally:
                self._held.pop()

    def checked(self, results: Iterator[Item]) -> Iterator[Item]:
        """Pass results on until another job takes one of them over, which ends this job."""
        for result in results:
            for lease in self._held:
                lease.check()
            yield result
