"""Leases: of two jobs that would do the same parts, only one is at work."""

import dataclasses
import json
import os
import subprocess
import sys
import threading
import time

import pytest
from hypothesis import given, strategies as st

from saff import layout, lease
from saff.errors import SettingsError, StorageError
from saff.lease import Lease, Owner, leased, overlap
from saff.plan import WHOLE, Share
from saff.storage import Folder

STAGE = "pseudo_labels"
SHARES = st.integers(1, 12).flatmap(lambda n: st.builds(Share, st.integers(1, n), st.just(n)))


@pytest.fixture(params=["local", "memory"])
def output(request, tmp_path):
    where = {"local": str(tmp_path / "run"), "memory": f"memory://{tmp_path.name}/run"}
    return Folder.at(where[request.param])


@pytest.fixture
def quick(monkeypatch):
    for name, seconds in (("RENEWAL_SECONDS", 0.05), ("POLL_SECONDS", 0.02)):
        monkeypatch.setattr(lease, name, seconds)
    monkeypatch.setattr(lease, "LIFETIME_SECONDS", 0.5)


def left_by(output, owner, share=WHOLE, renewals=3):
    """The lease of a job that does not renew it any more."""
    content = json.dumps(dataclasses.asdict(owner) | {"renewals": renewals}).encode()
    layout.leases(output, STAGE).write(f"{share.number}-of-{share.of}.json", content)


@given(SHARES, SHARES)
def test_shares_overlap_when_they_have_a_part_in_common(one, other):
    parts = [f"part-{number:07d}.parquet" for number in range(one.of * other.of)]
    assert overlap(one, other) == any(one.holds(p) and other.holds(p) for p in parts)


def test_a_second_job_is_refused_while_the_first_is_alive(output, quick):
    with leased(output, STAGE), pytest.raises(SettingsError) as refused:
        Lease(output, STAGE).acquire()
    assert f"process {os.getpid()}" in str(refused.value)
    assert "--part i/n" in str(refused.value)
    with leased(output, STAGE):  # given back, so free for the next
        pass
    assert layout.leases(output, STAGE).names(".json") == []


def test_shares_without_a_common_part_and_other_stages_work_beside_each_other(output, quick):
    with leased(output, STAGE, Share(1, 2)), leased(output, STAGE, Share(2, 2)):
        with leased(output, "predictions"):
            pass
        for share in (WHOLE, Share(3, 4)):
            with pytest.raises(SettingsError, match="another job is at work"):
                Lease(output, STAGE, share).acquire()


def test_the_lease_of_a_process_that_has_ended_here_is_taken_over_at_once(output, monkeypatch):
    ended = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                           capture_output=True, text=True, check=True)  # fmt: skip
    left_by(output, Owner(process=int(ended.stdout)))
    monkeypatch.setattr(lease, "LIFETIME_SECONDS", 60.0)
    start = time.monotonic()
    with leased(output, STAGE):
        assert time.monotonic() - start < 5


def test_the_lease_of_another_machine_is_watched_and_taken_over_when_it_stands_still(output, quick):
    left_by(output, Owner(host="elsewhere", machine="another boot"))
    start = time.monotonic()
    with leased(output, STAGE):
        assert 0.5 <= time.monotonic() - start < 10


def test_take_over_does_not_wait(output, monkeypatch):
    monkeypatch.setattr(lease, "LIFETIME_SECONDS", 60.0)
    left_by(output, Owner(host="elsewhere", machine="another boot"))
    start = time.monotonic()
    with leased(output, STAGE, take_over=True):
        assert time.monotonic() - start < 5


def test_a_job_whose_lease_was_taken_over_ends_and_leaves_the_lease_alone(output, quick):
    first, second = Lease(output, STAGE), Lease(output, STAGE)
    first.acquire()
    second.acquire(take_over=True)  # as while the first was paused for minutes
    until = time.monotonic() + 10
    while not first.fault and time.monotonic() < until:
        time.sleep(0.02)
    with pytest.raises(StorageError, match="was taken over by another job"):
        first.check()
    first.release()
    second.check()
    assert layout.leases(output, STAGE).names(".json") == ["1-of-1.json"]
    second.release()


def test_of_many_that_begin_together_one_is_at_work(tmp_path, quick):
    output, won, begin = Folder.at(str(tmp_path)), [], threading.Barrier(8)

    def job(number):
        one = Lease(output, STAGE, WHOLE if number % 2 else Share(1, 3))
        begin.wait()
        try:
            one.acquire()
        except SettingsError:
            return
        won.append(one)

    threads = [threading.Thread(target=job, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) <= 1
    for one in won:
        one.release()


def test_a_damaged_lease_is_nobodys(output, quick):
    layout.leases(output, STAGE).write("1-of-1.json", b"{")
    with leased(output, STAGE):
        pass
