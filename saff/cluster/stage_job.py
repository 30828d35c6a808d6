"""One stage of a run as a job: claim the output, extend the manifest, plan, map, tidy."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from saff import layout
from saff.cluster.mapping import count_done
from saff.cluster.quarantine import tidy
from saff.cluster.resources import start_ray
from saff.lease import HeldLeases
from saff.manifests import extend_manifest
from saff.plan import WHOLE, Plan, Share, plan_stage, require_manifest
from saff.progress import PATIENCE
from saff.runs import OTHER_OUTPUT, claim
from saff.shards import Row
from saff.sources import Source
from saff.storage import Folder

LOG = logging.getLogger(__name__)
Mapper = Callable[[Plan, float], Iterator[dict[str, Any]]]
"""Maps the parts of a plan, with a patience in seconds, to the result of each."""


@dataclass(frozen=True, kw_only=True)
class StageJob:
    """A stage that is done part by part; the same job again continues it.

    Attributes
    ----------
    output : Folder
        The run's output.
    stage : str
        Folder of the stage's parts.
    verb : str
        What is done, for the progress line: ``"label"``.
    map_plan : callable
        Maps the parts of a plan on Ray.
    claims : list of tuple
        Folders that the job binds to what decides their content, each with that description and
        with what a person can do if the folder belongs to another run.
    source : Source, optional
        Images to take in first; without it, those that the manifest has.
    share : Share
        Do this share of the parts; another one than the whole takes in no images.
    patience : float
        Seconds without any part done after which the job ends.
    take_over : bool
        Take the lease on the stage from a job that is known to be dead.
    """

    output: Folder
    stage: str
    verb: str
    map_plan: Mapper
    claims: list[tuple[Folder, Row, str]] = field(default_factory=list)
    source: Source | None = None
    share: Share = WHOLE
    patience: float = PATIENCE
    take_over: bool = False
    _leases: HeldLeases = field(default_factory=HeldLeases, init=False)

    @contextmanager
    def at_work(self) -> Iterator["StageJob"]:
        """Hold the lease on the share while the block runs, so that no other job does the same.

        Raises
        ------
        SettingsError
            If another job is at work on some of these parts.
        """
        with self._leases.hold(self.output, self.stage, self.share, take_over=self.take_over):
            yield self

    def claim(self) -> None:
        """Bind the output to what decides its content, or check that it is bound to the same.

        Raises
        ------
        SettingsError
            If it belongs to another run; the difference is named.
        """
        if self.share != WHOLE:
            require_manifest(self.output, self.source.name if self.source else "IMAGES")
        for folder, run, remedy in self.claims:
            claim(folder, run, remedy or OTHER_OUTPUT)

    def extend_manifest(self) -> None:
        """Add the images of the source that the manifest does not have yet."""
        if self.source and self.share == WHOLE:
            for line in extend_manifest(self.output, self.source.rows).lines():
                LOG.warning("%s", line)

    def plan(self, *, retry_failed: bool = False) -> Plan:
        """Find the parts of the manifest that the stage does not have yet."""
        return plan_stage(self.output, self.stage, retry_failed=retry_failed, share=self.share)

    def map(self, todo: Plan) -> None:
        """Do the parts of a plan on Ray; each task writes its part, whole or not at all."""
        if todo.parts:
            start_ray()
            results = self._leases.checked(self.map_plan(todo, self.patience))
            count_done(self.verb, todo, results, self.stage)

    def tidy(self) -> None:
        """Remove what processes that died have left, unless other jobs work on the stage."""
        if self.share == WHOLE:
            layout.manifest(self.output).sweep()
            tidy(self.output / self.stage)

    def complete(self, *, retry_failed: bool = False) -> Plan:
        """Do all of the above in this order, and return what the stage holds at the end."""
        self.claim()
        self.extend_manifest()
        if self.plan(retry_failed=retry_failed).parts:
            with self.at_work():
                self.map(self.plan(retry_failed=retry_failed))
                self.tidy()
        return self.plan()
