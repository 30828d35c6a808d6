import dataclasses
import io

import cv2
import numpy as np
import pytest
from PIL import Image

from saff import config
from saff.cluster import tables
from saff.cluster.tables import VocTree, make_tables, methods
from saff.config import Inference, Training
from saff.errors import SettingsError
from saff.images import encode_png
from saff.labeling import label_image
from saff.storage import Folder


@pytest.fixture
def tree(photographs, tmp_path):
    """A VOC tree of four photographs: three to learn from, one held out."""
    root = tmp_path / "VOC2012"
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / name).mkdir(parents=True)
    for number, (name, pixels) in enumerate(photographs.items()):
        path = root / "JPEGImages" / f"{name}.jpg"
        path.write_bytes(cv2.imencode(".jpg", pixels[..., ::-1])[1].tobytes())
        mask = np.zeros(pixels.shape[:2], np.uint8)
        mask[20:80, 40:120] = 1 + number
        mask[20:22] = 255
        (root / "SegmentationClass" / f"{name}.png").write_bytes(encode_png(mask))
    lists = root / "ImageSets" / "Segmentation"
    (lists / "train.txt").write_text("astronaut\nchelsea\ncoffee\n")
    (lists / "val.txt").write_text("rocket\n")
    return root


def test_a_tree_lists_its_splits(tree):
    voc = VocTree(tree)
    assert voc.ids("train") == ["astronaut", "chelsea", "coffee"]
    assert voc.ids("val") == ["rocket"]
    assert voc.masks == str(tree / "SegmentationClass")
    rows = list(voc.rows("val"))
    assert rows == [{"image_id": "rocket.jpg", "uri": str(tree / "JPEGImages" / "rocket.jpg")}]


def test_augmented_masks_make_the_larger_train_set(tree):
    (tree / "SegmentationClass").rename(tree / "SegmentationClassAug")
    (tree / "SegmentationClass").mkdir()
    (tree / "ImageSets" / "Segmentation" / "train.txt").write_text("astronaut\n")
    voc = VocTree(tree)
    assert voc.ids("train") == ["astronaut", "chelsea", "coffee"]  # all that is not val
    assert voc.masks == str(tree / "SegmentationClassAug")


def test_a_folder_that_is_no_tree_is_refused(tmp_path):
    with pytest.raises(SettingsError, match=r"is no VOC tree: it has no JPEGImages, no Segm"):
        VocTree(tmp_path)


@pytest.mark.parametrize(("key", "column"), [("cam", 0), ("saliency", 2)])
def test_a_single_cue_is_the_feature_as_it_is(photographs, key, column):
    small = dataclasses.replace(methods()[key].config, encoder_side=64, superpixel_count=60)
    labeled = label_image(photographs["chelsea"], small)
    np.testing.assert_allclose(labeled.scores, labeled.features[:, column], atol=1e-6)


def test_the_methods_are_those_of_the_paper():
    found = methods()
    assert found["saff_balance"].config == config.paper()
    assert found["saff"].config == dataclasses.replace(config.paper(), balance=False)
    published = {key: tuple(method[2:]) for key, method in found.items()}
    assert published["saff_balance"] == (0.6703, 0.6863, 0.6725)
    assert published["saff"] == (0.6635, 0.6745, 0.6592)
    assert published["saliency"] == (0.6383, None, 0.6388)
    assert published["cam"] == (0.6044, None, 0.5828)


@pytest.mark.ray
@pytest.mark.slow
def test_tables_and_figures_are_written(tree, one_node, tmp_path, monkeypatch):
    def small(key):
        method = methods()[key]
        settings = dataclasses.replace(method.config, encoder_side=64, superpixel_count=60)
        return method._replace(config=settings)

    few = {"saliency": small("saliency")}
    monkeypatch.setattr(tables, "methods", lambda: few)
    how = dataclasses.replace(
        config.default(),
        training=Training(crop_size=64, max_side=96, batch_size=3, steps=2),
        inference=Inference(input_sides=(64,), pseudo_label_share=0.0),
    )
    said = []
    page = make_tables(tree, Folder.at(str(tmp_path / "out")), how, say=said.append)
    assert len(said) == 3
    text = (tmp_path / "out" / "tables.md").read_text()
    assert page == str(tmp_path / "out" / "tables.md")
    lines = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("| s")]
    assert [line[0].strip() for line in lines] == [
        "saliency",
        "saliency + network",
        "saliency + network",
    ]
    assert [line[1].strip() for line in lines] == ["0.6383", "", "0.6388"]
    assert [line[-1].strip() for line in lines] == ["3", "3", "1"]
    curves = (tmp_path / "out" / "figure2.svg").read_text()
    assert all(name in curves for name in ("saliency:", "saliency + network:"))
    with Image.open(io.BytesIO((tmp_path / "out" / "figure3.png").read_bytes())) as grid:
        assert min(grid.size) > 300
