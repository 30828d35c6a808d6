"""An export as a job: its parts mapped on Ray, each one written by a task of its own."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from saff.cluster.mapping import count_done, map_parts
from saff.cluster.metrics import count_part
from saff.cluster.resources import start_ray
from saff.exports.run import LEASE, Export
from saff.lease import HeldLeases
from saff.plan import WHOLE, Plan, Share
from saff.progress import PATIENCE
from saff.shards import Row


@dataclass(frozen=True, slots=True)
class ExportPart:
    """Export one part and count it; a callable that Ray maps over parts.

    Attributes
    ----------
    export : Export
        What is exported, and where to.
    """

    export: Export

    def __call__(self, task: Row) -> Row:
        """Write the files of ``task["part"]``."""
        start = time.monotonic()
        done = self.export.do_part(task)
        count_part(LEASE, done["images"], {}, time.monotonic() - start)
        return done


@dataclass(frozen=True, kw_only=True)
class ExportJob:
    """An export that is done part by part; the same job again continues it.

    Attributes
    ----------
    export : Export
        What is exported, and where to.
    share : Share
        Do this share of the parts.
    patience : float
        Seconds without any part done after which the job ends.
    take_over : bool
        Take the lease on the folder from a job that is known to be dead.
    """

    export: Export
    share: Share = WHOLE
    patience: float = PATIENCE
    take_over: bool = False
    _leases: HeldLeases = field(default_factory=HeldLeases, init=False)

    def claim(self) -> None:
        """Bind the folder to this export; errors as of :meth:`saff.exports.run.Export.claim`."""
        self.export.claim()

    def plan(self) -> Plan:
        """Find the parts of results whose files are not there yet."""
        return self.export.plan(self.share)

    @contextmanager
    def at_work(self) -> Iterator["ExportJob"]:
        """Hold the lease on the share while the block runs, so that no other job does the same."""
        where = self.export.records
        with self._leases.hold(where, LEASE, self.share, take_over=self.take_over):
            yield self

    def map(self, todo: Plan) -> None:
        """Export the parts of a plan on Ray; each task writes the files of its part."""
        if todo.parts:
            start_ray()
            tasks = self.export.tasks(todo.parts)
            results = map_parts(ExportPart(self.export), tasks, patience=self.patience)
            count_done("export", todo, self._leases.checked(results))

    def finish(self) -> list[str]:
        """Write what the export has once, such as a merged file, if all parts are written."""
        return self.export.finish()
