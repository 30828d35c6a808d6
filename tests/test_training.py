import dataclasses
import math
import pickle
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, strategies as st
from torch import nn

from oracles import reduce_labels_oracle
from saff import config
from saff.config import Training
from saff.errors import TrainingError
from saff.network import deeplab_v2
from saff.network.dropout import SampleDropout
from saff.samples import Batch
from saff.training import (
    from_bytes,
    gradients,
    parameter_groups,
    poly_learning_rate,
    reduce_labels,
    summed_loss,
    to_bytes,
    train,
)
from saff.training_loop import State, ema_keep, update_average

SIDE = 16
TRAINING = Training(
    crop_size=SIDE,
    batch_size=6,
    steps=8,
    learning_rate=0.01,
    head_learning_rate_factor=2.0,
    warmup_steps=2,
    checkpoint_interval=3,
)
CPU = torch.device("cpu")


class Tiny(nn.Module):
    """Dropout, two convolutions, a map at a quarter of the input."""

    mean, std, multiple = (127.0,), (64.0,), 4

    def __init__(self):
        super().__init__()
        self.body = nn.Conv2d(3, 8, 3, padding=1)
        self.dropout = SampleDropout(0.3)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = torch.relu(self.body(nn.functional.avg_pool2d(x, 4)))
        return self.head(self.dropout(x))


def tiny():
    torch.manual_seed(0)
    return Tiny()


