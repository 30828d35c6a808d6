"""What a run will take: a fair sample, measured, and told in units people use."""

from itertools import chain

import numpy as np
import pytest

from saff.cluster.estimate import Work, choose, describe_estimate, measure, preview
from saff.cluster.image_rows import ALONE
from saff.errors import SettingsError
from saff.kept import BY_DEFAULT
from saff.manifests import extend_manifest
from saff.plan import WHOLE, Share
from saff.sources import list_images
from saff.storage import Folder


@pytest.mark.parametrize(("stream", "count"), [(0, 3), (2, 3), (3, 3), (100, 1), (100, 0)])
def test_so_many_are_chosen_each_once(stream, count):
    chosen = choose(iter(range(stream)), count)
    assert len(chosen) == len(set(chosen)) == min(stream, count)
    assert set(chosen) <= set(range(stream))
    assert chosen == choose(iter(range(stream)), count)  # the seed is fixed


def test_each_is_as_likely(monkeypatch):
    counts = np.zeros(20)
    for seed in range(2000):
        monkeypatch.setattr("saff.cluster.estimate.SEED", seed)
        counts[choose(range(20), 5)] += 1
    # binomial with mean 500 and deviation 19.4: five deviations
    assert np.abs(counts - 500).max() < 5 * np.sqrt(2000 * 0.25 * 0.75)


def test_a_sample_is_what_the_images_are(corpus, finished, small, tmp_path):
    rows = [row for row in list_images(str(corpus)) if row["image_id"].startswith("chelsea")]
    labelling = Work.labelling(small, ALONE, BY_DEFAULT)
    sample = measure(rows * 2, labelling)
    assert sample.images == 2
    assert sample.read == (corpus / "chelsea ü.png").stat().st_size
    assert 0 < sample.seconds < 30
    assert 1000 < sample.written < 200 * 133 * 4
    missing = measure([{"image_id": "x", "uri": str(corpus / "none.jpg")}], labelling)
    assert missing.read == 0
    assert missing.written < sample.written
    assert "0 bytes read" in describe_estimate(missing, 10, 1, None)


def test_bytes_written_are_those_of_a_part(corpus, finished, small):
    rows = list(list_images(str(corpus)))
    parts = finished / "pseudo_labels"
    stored = sum(len(parts.read(name)) for name in parts.names(".parquet"))
    sample = measure(rows, Work.labelling(small, ALONE, BY_DEFAULT))
    # one file in place of several: what a file has besides its rows is about 6 kB
    assert sample.written * len(rows) == pytest.approx(stored, rel=0.5)
    alone = measure(rows, Work.labelling(small, ALONE, frozenset()))
    assert alone.written < sample.written / 2


def test_a_preview_samples_what_is_left(corpus, finished, small, tmp_path):
    rows = list(list_images(str(corpus)))
    output = Folder.at(str(tmp_path / "run"))

    def lines(output, rows, **options):
        return preview(str(corpus), rows, output, small, sample=3, **options).splitlines()

    assert len(lines(finished, rows)) == 1  # nothing is left
    said = lines(finished, [*rows, rows[0] | {"image_id": "new"}])
    assert said[1].startswith("1 images on one core")
    assert lines(output, rows)[1].startswith("3 images on one core")
    extend_manifest(output, rows)
    assert lines(output, rows)[1].startswith("3 images on one core")
    assert not (tmp_path / "run" / "run.json").exists()


def test_predictions_are_estimated_beside_labels(corpus, finished, small, tmp_path):
    rows = list(list_images(str(corpus)))
    text = preview(str(corpus), rows, finished, small, sample=2, predict=True, cpus=4)
    labels, all_labels, predictions, all_predictions = text.splitlines()[1:]
    assert labels.startswith("pseudo labels: 2 images on one core")
    assert predictions.startswith("predictions: 2 images on one core")
    assert all_labels.startswith("all of it: 0 s of CPU time, 0 s on 4 CPUs; 0 bytes read")
    assert "; 0 bytes read" not in all_predictions  # none is predicted
    assert not finished.exists("predictions")
    text = preview(str(corpus), rows, finished, small, sample=len(rows), predict=True)
    assert f"pseudo labels: {len(rows)} images on one core" in text  # of fewer parts


def test_shares_are_disjoint_and_cover_the_run(corpus, small, tmp_path):
    output = Folder.at(str(tmp_path / "run"))
    rows = list(list_images(str(corpus)))
    extend_manifest(output, rows)
    names = (output / "manifest").names(".parquet")
    for of in (1, 2, 3, 7):
        held = [[n for n in names if Share(k, of).holds(n)] for k in range(1, of + 1)]
        assert sorted(chain.from_iterable(held)) == names
    assert WHOLE.holds("anything.parquet")
    text = preview(str(corpus), rows, output, small, share=Share(1, 4))
    assert text.startswith("2 images: 0 labelled, 0 failed, 2 to do")


@pytest.mark.parametrize("text", ["", "1", "0/4", "5/4", "1/0", "-1/4", "a/b", "1/2/3", "1.0/2"])
def test_what_is_no_share_is_refused(text):
    with pytest.raises(SettingsError, match="a share is i/n with 1 <= i <= n, as 2/4; got"):
        Share.read(text)
