import dataclasses
import os
import shutil

import cv2
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from saff import images, samples
from saff.config import Training
from saff.errors import SettingsError, StorageError
from saff.layout import part_name
from saff.samples import Cache, Corpus, Loader, batches, crop, draw, image_ids, load, open_corpus
from saff.shards import PSEUDO_LABELS, read_rows, write_rows
from saff.storage import Folder

TRAINING = Training(crop_size=32, max_side=64, batch_size=4, steps=5)


def corpus_of(counts):
    return Corpus(Folder.at("/nowhere"), tuple(f"{i}.parquet" for i in range(len(counts))), counts)


@pytest.fixture
def labels(finished):
    return finished / "pseudo_labels"


@pytest.fixture
def loader(labels, tmp_path):
    return Loader(open_corpus(labels), TRAINING, Cache(labels, 64, tmp_path / "cache"))


def same(one, other):
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


# Order


@settings(deadline=None)
@given(
    counts=st.lists(st.integers(1, 9), min_size=1, max_size=8).map(tuple),
    seed=st.integers(0, 99),
    window=st.integers(1, 20),
)
def test_every_image_comes_once_an_epoch(counts, seed, window):
    corpus = corpus_of(counts)
    everything = sorted((f"{p}.parquet", r) for p, n in enumerate(counts) for r in range(n))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(samples, "WINDOW", window)
        samples._windows.cache_clear()
        samples._window_order.cache_clear()
        for epoch in range(3):
            positions = range(epoch * len(corpus), (epoch + 1) * len(corpus))
            assert sorted(draw(corpus, seed, p) for p in positions) == everything
    samples._windows.cache_clear()
    samples._window_order.cache_clear()


def test_the_order_depends_on_seed_and_epoch():
    corpus = corpus_of((50, 50))
    orders = [
        [draw(corpus, seed, p) for p in range(epoch * 100, epoch * 100 + 100)]
        for seed, epoch in ((0, 0), (0, 1), (1, 0))
    ]
    assert orders[0] != orders[1]
    assert orders[0] != orders[2]
    parts = [part for part, _ in orders[0]]
    assert len({*parts[:20]}) == 2  # shuffled among parts, not part after part


# Corpus


def test_a_corpus_counts_what_is_usable(labels):
    corpus = open_corpus(labels)
    assert len(corpus) == 4  # of seven images, three are bad
    assert set(corpus.parts) <= set(labels.names(".parquet"))


@given(st.sets(st.integers(0, 30), min_size=1), st.sets(st.integers(0, 30)))
def test_parts_are_found_again_by_their_numbers(there, more):
    counts = {part_name(n): n + 1 for n in sorted(there | more)}
    whole = Corpus(Folder.at("x"), tuple(counts), tuple(counts.values()))
    began = Corpus(whole.labels, *zip(*[(part_name(n), n + 1) for n in sorted(there)], strict=True))
    assert whole.within(began.spans) == began
    assert whole.within(whole.spans) == whole
    assert began.within(whole.spans) == began


def test_numbers_of_parts_read_as_spans():
    parts = tuple(part_name(n) for n in (0, 1, 2, 5, 8, 9))
    assert Corpus(Folder.at("x"), parts, (1,) * 6).spans == "0-2,5,8-9"


def test_no_labels_is_said(tmp_path):
    with pytest.raises(SettingsError, match=r"no labels at .*: run saff label first"):
        open_corpus(Folder.at(str(tmp_path)))


def test_all_rows_failed_is_said(labels, tmp_path):
    row = dict.fromkeys(PSEUDO_LABELS.names) | {"error": "no", "error_kind": "not_found"}
    folder = Folder.at(str(tmp_path))
    write_rows(folder, "part-0000000.parquet", [row, row], PSEUDO_LABELS)
    with pytest.raises(SettingsError, match=r"all 2 images of .* have failed"):
        open_corpus(folder)


def test_all_background_is_said(labels, tmp_path):
    name = open_corpus(labels).parts[0]
    folder = Folder.at(str(tmp_path))
    rows = [r for r in read_rows(labels, name) if r["error_kind"] is None]
    nothing = [np.zeros((r["height"], r["width"]), np.uint8) for r in rows]
    rows = [r | {"pseudo_label": images.encode_png(n)} for r, n in zip(rows, nothing, strict=True)]
    write_rows(folder, name, rows, PSEUDO_LABELS)
    with pytest.raises(SettingsError, match=r"no label in .* has a foreground"):
        open_corpus(folder)


# Pixels


def test_an_image_is_shrunk_with_its_label(labels):
    corpus = open_corpus(labels)
    row = next(r for r in read_rows(labels, corpus.parts[0]) if r["error_kind"] is None)
    whole, small = load(row, 1000), load(row, 50)
    assert whole.shape == (row["height"], row["width"], 4)
    np.testing.assert_array_equal(whole[..., :3], images.read(row["uri"]))
    np.testing.assert_array_equal(whole[..., 3], images.decode_png(row["confidence"]))
    assert max(small.shape) == 50
    assert abs(whole.mean() - small.mean()) < 2


