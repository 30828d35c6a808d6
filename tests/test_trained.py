import dataclasses
import errno
import pickle

import pytest
import torch

from saff import trained
from saff.config import Training
from saff.errors import SettingsError, StorageError, TrainingError, WeightsError
from saff.samples import open_corpus
from saff.storage import Folder
from saff.trained import NetworkFolder, describe, load_trained, state_digest
from saff.training_loop import State

TRAINING = Training(network="efficientnet_lite0", network_weights=None, steps=4)
LABELS = {"stage": "pseudo_labels", "digest": "d1"}


def metrics(step):
    return dict.fromkeys(trained.COLUMNS, step / 7) | {"step": step, "samples": 8}


@pytest.fixture
def results(tmp_path):
    return NetworkFolder(Folder.at(str(tmp_path / "run" / "network")))


@pytest.fixture(scope="module")
def labels(finished):
    return open_corpus(finished / "pseudo_labels")


@pytest.fixture
def done(results, labels):
    """A trained network: the one that training starts from."""
    results.claim(describe(TRAINING, labels, LABELS))
    results.finish(trained.start_network(TRAINING).state_dict())
    return results


def test_a_training_is_described_by_what_decides_it(labels):
    one = describe(TRAINING, labels, LABELS)
    assert one == describe(TRAINING, labels, LABELS)
    assert (one["labels"]["images"], one["training"]["steps"]) == (4, 4)
    others = [
        describe(dataclasses.replace(TRAINING, steps=5), labels, LABELS),
        describe(TRAINING, labels, LABELS | {"digest": "d2"}),
        describe(TRAINING, dataclasses.replace(labels, counts=(9, 9, 9)), LABELS),
        describe(dataclasses.replace(TRAINING, seed=1), labels, LABELS),
    ]
    assert len({run["digest"] for run in (one, *others)}) == 5
    assert others[3]["start"] != one["start"]  # other random numbers in the head


def test_a_digest_of_weights_sees_names_and_values():
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    digests = {
        state_digest(state),
        state_digest({"a": torch.zeros(2, 3), "c": torch.ones(1)}),
        state_digest({"a": torch.zeros(2, 3), "b": torch.zeros(1)}),
    }
    assert len(digests) == 3
    assert state_digest({name: state[name] for name in "ba"}) in digests


def test_the_last_checkpoints_are_kept(results):
    assert results.latest("id") is None
    for step in (5, 10, 15):
        results.save(State(step, {"w": torch.full((2,), step)}, {}, {}), "id", 2)
    assert results.checkpoints.names("") == ["step-00000010.pt", "step-00000015.pt"]
    latest = results.latest("id")
    assert latest.step == 15
    assert latest.network["w"].tolist() == [15, 15]
    with pytest.raises(TrainingError, match="of another network"):
        results.latest("other")


def test_metrics_come_back(results):
    assert results.read_metrics() == []
    rows = [metrics(step) for step in range(1, 6)]
    results.write_metrics(rows)
    assert results.read_metrics() == rows
    assert results.read_metrics(up_to=3) == rows[:3]
    before = results.folder.read("metrics.csv")
    results.write_metrics(results.read_metrics())  # as after an interruption
    assert results.folder.read("metrics.csv") == before


def test_tensorboard_reads_the_metrics(results):
    from tensorboardX.proto.event_pb2 import Event

    results.write_metrics([metrics(1), metrics(2)])
    (name,) = (results.folder / "tensorboard").names("")
    assert "tfevents" in name
    data = (results.folder / "tensorboard").read(name)
    found = {}
    while data:  # records: length (8 bytes), its checksum (4), the event, its checksum (4)
        length = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + length])
        data = data[16 + length :]
        for value in event.summary.value:
            found[value.tag, event.step] = value.simple_value
    assert {tag for tag, _ in found} == {f"training/{c}" for c in trained.COLUMNS[1:]}
    assert found["training/loss", 2] == pytest.approx(2 / 7)


def test_a_trained_network_is_loaded(done, tmp_path):
    network, run, sha256 = load_trained(Folder.at(str(tmp_path / "run")))
    assert not network.training
    assert state_digest(network.state_dict()) == run["start"]
    assert len(sha256) == 64


def test_clearing_leaves_nothing_to_continue_from(done):
    done.save(State(1, {}, {}, {}), "id", 1)
    done.write_metrics([metrics(1)])
    assert done.is_done()
    done.clear()
    assert not done.is_done()
    assert done.latest("id") is None
    assert done.read_metrics() == []
    done.claim({"digest": "another", "training": {}})


def test_a_training_of_another_kind_is_refused(done, labels):
    other = describe(dataclasses.replace(TRAINING, crop_size=99), labels, LABELS)
    with pytest.raises(
        SettingsError, match=r"training\.crop_size is 320 in that run and 99 in this one"
    ):
        done.claim(other)


def test_what_is_no_trained_network_is_named(results, done, tmp_path):
    with pytest.raises(SettingsError, match=r"there is no trained network at .*run saff train"):
        load_trained(Folder.at(str(tmp_path / "nothing")))
    weights = tmp_path / "run" / "network" / "weights.pt"
    whole = weights.read_bytes()
    for content, said in (
        (pickle.dumps(print), "none was run"),
        (whole[:1000], "none was run"),
    ):
        weights.write_bytes(content)
        with pytest.raises(WeightsError, match=said):
            load_trained(Folder.at(str(tmp_path / "run")))
    weights.unlink()
    with pytest.raises(SettingsError, match="training has not ended at"):
        load_trained(Folder.at(str(tmp_path / "run")))


def test_a_full_disk_is_one_line_and_leaves_nothing_half(results, monkeypatch):
    results.save(State(1, {"w": torch.zeros(3)}, {}, {}), "id", 2)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.replace", full)
        with pytest.raises(
            StorageError, match=r"^no space left to write .*step-00000002\.pt; free"
        ):
            results.save(State(2, {"w": torch.zeros(3)}, {}, {}), "id", 2)
    assert results.checkpoints.names("") == ["step-00000001.pt"]
    assert results.latest("id").step == 1