def batch_of(step, rank=0, workers=1, size=6):
    """Bright is foreground, with noise; the first column of every image is not valid."""
    rng = np.random.default_rng(step)
    image = rng.integers(0, 256, (size, SIDE // 4, SIDE // 4, 3), np.uint8)
    image = image.repeat(4, 1).repeat(4, 2)
    valid = np.ones(image.shape[:3], bool)
    valid[:, :, :4] = False
    everything = Batch(image, image.max(3), valid, [step * size + i for i in range(size)])
    return Batch(*(column[rank::workers] for column in everything))


def batches(start=0, **share):
    return (batch_of(step, **share) for step in range(start, TRAINING.steps))


def equal(one, other):
    return all(torch.equal(one[name], other[name]) for name in one) and one.keys() == other.keys()


# Learning


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_the_loss_falls(optimiser, labels):
    training = dataclasses.replace(
        TRAINING, steps=60, optimiser=optimiser, targets=labels, learning_rate=0.05
    )
    seen = []
    train(tiny(), (batch_of(step) for step in range(60)), training, on_step=seen.append)
    assert [m["step"] for m in seen] == list(range(1, 61))
    first, last = (np.mean([m["loss"] for m in part]) for part in (seen[:10], seen[-10:]))
    assert last < 0.9 * first
    assert seen[-1]["accuracy"] > 0.8
    assert seen[-1]["samples"] == 6
    assert all(m["gradient_norm"] > 0 and m["seconds"] > 0 for m in seen)


def test_the_rate_rises_and_falls_as_configured():
    seen = []
    train(tiny(), batches(), TRAINING, on_step=seen.append)
    warm = [1 / 3, 2 / 3] + [1] * 6
    expected = [0.01 * (1 - step / 8) ** 0.9 * warm[step] for step in range(8)]
    np.testing.assert_allclose([m["learning_rate"] for m in seen], expected, rtol=1e-12)


def test_a_step_of_sgd_is_the_textbooks():
    """One step moves each group by its rate times the gradient of the mean loss, plus decay."""
    training = dataclasses.replace(
        TRAINING,
        steps=1,
        optimiser="sgd",
        warmup_steps=0,
        ema_decay=0.0,
        weight_decay=0.1,
        bias_learning_rate_factor=3.0,
    )
    network, copy = tiny(), tiny()
    batch = batch_of(0)
    final = train(network, [batch], training)
    copy.dropout.keys = batch.keys
    pixels = (torch.from_numpy(batch.image).float().permute(0, 3, 1, 2) - 127) / 64
    target, counted = reduce_labels(
        torch.from_numpy(batch.confidence), torch.from_numpy(batch.valid), (4, 4), training
    )
    loss = summed_loss(copy.train()(pixels), target, counted) / counted.sum()
    loss.backward()
    rates = {"body.weight": 1, "body.bias": 3, "head.weight": 2, "head.bias": 6}
    for name, parameter in copy.named_parameters():
        decay = 0.1 * parameter if name.endswith("weight") else 0.0
        expected = parameter - 0.01 * rates[name] * (parameter.grad + decay)
        torch.testing.assert_close(final.weights()[name], expected.detach())


def test_the_papers_groups():
    groups = parameter_groups(deeplab_v2("vgg16"), config.paper().training)
    found = [(g["lr"], g["weight_decay"], len(g["params"])) for g in groups]
    expected = [(1e-3, 5e-4, 21), (2e-3, 0.0, 21), (1e-2, 5e-4, 4), (2e-2, 0.0, 4)]
    assert [count for *_, count in found] == [count for *_, count in expected]
    np.testing.assert_allclose([f[:2] for f in found], [e[:2] for e in expected])


@pytest.mark.parametrize("accumulation", [2, 4, 99])
def test_accumulation_changes_nothing(accumulation):
    batch = batch_of(0)
    found = []
    for parts in (1, accumulation):
        network = tiny().train()
        training = dataclasses.replace(TRAINING, gradient_accumulation_steps=parts)
        figures = gradients(network, network, batch, training, CPU)
        found.append((figures, [p.grad for p in network.parameters()]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-6)
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)


def test_the_average_is_a_weighted_mean_that_starts_fast():
    network = nn.Linear(1, 1, bias=False)
    average = {"weight": torch.zeros(1, 1)}
    expected = 0.0
    for step in range(1, 40):
        nn.init.constant_(network.weight, step)
        keep = min(0.7, step / (step + 9))
        assert ema_keep(0.7, step) == keep
        update_average(average, network, keep)
        expected = keep * expected + (1 - keep) * step
        assert average["weight"].item() == pytest.approx(expected, rel=1e-5)


# Labels


@given(
    seed=st.integers(0, 2**32 - 1),
    labels=st.sampled_from(["hard", "soft"]),
    doubt=st.sampled_from([0.0, 0.1, 0.3, 0.5]),
)
def test_labels_are_reduced_cell_by_cell(seed, labels, doubt):
    rng = np.random.default_rng(seed)
    confidence = rng.choice(np.uint8([0, 40, 127, 128, 200, 255]), (2, 12, 12))
    valid = rng.random((2, 12, 12)) < 0.7
    training = dataclasses.replace(TRAINING, targets=labels, ignore_margin=doubt)
    target, counted = reduce_labels(
        torch.from_numpy(confidence), torch.from_numpy(valid), (3, 4), training
    )
    expected, expected_counted = reduce_labels_oracle(confidence, valid, (3, 4), labels, doubt)
    np.testing.assert_array_equal(counted, expected_counted)
    np.testing.assert_allclose(target[counted], expected[expected_counted], atol=1e-6)


def test_the_loss_is_cross_entropy_with_an_ignored_label():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 2, 5, 6, generator=generator)
    target = (torch.rand(2, 5, 6, generator=generator) < 0.4).long()
    counted = torch.rand(2, 5, 6, generator=generator) < 0.7
    expected = nn.functional.cross_entropy(
        logits, target.masked_fill(~counted, 255), ignore_index=255, reduction="sum"
    )
    torch.testing.assert_close(summed_loss(logits, target.float(), counted), expected)


@given(st.integers(1, 500), st.floats(1e-6, 1.0), st.floats(0.1, 3.0))
def test_the_poly_rate_starts_at_its_base_and_never_rises(steps, base, power):
    rates = [poly_learning_rate(step, steps, base, power) for step in range(steps)]
    assert rates[0] == base
    assert all(a >= b > 0 for a, b in pairwise(rates)) or steps == 1


# Continuing


def test_an_interrupted_training_is_the_uninterrupted_one():
    states = []
    whole = train(tiny(), batches(), TRAINING, on_checkpoint=states.append)
    assert [s.step for s in states] == [3, 6, 8]
    for state in states[:2]:
        read = from_bytes(to_bytes(state, "id"), "id", "step")
        rest = train(tiny(), batches(state.step), TRAINING, state=read)
        assert rest.step == 8
        assert equal(rest.weights(), whole.weights())
        assert equal(rest.network, whole.network)


def test_a_checkpoint_of_another_training_is_refused():
    data = to_bytes(State(1, {}, {}, {}), "a" * 64)
    with pytest.raises(TrainingError, match="of another network, configuration or set of labels"):
        from_bytes(data, "b" * 64, "step-1.pt")


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut", pickle.dumps({"step": print})])
def test_a_damaged_checkpoint_is_named_and_nothing_is_run(content):
    with pytest.raises(TrainingError, match=r"checkpoint step-1\.pt is damaged or holds other"):
        from_bytes(content, "id", "step-1.pt")


# What ends a training


def test_a_loss_that_is_not_finite_ends_it():
    network = tiny()
    nn.init.constant_(network.head.bias, math.nan)
    states = []
    with pytest.raises(
        TrainingError, match=r"loss is nan .* at step 1; set a lower training\.learning_rate"
    ):
        train(network, batches(), TRAINING, on_checkpoint=states.append)
    assert not states


def test_images_that_are_gone_are_no_samples():
    def some(step):
        batch = batch_of(step)
        batch.valid[: step % 3] = False
        return batch

    steps = []
    batches = [some(step) for step in range(TRAINING.steps)]
    train(tiny(), batches, TRAINING, on_step=steps.append)
    expected = [6 - step % 3 for step in range(TRAINING.steps)]
    assert [metrics["samples"] for metrics in steps] == expected


def test_images_that_are_gone_end_it_but_not_at_once():
    def gone(step):
        batch = batch_of(step)
        return batch._replace(valid=np.zeros_like(batch.valid))

    training = dataclasses.replace(TRAINING, steps=30)
    some = [gone(s) if s % 3 else batch_of(s) for s in range(30)]
    assert train(tiny(), some, training).step == 30
    with pytest.raises(TrainingError, match="no pixel had a label in the 10 steps before step 10"):
        train(tiny(), [gone(s) for s in range(30)], training)


# Several workers


def _worker(rank, workers, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=workers
    )
    network = nn.parallel.DistributedDataParallel(tiny())
    seen = []
    training = dataclasses.replace(TRAINING, gradient_accumulation_steps=2)
    final = train(network, batches(rank=rank, workers=workers), training, on_step=seen.append)
    torch.save([final.weights(), [m["loss"] for m in seen]], f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.parametrize("workers", [2, 4])
def test_several_workers_train_the_same_network(workers, tmp_path):
    seen = []
    alone = train(tiny(), batches(), TRAINING, on_step=seen.append)
    mp.get_context("forkserver").set_forkserver_preload([__name__])  # imports torch once
    mp.start_processes(_worker, (workers, str(tmp_path)), nprocs=workers, start_method="forkserver")
    for rank in range(workers):
        weights, losses = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        np.testing.assert_allclose(losses, [m["loss"] for m in seen], rtol=1e-5)
        for name, value in alone.weights().items():  # Adam divides by small numbers at the start
            torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("low", [False, True])
def test_a_gpu_trains_as_a_cpu_does(low):
    training = dataclasses.replace(TRAINING, bfloat16=low)
    losses = []
    for device in ("cpu", "cuda"):
        seen = []
        network = tiny().to(device)
        train(network, batches(), training, device=device, on_step=seen.append)
        losses.append([m["loss"] for m in seen])
    # bfloat16 has 8 bits of mantissa; float32 on a GPU may multiply with 10 (TF32)
    np.testing.assert_allclose(losses[1], losses[0], rtol=0.05 if low else 5e-3)