def test_a_file_that_has_changed_is_left_out(labels, tmp_path):
    row = next(r for r in read_rows(labels, open_corpus(labels).parts[0]) if r["confidence"])
    assert load(row | {"uri": str(tmp_path / "gone.png")}, 64).shape == (0, 0, 4)
    other = tmp_path / "other.png"
    other.write_bytes(images.encode_png(np.zeros((8, 8, 3), np.uint8)))
    assert load(row | {"uri": str(other)}, 64).shape == (0, 0, 4)


def test_the_cache_reads_once_and_stays_within_its_limit(labels, tmp_path, monkeypatch):
    corpus = open_corpus(labels)
    assert len(corpus.parts) > 1
    cache = Cache(labels, 64, tmp_path / "cache")
    rows = dict(zip(corpus.parts, map(range, corpus.counts), strict=True))
    first = [cache.read(part, rows[part]) for part in corpus.parts]
    with monkeypatch.context() as patch:
        patch.setattr(samples, "load", lambda *_: pytest.fail("read again"))
        again = [cache.read(part, rows[part]) for part in corpus.parts]
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    files = list((tmp_path / "cache").iterdir())
    assert len(files) == len(corpus.parts)
    one = max(f.stat().st_size for f in files)
    small = dataclasses.replace(cache, folder=tmp_path / "small", limit=one)
    for part in corpus.parts:
        small.read(part, [0])
        assert sum(f.stat().st_size for f in (tmp_path / "small").iterdir()) <= one
    assert same(small.read(corpus.parts[0], [0]), first[0][:1])  # removed, and made again


def test_a_relabelled_part_is_read_again(labels, tmp_path):
    copied = tmp_path / "labels"
    shutil.copytree(labels.path, copied)
    folder = Folder.at(str(copied))
    part = open_corpus(folder).parts[0]
    cache = Cache(folder, 64, tmp_path / "cache")
    (before,) = cache.read(part, [0])
    rows = list(read_rows(folder, part))
    for row in rows:
        if row["confidence"]:
            row["confidence"] = images.encode_png(255 - images.decode_png(row["confidence"]))
    write_rows(folder, part, rows, PSEUDO_LABELS)
    os.utime(copied / part, ns=(1, 1))
    (after,) = cache.read(part, [0])
    assert not np.array_equal(before[..., 3], after[..., 3])
    np.testing.assert_array_equal(before[..., :3], after[..., :3])


# Crops


class Fixed:
    """A generator that gives what it is told: scale, across, down, mirror in [0, 1)."""

    def __init__(self, *numbers):
        self.numbers = list(numbers)

    def random(self, count=None):
        taken = [self.numbers.pop(0) for _ in range(count or 1)]
        return np.asarray(taken) if count else taken[0]


def gradient(height, width):
    rows, columns = np.indices((height, width))
    return np.stack([rows, columns, rows + columns, rows], axis=2).astype(np.uint8)


def test_a_crop_is_a_window_of_the_image():
    pixels = gradient(60, 80)
    training = dataclasses.replace(TRAINING, scale_range=(1.0, 1.0))
    image, confidence, valid = crop(pixels, Fixed(0.3, 0.5, 0.25, 0.9), training)
    np.testing.assert_array_equal(image, pixels[7:39, 24:56, :3])
    np.testing.assert_array_equal(confidence, pixels[7:39, 24:56, 3])
    assert valid.all()
    mirrored, label, _ = crop(pixels, Fixed(0.3, 0.5, 0.25, 0.1), training)
    np.testing.assert_array_equal(mirrored, image[:, ::-1])
    np.testing.assert_array_equal(label, confidence[:, ::-1])


def test_a_small_image_lies_within_the_crop():
    pixels = np.full((20, 24, 4), 200, np.uint8)
    training = dataclasses.replace(TRAINING, scale_range=(1.0, 1.0))
    image, confidence, valid = crop(pixels, Fixed(0.0, 0.5, 0.5, 0.9), training)
    expected = np.zeros((32, 32), bool)
    expected[6:26, 4:28] = True
    np.testing.assert_array_equal(valid, expected)
    assert (confidence[valid] == 200).all()
    assert (confidence[~valid] == 0).all()
    assert (image[~valid] == samples.GREY).all()


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**32), height=st.integers(1, 90), width=st.integers(1, 90))
def test_a_crop_of_any_image_has_its_size(seed, height, width):
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (height, width, 4), np.uint8)
    image, confidence, valid = crop(pixels, rng, TRAINING)
    assert (image.shape, confidence.shape, valid.shape) == ((32, 32, 3), (32, 32), (32, 32))
    assert (image.dtype, confidence.dtype, valid.dtype) == (np.uint8, np.uint8, np.bool_)


def test_scales_are_as_likely_small_as_large():
    training = dataclasses.replace(TRAINING, scale_range=(0.5, 2.0))
    pixels = gradient(200, 200)
    bare = crop(pixels, Fixed(0.5, 0.0, 0.0, 0.9), training)[0]  # the middle of the range
    np.testing.assert_array_equal(bare, pixels[:32, :32, :3])
    large = crop(pixels, Fixed(0.999999, 0.0, 0.0, 0.9), training)[0]
    expected = cv2.warpAffine(pixels, np.float64([[2, 0, 0], [0, 2, 0]]), (32, 32))
    np.testing.assert_allclose(large, expected[..., :3], atol=1)


def test_a_missing_image_counts_for_nothing():
    image, confidence, valid = crop(np.zeros((0, 0, 4), np.uint8), Fixed(0, 0, 0, 0), TRAINING)
    assert image.shape == (32, 32, 3)
    assert not valid.any()
    assert not confidence.any()


# Batches


def test_workers_share_the_batch(loader):
    whole = loader(2)
    assert whole.image.shape == (4, 32, 32, 3)
    shares = [dataclasses.replace(loader, rank=rank, workers=3)(2) for rank in range(3)]
    assert [len(s.keys) for s in shares] == [2, 1, 1]
    for rank, share in enumerate(shares):
        assert same((f[rank::3] for f in whole), share)


def test_photographs_that_are_gone_are_named_and_change_no_other_sample(finished, loader, tmp_path):
    labels = Folder.at(str(shutil.copytree((finished / "pseudo_labels").path, tmp_path / "gone")))
    gone = set()
    for name in labels.names(".parquet"):
        rows = read_rows(labels, name)
        rows = [row | {"uri": "/gone"} if row["image_id"] > "c" else row for row in rows]
        gone |= {r["image_id"] for r in rows if r["uri"] == "/gone" and r["error_kind"] is None}
        write_rows(labels, name, rows, PSEUDO_LABELS)
    assert gone
    training = dataclasses.replace(TRAINING, paste_probability=0.0)
    whole = dataclasses.replace(loader, training=training)
    cache = Cache(labels, 64, tmp_path / "other")
    some = dataclasses.replace(whole, corpus=open_corpus(labels), cache=cache)
    named = set()
    for step in range(TRAINING.steps):
        expected, found = whole(step), some(step)
        there = found.valid.any(axis=(1, 2))
        assert len(found.missing) == np.count_nonzero(~there)
        assert expected.missing == ()
        for one, other in zip(expected[:3], found[:3], strict=True):
            np.testing.assert_array_equal(one[there], other[there])
        named |= {*image_ids(some.corpus, found.missing)}
    assert named == gone


def test_nothing_is_pasted_where_a_photograph_is_gone(loader, labels, tmp_path, monkeypatch):
    training = dataclasses.replace(TRAINING, paste_probability=1.0)
    monkeypatch.setattr(samples, "can_be_pasted", lambda confidence: bool(confidence.size))
    monkeypatch.setattr(samples, "paste", lambda *_: pytest.fail("pasted"))
    empty = np.zeros((0, 0, 4), np.uint8)
    monkeypatch.setattr(Cache, "read", lambda *_: [empty])
    batch = dataclasses.replace(loader, training=training)(0)
    assert not batch.valid.any()
    assert len(batch.missing) == training.batch_size


def test_batches_come_in_order_from_any_step(loader):
    everything = list(batches(loader))
    assert len(everything) == TRAINING.steps
    assert all(same(a, loader(step)) for step, a in enumerate(everything))
    rest = list(batches(loader, 3))
    assert len(rest) == 2
    assert all(same(a, b) for a, b in zip(rest, everything[3:], strict=True))
    assert list(batches(loader, TRAINING.steps)) == []
    keys = [key for batch in everything for key in batch.keys]
    assert len({*keys}) == len(keys) == 20


# A disk without room


@pytest.fixture
def small_disk(mount_disk):
    """A disk of 256 kB."""
    return mount_disk("size=256k")


def test_a_full_disk_makes_room_from_what_was_written_first(labels, small_disk, tmp_path):
    folder = small_disk / "cache"
    folder.mkdir()
    for number in range(6):
        (folder / f"{number}.npz").write_bytes(bytes(40_000))
        os.utime(folder / f"{number}.npz", (number, number))
    (part, *_) = open_corpus(labels).parts
    images = Cache(labels, 64, folder).read(part, [0])
    (expected,) = Cache(labels, 64, tmp_path / "roomy").read(part, [0])
    np.testing.assert_array_equal(images[0], expected)
    left = sorted(path.name for path in folder.iterdir())
    assert "0.npz" not in left
    assert "5.npz" in left
    assert not [name for name in left if name.endswith(".tmp")]


def test_a_disk_that_is_too_small_is_named(labels, small_disk):
    (small_disk / "filler").write_bytes(bytes(240_000))
    (part, *_) = open_corpus(labels).parts
    with pytest.raises(StorageError, match=r"No space left on device.*set TMPDIR") as said:
        Cache(labels, 64, small_disk / "cache").read(part, [0])
    assert f"the training cache {small_disk}/cache cannot be written" in str(said.value)


def test_a_cache_that_cannot_be_written_is_named(labels, tmp_path):
    (tmp_path / "file").touch()
    (part, *_) = open_corpus(labels).parts
    with pytest.raises(StorageError, match=r"the training cache .*/file/cache cannot be written"):
        Cache(labels, 64, tmp_path / "file" / "cache").read(part, [0])
