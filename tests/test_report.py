import base64
import hashlib
import html as markup
import io
import itertools
import json
import os
import re
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from saff import __version__
from saff.metrics import Curve, Evaluation
from saff.report.cards import Card, Label, cue_difference, image_confidence, iou_of_masks
from saff.report.page import Failure, Measured, render_page
from saff.report.plots import FEWEST_POINTS, POINTS, precision_recall_svg, training_svg
from saff.report.stored import write_report
from saff.report.text import visible
from saff.storage import Folder
from stored_runs import a_run, failed, labelled

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>.jpg",
    "\"' onload='alert(3)' \".png",
    "<!--<script>",
    "]]>{{ 7*7 }}{% raw %}&lt;&amp;amp; .jpg",
    "fotos/Zürich/été #1 50% 写真 🐈.jpg",
    "folder with  spaces/a.jpg",
    "javascript:alert(4)//%0aalert(5)",
    "</title><svg onload=alert(6)>&amp;</pre></template>",
]
STEERING = {  # text, and how a page writes it
    "photo\u202egpj.exe": "photo[U+202E]gpj.exe",
    "\u2066a\u2069\u200f.jpg": "[U+2066]a[U+2069][U+200F].jpg",
    "a\u2028b\x85c\ufeff.jpg": "a[U+2028]b[U+0085]c[U+FEFF].jpg",
    "a\x1b[2Jb\x00": "a␛[2Jb␀",
    "שלום 👩‍👧 कि": "שלום 👩‍👧 कि",  # writing from right to left, and joined characters, stay
}
RUN = {"config": "default", "digest": "0f" * 32, "saff": "0.1.0", "settings": {"count": 250}}
TOTALS = {"images": 10_582, "labelled": 10_580, "failed": 2}


def a_card(image_id="a.jpg", shape=(24, 36), seed=0, **changes):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    superpixels = (rows * 3 // shape[0]) * 4 + columns * 4 // shape[1]
    superpixels = np.unique(superpixels, return_inverse=True)[1].reshape(shape).astype(np.int32)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    label = {
        "confidence": rng.integers(0, 256, shape, np.uint8),
        "superpixels": superpixels,
        "features": rng.random((superpixels.max() + 1, 4)),
        "weights": [0.5, -0.25, 1.0, 0.125, -0.0625],
        "seeds_foreground": 7,
        "seeds_background": 31,
        "quality": float(rng.random()),
    }
    own_fields = ("image", "prediction", "prediction_quality", "foreground_found")
    own = {key: changes.pop(key) for key in own_fields if key in changes}
    return Card(image_id=image_id, **{"image": image, "label": Label(**label | changes)} | own)


def a_prediction(image_id="a.jpg", shape=(24, 36), seed=0, **own):
    """A card of a prediction alone."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (*shape, 3), np.uint8)
    prediction = rng.integers(0, 256, shape, np.uint8)
    return Card(image_id=image_id, image=image, prediction=prediction, **own)


def a_map(seed, shape=(24, 36)):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def a_measure(seed, images=3):
    evaluation = Evaluation()
    for number in range(images):
        confidence = a_map(100 * seed + number)
        evaluation.add(confidence, confidence + a_map(seed) / 2 > 180)
    return Measured.from_summary(evaluation.curve(), evaluation.summary())


def a_training(steps=40, seed=0, **columns):
    rng = np.random.default_rng(seed)
    return {
        "step": np.arange(1.0, steps + 1),
        "loss": 0.7 - 0.4 * np.arange(steps) / steps + 0.1 * rng.random(steps),
        "accuracy": 0.5 + 0.3 * rng.random(steps),
        "samples": np.full(steps, 8.0),
        "seconds": np.full(steps, 0.5),
        **columns,
    }


def page_of(cards, failures=(), **options):
    return render_page(
        cards, failures, **{"title": "a run", "run": RUN, "totals": TOTALS, **options}
    )


def facts_of(html):
    data = re.search(r'<script type="application/json" id="facts">(.*?)</script>', html, re.S)
    return json.loads(data[1])


def pictures_of(html, kind):
    found = re.findall(rf'<figure class="{kind}">.*?src="data:[^;]+;base64,([^"]+)"', html, re.S)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


# Measures


def test_quality_is_shown_where_a_run_told_it():
    told, untold = a_card("a.jpg", quality=0.4321), a_card("b.jpg", quality=None)
    html = page_of([told, untold])
    assert [card["quality"] for card in facts_of(html)["cards"]] == [0.4321, None]
    assert html.count(">quality</abbr></dt><dd>0.43</dd>") == 1
    assert "Quality" in html
    assert "Quality" not in page_of([untold])


def test_a_page_of_predictions_begins_with_the_lowest_quality():
    qualities = {"a.jpg": 0.8, "b.jpg": None, "c.jpg": 0.4321, "d.jpg": 0.0}
    html = page_of(
        [a_prediction(name, prediction_quality=q) for name, q in qualities.items()],
        stage="predictions",
    )
    cards = facts_of(html)["cards"]
    assert [card["name"] for card in cards] == ["d.jpg", "c.jpg", "a.jpg", "b.jpg"]
    assert html.count(">quality</abbr></dt><dd>0.43</dd>") == 1
    order = re.findall(r'name="order" value="(\w+)"( checked)?', html)
    assert order[:2] == [("prediction_quality", " checked"), ("name", "")]
    assert "Prediction quality" not in html  # there is no other to part it from
    both = page_of([a_card("a.jpg", quality=0.5, prediction=a_map(1), prediction_quality=0.25)])
    assert ">prediction quality</abbr></dt><dd>0.25</dd>" in both
    assert ">label quality</abbr></dt><dd>0.50</dd>" in both


def test_a_card_says_that_nothing_was_found_and_shows_an_empty_mask():
    card = a_card("a.jpg", prediction=a_map(1), foreground_found=False)
    html = page_of([card, a_card("b.jpg", prediction=a_map(1))])
    assert html.count("No foreground found: the mask of the prediction is empty.") == 1
    empty, other = facts_of(html)["cards"]
    assert (empty["foreground_found"], other["foreground_found"]) == (False, True)
    assert set(empty["predicted_foreground"]) == {0.0}
    assert (empty["label_iou"], other["label_iou"] > 0) == (0.0, True)


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
def test_measures_are_means_over_pixels(seed, height, width):
    card = a_card(shape=(height, width), seed=seed).label
    rtol = 256 * np.finfo(np.float64).eps  # at most 81 float64 terms, summed in another order
    semantic, saliency = (card.features[card.superpixels, k] for k in (0, 2))
    np.testing.assert_allclose(
        cue_difference(card.features, card.superpixels), np.abs(semantic - saliency).mean(), rtol
    )
    decided = np.mean([abs(2 * (c / 255) - 1) for c in card.confidence.ravel().tolist()])
    np.testing.assert_allclose(image_confidence(card.confidence), decided, rtol)


def test_the_share_of_foreground_counts_pixels_at_or_above_each_threshold():
    card = a_card()
    confidence = [int(c) for c in card.label.confidence.ravel()]
    # c / 255 >= t / 100, in whole numbers
    slow = [sum(100 * c >= 255 * t for c in confidence) / len(confidence) for t in range(101)]
    shares = facts_of(page_of([card]))["cards"][0]["foreground"]
    np.testing.assert_allclose(shares, slow, atol=0.5e-4)  # written with four decimals


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
def test_the_iou_of_masks_is_the_intersection_over_the_union_of_the_masks(seed, height, width):
    first, second = (a_map(seed + k, (height, width)) for k in (0, 1))
    pixels = list(zip(first.ravel().tolist(), second.ravel().tolist(), strict=True))
    both, either = (sum(f(c / 255 >= 0.5 for c in pixel) for pixel in pixels) for f in (all, any))
    assert iou_of_masks(first, second) == (both / either if either else 1.0)
    assert iou_of_masks(first, second) == iou_of_masks(second, first)
    assert iou_of_masks(first, first) == 1.0
    assert iou_of_masks(np.zeros_like(first), np.full_like(first, 127)) == 1.0
    assert iou_of_masks(np.zeros_like(first), np.full_like(first, 128)) == 0.0


# Pictures


@pytest.mark.parametrize(
    ("shape", "thumbnail"),
    [((24, 36), (36, 24)), ((400, 640), (320, 200)), ((1, 1), (1, 1)), ((2000, 2), (1, 320))],
)
def test_thumbnails_keep_the_shape_and_never_grow(shape, thumbnail):
    html = page_of([a_card(shape=shape)])
    for kind in ("original", "semantic", "saliency", "confidence"):
        assert [picture.size for picture in pictures_of(html, kind)] == [thumbnail]


def test_maps_are_exact():
    card = a_card()
    html = page_of([card])
    (grey,) = pictures_of(html, "confidence")
    label = card.label
    np.testing.assert_array_equal(np.asarray(grey)[..., 0], label.confidence)
    palette = np.reshape(facts_of(html)["palette"], (256, 3))
    for kind, column in (("semantic", 0), ("saliency", 2)):
        (painted,) = pictures_of(html, kind)
        levels = np.rint(255 * label.features[:, column]).astype(int)
        np.testing.assert_array_equal(np.asarray(painted), palette[levels][label.superpixels])


def test_a_prediction_stands_beside_the_label_and_leaves_the_rest_as_it_was():
    prediction = a_map(5)
    cards = [a_card(prediction=prediction), a_card()]
    html = page_of(cards)
    (grey,) = pictures_of(html, "prediction")
    np.testing.assert_array_equal(np.asarray(grey)[..., 0], prediction)
    assert len(pictures_of(html, "confidence")) == 2
    with_one, without = facts_of(html)["cards"]
    confidence = cards[0].label.confidence
    assert with_one.pop("label_iou") == round(iou_of_masks(confidence, prediction), 4)
    assert without.pop("label_iou") is None
    shares = np.mean([prediction / 255 >= t for t in (0, 0.5, 1)], axis=(1, 2))
    predicted = with_one.pop("predicted_foreground")
    np.testing.assert_allclose([predicted[t] for t in (0, 50, 100)], shares, atol=0.5e-4)
    assert without.pop("predicted_foreground") is None
    assert with_one == without


def test_a_page_of_predictions_alone_has_no_word_of_labels():
    totals = {"images": 3, "predicted": 2, "failed": 1}
    failure = Failure(image_id="b", error_kind="k", error="e")
    card = a_prediction()
    html = page_of([card, a_prediction("c")], [failure], totals=totals, stage="predictions")
    assert len(pictures_of(html, "prediction")) == 2
    (facts, _) = facts_of(html)["cards"]
    assert facts["image_confidence"] == round(image_confidence(card.prediction), 4)
    assert [facts[key] for key in ("foreground", "cue_difference", "label_iou")] == [None] * 3
    share = 100 * round(np.mean(card.prediction >= 128), 4)
    assert f'<dd class="share">{share:.1f} %</dd>' in html
    body = re.sub("<[^>]+>", " ", html[html.index("<body>") : html.index("<script")]).lower()
    for word in ("label", "weight", "semantic", "seed", "label_iou", "fallback"):
        assert word not in body
    assert "Images that have no prediction, by kind of error." in html
    empty = page_of([], stage="predictions")
    assert "No predicted image." in empty
    more = page_of([card] * 3, stage="predictions", max_cards=2)
    assert "The first 2 predicted images are shown." in more


def test_the_thumbnail_of_the_confidence_holds_pixels_of_the_map():
    confidence = np.where(np.indices((640, 640)).sum(axis=0) % 2, 255, 0).astype(np.uint8)
    (grey,) = pictures_of(page_of([a_card(shape=(640, 640), confidence=confidence)]), "confidence")
    assert set(np.unique(grey)) <= {0, 255}  # an average would give 128


def test_a_card_of_a_photograph_weighs_at_most_75_kb():
    data = pytest.importorskip("skimage.data")
    photo = data.coffee()
    height, width = photo.shape[:2]
    rows, columns = np.indices((height, width))
    waves = np.rint(20 * np.sin(rows / 9) * np.cos(columns / 11)).astype(int)  # uneven borders
    superpixels = (
        np.clip(rows + waves, 0, height - 1) * 15 // height * 20
        + np.clip(columns + waves, 0, width - 1) * 20 // width
    )
    superpixels = np.unique(superpixels, return_inverse=True)[1].reshape(height, width)
    features = np.random.default_rng(0).random((superpixels.max() + 1, 4))
    confidence = np.rint(255 * features.mean(axis=1)).astype(np.uint8)[superpixels]
    card = a_card(image=photo, confidence=confidence, superpixels=superpixels, features=features)
    two, three = (len(page_of([card] * count).encode()) for count in (2, 3))
    assert three - two < 75_000


# Figures about the run


def parsed(svg):
    return ElementTree.fromstring(str(svg))


def path_of(element):
    """Points of the first path in an element, as (x, y)."""
    steps = element.find(".//{*}path").get("d")
    return np.array(re.findall(r"[ML] ([-\d.]+) ([-\d.]+)", steps), float)


def lines_of(svg):
    """Points of the lines and marks of a plot by name, in shares of its box from bottom left."""
    groups = {group.get("id", ""): group for group in parsed(svg).findall(".//{*}g")}
    (box,) = (path_of(group) for name, group in groups.items() if name.endswith("-box"))
    (left, top), (right, bottom) = box.min(axis=0), box.max(axis=0)
    found = {}
    for name, group in groups.items():
        if match := re.search(r"(series|mark)-\d+(-raw)?$", name):
            use = group.find(".//{*}use")
            at = path_of(group) if use is None else [[float(use.get(k)) for k in "xy"]]
            shares = (np.array(at) - [left, bottom]) / [right - left, top - bottom]
            found[match[0]] = shares
    return found


def words_of(html, section):
    part = re.search(rf'<section class="{section}".*?</section>', html, re.S)[0]
    table = re.sub("<svg.*?</svg>", "", part, flags=re.S)
    return " ".join(markup.unescape(re.sub("<[^>]+>", " ", table)).split())


def ticks_of(svg):
    return [text.text for text in parsed(svg).findall(".//{*}text")]


def test_curves_are_drawn_to_scale_and_their_figures_listed():
    measured = {"pseudo_labels": a_measure(1), "predictions": a_measure(2, images=4)}
    lines = lines_of(precision_recall_svg([m.curve for m in measured.values()]))
    assert {*lines} == {"series-0", "mark-0", "series-1", "mark-1"}
    for number, m in enumerate(measured.values()):
        expected = np.stack([m.curve.recall, m.curve.precision], axis=1)
        np.testing.assert_allclose(lines[f"series-{number}"], expected, atol=1e-6)
        best = expected[[m.curve.best]]
        np.testing.assert_allclose(lines[f"mark-{number}"], best, atol=1e-6)
    html = page_of([], measured=measured)
    words = words_of(html, "evaluation")
    for name, m in (
        ("Pseudo labels", measured["pseudo_labels"]),
        ("Predictions", measured["predictions"]),
    ):
        figures = [m.mean_pr, m.mean_f, m.max_f, m.iou, m.mae]
        row = " ".join([name, str(m.images), *(f"{figure:.3f}" for figure in figures)])
        assert row in words
    assert "β² = 0.3; each map stretched" in words
    assert "different images" in words
    alone = page_of([], measured={"predictions": a_measure(2)})
    assert "different images" not in alone
    assert "Pseudo labels" not in words_of(alone, "evaluation")


def test_a_training_is_drawn_raw_and_smooth_and_summed_up():
    steps = a_training(200)
    lines = lines_of(training_svg("loss", [steps]))
    raw, smooth = lines["series-0-raw"], lines["series-0"]
    np.testing.assert_allclose(raw[:, 0], np.linspace(0, 1, 200), atol=1e-6)
    slope, start = np.polyfit(steps["loss"], raw[:, 1], 1)
    np.testing.assert_allclose(raw[:, 1], start + slope * steps["loss"], atol=1e-6)
    assert slope > 0
    slow = [steps["loss"][max(0, i - 5) : i + 6].mean() for i in range(200)]  # 200 / 40 = 5
    np.testing.assert_allclose(smooth[:, 1], start + slope * np.array(slow), atol=1e-6)
    words = words_of(page_of([], trainings={"network": steps}), "training")
    loss, right = steps["loss"][-1], steps["accuracy"][-1]
    assert f"Network 200 100.0 s {loss:.4f} {right:.4f} 16.0" in words


def test_each_round_has_its_line_on_a_common_scale():
    trainings = {
        "round 1": a_training(50),
        "round 2": a_training(100, seconds=np.full(100, 90.0)),
        "round 3": a_training(0),  # has not begun
    }
    lines = lines_of(training_svg("accuracy", list(trainings.values())))
    assert {*lines} == {f"series-{n}{raw}" for n in (0, 1) for raw in ("", "-raw")}
    ends = [lines[f"series-{n}"][-1, 0] for n in (0, 1)]
    np.testing.assert_allclose(ends, [49 / 99, 1], atol=1e-6)
    words = words_of(page_of([], trainings=trainings), "training")
    assert "Round 1 50 25.0 s" in words
    assert "Round 2 100 2 h 30 min" in words
    assert "Round 3" not in words


@pytest.mark.parametrize(("rounds", "steps"), [(1, 20_000), (3, 5_000), (12, 3_000), (40, 500)])
def test_a_plot_is_small_and_keeps_the_highs_and_lows(rounds, steps):
    loss = np.full(steps, 0.5)
    loss[::53], loss[::50] = 0.1, 0.9
    svg = training_svg("loss", [a_training(steps, loss=loss) for _ in range(rounds)])
    assert len(svg.encode()) < 60_000
    lines = lines_of(svg)
    assert len(lines) == 2 * rounds
    for points in lines.values():
        assert len(points) <= max(POINTS, FEWEST_POINTS)
    raw = lines["series-0-raw"][:, 1]
    assert raw.max() - raw.min() > 0.75
    curve = Curve(np.linspace(0.3, 1, 256), np.linspace(1, 0, 256))
    assert len(precision_recall_svg([curve] * 6).encode()) < 60_000


@pytest.mark.parametrize(
    "loss", [[np.nan], [0.5], [0.5, np.inf, np.nan], [0.3, 0.3], [1e9, 0.1], [-1e-9, 1e-9, 0]]
)
def test_a_strange_training_is_drawn(loss):
    loss = np.array(loss)
    steps = a_training(len(loss), loss=loss)
    for points in lines_of(training_svg("loss", [steps])).values():
        assert np.isfinite(points).all()
    html = page_of([], trainings={"network": steps})
    assert f" {loss[-1]:.4f} " in words_of(html, "training")


def test_a_spike_of_a_single_step_does_not_flatten_the_rest():
    steps = a_training(400)
    steps["loss"][200] = 100.0  # its running mean is still 5
    lines = lines_of(training_svg("loss", [steps]))
    assert lines["series-0-raw"].max() < 1.2  # cut off by the box
    assert np.ptp(lines["series-0-raw"][:150, 1]) > 0.02  # 0.002 were the spike shown


def test_a_curve_of_any_values_stays_inside():
    ends = np.linspace(0, 1, 256)
    points = lines_of(precision_recall_svg([Curve(ends[::-1], ends)]))["series-0"]
    np.testing.assert_allclose([points.min(), points.max()], [0, 1], atol=1e-6)


def test_ticks_are_round_numbers_and_the_axes_have_names():
    words = ticks_of(precision_recall_svg([a_measure(1).curve]))
    shares = ["0", "0.2", "0.4", "0.6", "0.8", "1"]
    assert words == [*shares, "Recall", *shares, "Precision"]
    many = ticks_of(training_svg("accuracy", [a_training(2_001)]))
    assert {"500", "1,000", "Step", "Accuracy"} <= {*many}


def test_plots_of_a_page_share_no_id_fetch_nothing_and_have_the_colours_of_the_page():
    html = page_of(
        [a_card()], measured={"predictions": a_measure(1)}, trainings={"network": a_training()}
    )
    plots = re.findall("<svg role.*?</svg>", html, re.S)
    assert len(plots) == 3
    ids = re.findall(r'\bid="([^"]+)"', html)
    assert len(ids) == len({*ids})
    for plot in plots:
        assert not re.search(r"<(style|image|script|foreignObject|metadata)", plot)
        assert not re.search(r"#[0-9a-f]{6}", plot)  # no colour of its own
        used = re.findall(r'(?:url\(|href=")#([^")]+)', plot)
        assert {*used} <= {*ids}
        assert not re.search(r'href="(?!#)|url\((?!#)|@import|@font-face', plot)
    colours = {*re.findall(r"var\((--[\w-]+)\)", "".join(plots))}
    assert {"--series-0", "--quiet", "--line"} <= colours
    defined = {*re.findall(r"(--[\w-]+):", html[html.index("<style>") : html.index("</style>")])}
    assert colours <= defined


def test_a_page_without_figures_predictions_or_training_is_as_before():
    html = page_of([a_card()], [Failure(image_id="b", error_kind="k", error="e")])
    body = html[html.index("<body>") : html.index("<script")]
    assert body == body.replace("rediction", "").replace("raining", "").replace("gainst truth", "")
    assert re.findall(r'<input type="radio" name="(\w+)" value="(\w+)"', body) == [
        *[("cutout", "cutout"), ("cutout", "plain"), ("size", "small"), ("size", "large")],
        *[
            ("order", "name"),
            ("order", "confidence"),
            ("order", "quality"),
            ("order", "cue_difference"),
        ],
    ]


# Text


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_is_escaped_wherever_it_goes(text):
    html = page_of(
        [a_card(text, fallback=text)],
        [Failure(image_id=text, error_kind=text, error=text)],
        title=text,
        run={text: text, "settings": {text: [text]}},
        totals={text: 1},
        measured={text: a_measure(1)},
        trainings={text: a_training()},
    )
    plain = page_of(
        [a_card("plain", fallback="plain")],
        [Failure(image_id="plain", error_kind="plain", error="plain")],
        run={"plain": "plain", "settings": {"plain": ["plain"]}},
        totals={"plain": 1},
        measured={"plain": a_measure(1)},
        trainings={"plain": a_training()},
    )
    tags = [re.findall(r"<[!/]?[a-z-]+", page, re.I) for page in (html, plain)]
    assert tags[0] == tags[1]
    if any(character in text for character in "<>\"'&"):
        assert text not in html
    assert facts_of(html)["cards"][0]["name"] == text


def test_the_page_is_utf_8_whatever_the_names():
    html = page_of([a_card("a\udcff\x00\r\u202eb.jpg")])
    assert facts_of(html.encode().decode())["cards"][0]["name"] == "a\ufffd␀␍[U+202E]b.jpg"


@pytest.mark.parametrize("text", STEERING)
def test_characters_that_steer_text_are_written_out(text):
    assert visible(text) == STEERING[text]
    html = page_of([a_card(text)], [Failure(image_id=text, error_kind=text, error=text)])
    assert html.count(STEERING[text]) >= 4
    assert facts_of(html)["cards"][0]["name"] == STEERING[text]


def test_the_policy_names_the_script_and_forbids_the_network():
    html = page_of([a_card()])
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', html)[1]
    assert markup.unescape(policy).split("; ") == [
        "default-src 'none'",
        "img-src data:",
        "style-src 'unsafe-inline'",
        f"script-src 'sha256-{digest}'",
        "base-uri 'none'",
        "form-action 'none'",
    ]
    assert not re.search(r"(?:src|href)=\"(?!data:|#)", html)


def test_the_same_input_gives_the_same_text():
    first, second = (
        page_of(
            [a_card(prediction=a_map(3)), a_prediction()],
            [Failure(image_id="b", error_kind="k", error="e")],
            measured={"predictions": a_measure(1)},
            trainings={"round 1": a_training(), "round 2": a_training(900)},
        )
        for _ in "12"
    )
    assert first == second


# Counts and limits


def test_an_empty_run_is_a_page_without_controls():
    html = page_of([], title="nothing yet", totals={"images": 0})
    assert "No labelled image." in html
    assert "<script" not in html
    assert "<input" not in html


def test_only_the_cards_that_are_drawn_are_read():
    source = (a_card(f"{i}.jpg") for i in itertools.count())
    html = page_of(source, max_cards=2)
    assert [card["name"] for card in facts_of(html)["cards"]] == ["0.jpg", "1.jpg"]
    assert "The first 2 labelled images are shown." in html
    assert next(source).image_id == "3.jpg"  # one more is read, to know that there are more
    assert "are shown" not in page_of([a_card(), a_card()], max_cards=2)


def test_failures_are_counted_by_kind_and_the_first_are_listed():
    failures = [Failure(image_id=f"{i}.jpg", error_kind="truncated", error="cut") for i in range(5)]
    failures += [Failure(image_id="page.jpg", error_kind="not_an_image", error="is HTML")] * 6
    html = page_of([], iter(failures), max_failures=2)
    kinds = re.findall(r"<summary><b>(.*?)</b> · (\d+)</summary>", html)
    assert kinds == [("not_an_image", "6"), ("truncated", "5")]
    assert html.count("<td>cut</td>") == 2
    assert "and 3 more of this kind" in html


def test_bars_share_one_scale_and_an_outlier_does_not_set_it():
    ordinary = [a_card(weights=[2, -1, 0, 0, 0])] * 30
    html = page_of([a_card(weights=[1e5, -1e5, 0, 0, 0]), *ordinary])
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="1" width="([\d.]+)"', html)
    assert bars[:2] == [("positive", "50.0", "50.0"), ("negative", "0.0", "50.0")]
    assert bars[5:7] == [("positive", "50.0", "50.0"), ("negative", "25.0", "25.0")]
    assert html.count('class="beyond"') == 2
    assert "<td>+1.0e+05</td>" in html
    assert "<td>\N{MINUS SIGN}1.00</td>" in html


# Errors


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"image": np.zeros((24, 36), np.uint8)},
            r"image must be uint8 \(H, W, 3\).*uint8 \(24, 36\)",
        ),
        ({"image": np.zeros((0, 36, 3), np.uint8)}, r"image must be .* with pixels"),
        ({"confidence": np.zeros((24, 36))}, r"confidence must be uint8 \(24, 36\).*got float64"),
        ({"prediction": np.zeros((24, 35), np.uint8)}, r"prediction must be uint8 .* \(24, 35\)"),
        ({"prediction": np.zeros((24, 36), bool)}, r"prediction must be uint8 .* got bool"),
        ({"superpixels": np.zeros((24, 35), int)}, r"superpixels must be \(24, 36\).*\(24, 35\)"),
        ({"superpixels": np.full((24, 36), 12)}, r"labels 0\.\.11, got \(24, 36\) with 12\.\.12"),
        ({"features": np.zeros((12, 3))}, r"features must be finite \(R, 4\), got shape \(12, 3\)"),
        ({"features": np.full((12, 4), np.nan)}, r"features must be finite"),
        ({"weights": [1, 2, 3, 4]}, r"weights must be 5 finite numbers .* got \[1\.0, 2\.0,"),
        ({"weights": [1, 2, 3, 4, np.inf]}, r"weights must be 5 finite numbers"),
    ],
)
def test_a_card_names_what_does_not_fit(changes, message):
    with pytest.raises(ValueError, match=message):
        a_card(**changes)


def test_a_card_of_nothing_is_refused():
    with pytest.raises(ValueError, match="must have a label or a prediction, got neither"):
        Card(image_id="a.jpg", image=np.zeros((2, 2, 3), np.uint8))


@pytest.mark.parametrize("name", ["max_cards", "max_failures", "thumbnail_side"])
def test_limits_below_their_least_are_refused(name):
    with pytest.raises(ValueError, match="max_cards and max_failures must be at least 0"):
        page_of([], **{name: -1})


# In a browser: the file on disk, nothing served

CARDS = [
    a_card("cats/b10.jpg", seed=1, fallback="no foreground seed", shape=(240, 320)),
    a_card("cats/b9.jpg", seed=2, confidence=np.full((24, 36), 255, np.uint8)),
    a_card("dogs/C.jpg", seed=3, features=np.tile([1.0, 0, 0, 0], (12, 1))),
    *(a_card(name, seed=10 + i) for i, name in enumerate(HOSTILE)),
]
FAILURES = [Failure(image_id=text, error_kind="not_an_image", error=text) for text in HOSTILE]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    path = tmp_path_factory.mktemp("a report #1") / "index.html"
    path.write_text(page_of(CARDS, FAILURES), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(browser, address):
    browser.get_log("browser"), browser.get_log("performance")  # forget the page before
    browser.get("about:blank")  # or the same address would keep the controls as they were
    browser.get(address)
    yield browser
    assert browser.get_log("browser") == []  # no error, no warning, nothing refused


def until(check, seconds=10):
    stop = time.monotonic() + seconds
    while not (result := check()):
        assert time.monotonic() < stop, f"still waiting for {check.__name__} after {seconds} s"
        time.sleep(0.05)
    return result


def pixels_of(page, image_id, kind):
    """What a canvas of a card shows, once it is drawn: uint8 (H, W, 4)."""

    def drawn():
        return page.execute_script(
            """
            const [imageId, kind] = arguments;
            const card = [...document.querySelectorAll(".card")]
              .find((node) => node.querySelector(".name").textContent === imageId);
            card.scrollIntoView();
            const canvas = card.querySelector(`.${kind} canvas`);
            const { width, height } = canvas;
            if (!width) return null;
            const copy = Object.assign(document.createElement("canvas"), { width, height });
            const context = copy.getContext("2d", { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            return [height, width, [...context.getImageData(0, 0, width, height).data]];
            """,
            image_id,
            kind,
        )

    height, width, values = until(drawn)
    return np.reshape(values, (height, width, 4)).astype(np.uint8)


def set_threshold(page, threshold):
    page.execute_script(
        """
        const slider = document.querySelector("#threshold");
        slider.value = arguments[0];
        slider.dispatchEvent(new Event("input"));
        """,
        threshold,
    )
    until_level(page, f"{threshold:.2f}")


def until_level(page, text):
    until(lambda: page.execute_script("return byId('level').textContent") == text)


def mask_at(threshold, confidence):
    return 100 * confidence.astype(int) >= 255 * round(100 * threshold)  # in whole numbers


def names_shown(page):
    return page.execute_script(
        """
        return [...document.querySelectorAll(".card:not([hidden]) .name")].map((n) => n.textContent)
        """
    )


def click(page, selector):
    page.execute_script("document.querySelector(arguments[0]).click()", selector)


@pytest.mark.browser
def test_the_page_opens_from_disk_draws_and_asks_for_nothing(page, address):
    widths = """
        return [...document.querySelectorAll(".card")].flatMap((card) => {
          card.scrollIntoView(); // far from the window nothing is loaded
          return [...card.querySelectorAll("img")].map((image) => image.naturalWidth);
        });
        """
    until(lambda: min(page.execute_script(widths)) > 0)
    expected = [card.image.shape[1] for card in CARDS for _ in range(4)]
    assert sorted(page.execute_script(widths)) == sorted(expected)
    log = [json.loads(entry["message"])["message"] for entry in page.get_log("performance")]
    sent = [m["params"] for m in log if m["method"] == "Network.requestWillBeSent"]
    # the browser's own start page asks for things too
    asked = [m["request"]["url"] for m in sent if m["documentURL"] == address]
    assert [url for url in asked if not url.startswith("data:")] == [address]
    assert page.execute_script("return document.styleSheets.length") == 1


@pytest.mark.browser
def test_the_browser_reads_hostile_text_as_text(page):
    assert sorted(names_shown(page)) == sorted(card.image_id for card in CARDS)
    cells = "return [...document.querySelectorAll('.failed td')].map((cell) => cell.textContent)"
    assert page.execute_script(cells) == [text for text in HOSTILE for _ in range(2)]
    assert (
        page.execute_script("return document.querySelectorAll('[onerror], [onload]').length") == 0
    )
    assert page.execute_script("return document.scripts.length") == 2
    labels = "return document.querySelector('#failures summary').textContent"
    assert page.execute_script(labels) == f"not_an_image · {len(HOSTILE)}"


@pytest.mark.browser
def test_the_report_of_a_hostile_run_shows_everything_as_text_and_runs_nothing(browser, tmp_path):
    """The whole way: a stored run, the report, a real browser."""
    texts = [*HOSTILE, *STEERING]
    home = tmp_path / "<img src=x onerror=alert(7)>"
    home.mkdir()
    rows = [
        labelled(home, f"{number} {text}".replace("//", "/ /"), fallback=text)
        for number, text in enumerate(texts)
        if "\0" not in text
    ]
    rows += [failed(text, kind=text, error=text) for text in texts]
    output = a_run(home, rows)
    output = Folder.at(str(home / 'run "><script>alert(8)<').rstrip())
    os.rename(home / "run", output.path)
    run = {
        "saff": f"{__version__}.{texts[0]}",
        "digest": texts[1],
        "config": {text: [text] for text in texts},
    }
    output.write("run.json", json.dumps(run).encode())
    browser.get_log("browser")
    browser.get(Path(write_report(output).uri).as_uri())
    browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
    shown = browser.execute_script("return document.body.innerText")
    flat = " ".join(shown.split())
    for text in texts:
        spelt = " ".join(STEERING.get(text, text).split())
        assert flat.count(spelt) >= 3, text  # kind, image, error
        setting = visible(json.dumps(text, ensure_ascii=False))
        assert " ".join(setting.split()) in flat
    assert 'run "><script>alert(8)<' in shown
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200e\u200f\u2028\x85\x1b]", shown)
    foreign = "[onerror], [onload], template, iframe, a[href^='javascript'], img:not([src^=data])"
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.execute_script(count, foreign) == 0
    assert browser.execute_script("return document.scripts.length") == 2
    assert browser.get_log("browser") == []  # no alert, no script refused, nothing fetched
    assert browser.title.startswith('run "><script>alert(8)<')


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_plots_can_be_read_on_a_light_and_on_a_dark_page(browser, tmp_path, scheme):
    path = tmp_path / "index.html"
    more = {"measured": {"predictions": a_measure(1)}, "trainings": {"network": a_training()}}
    path.write_text(page_of([a_card()], **more), encoding="utf-8")
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    try:
        browser.get(path.as_uri())
        colours = browser.execute_script(
            """
            const rgb = (text) => text.match(/[\\d.]+/g).slice(0, 3).map(Number);
            const style = (node) => getComputedStyle(node);
            const lines = [...document.querySelectorAll(".plot svg g[id*=series] path")];
            const words = [...document.querySelectorAll(".plot svg text")];
            const fonts = new Set(words.map((node) => style(node).fontFamily));
            const { backgroundColor, fontFamily } = style(document.body);
            return [
              rgb(backgroundColor),
              lines.map((node) => rgb(style(node).stroke)),
              words.map((node) => rgb(style(node).fill)),
              fonts.size === 1 && fonts.has(fontFamily),
            ];
            """
        )
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})
    paper, lines, words, has_font_of_the_page = colours
    assert (luminance(paper) > 0.5) == (scheme == "light")
    assert len(lines) == 5
    assert len(words) > 20
    for colour in lines:
        assert contrast(paper, colour) >= 3  # WCAG 1.4.11, of graphical objects
    for colour in words:
        assert contrast(paper, colour) >= 4.5  # WCAG 1.4.3, of text
    assert has_font_of_the_page


def luminance(rgb):
    shares = [c / 255 for c in rgb]
    linear = [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one, other):
    low, high = sorted(luminance(rgb) for rgb in (one, other))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.browser
def test_the_slider_changes_every_mask(page):
    names = names_shown(page)
    for threshold in (0, 0.29, 0.5, 0.51, 1):
        set_threshold(page, threshold)
        for card in CARDS[:2]:
            expected = mask_at(threshold, card.label.confidence)
            cutout = pixels_of(page, card.image_id, "cutout")
            np.testing.assert_array_equal(cutout[..., 3], 255 * expected)  # alpha
            shares = page.execute_script(
                "return [...document.querySelectorAll('.share')].map((node) => node.textContent)"
            )
            share = shares[names.index(card.image_id)]
            # of the four decimals that the page holds
            assert share == f"{100 * round(expected.mean(), 4):.1f} %"


@pytest.mark.browser
def test_the_keyboard_moves_the_threshold(page):
    page.find_element("id", "threshold").send_keys("\ue014" * 20)  # arrow right
    until_level(page, "0.70")
    cutout = pixels_of(page, CARDS[0].image_id, "cutout")
    np.testing.assert_array_equal(cutout[..., 3], 255 * mask_at(0.7, CARDS[0].label.confidence))
    page.find_element("id", "reset").send_keys("\ue007")  # enter
    until_level(page, "0.50")


@pytest.mark.browser
def test_mask_plain_mask_and_confidence_are_drawn_from_the_confidence(page):
    card = CARDS[0]
    inside = mask_at(0.5, card.label.confidence)
    click(page, "[name=cutout][value=plain]")
    plain = pixels_of(page, card.image_id, "cutout")
    np.testing.assert_array_equal(plain[..., :3], np.stack([255 * inside] * 3, axis=-1))
    assert plain[..., 3].min() == 255
    mask = pixels_of(page, card.image_id, "mask")
    around = np.pad(inside, 1, mode="edge")
    sides = [around[:-2, 1:-1], around[2:, 1:-1], around[1:-1, :-2], around[1:-1, 2:]]
    border = np.any([side != inside for side in sides], axis=0)
    np.testing.assert_array_equal((mask == [255, 64, 129, 255]).all(axis=-1), border)
    palette = np.reshape(facts_of(page_of([card]))["palette"], (256, 3))
    confidence = pixels_of(page, card.image_id, "confidence")
    np.testing.assert_array_equal(confidence[..., :3], palette[card.label.confidence])


@pytest.mark.browser
def test_cards_sort_by_name_and_by_every_measure_both_ways(page):
    plain = [card.image_id for card in CARDS[:3]]
    assert [n for n in names_shown(page) if n in plain] == [
        "cats/b9.jpg",
        "cats/b10.jpg",
        "dogs/C.jpg",
    ]
    measures = {
        "confidence": lambda card: image_confidence(card.label.confidence),
        "quality": lambda card: card.label.quality,
        "cue_difference": lambda card: -cue_difference(card.label.features, card.label.superpixels),
    }
    for order, key in measures.items():
        click(page, f"[name=order][value={order}]")
        expected = [card.image_id for card in sorted(CARDS, key=key)]
        assert names_shown(page) == expected
        click(page, "#reverse")
        assert names_shown(page) == expected[::-1]


@pytest.mark.browser
def test_cards_are_found_by_name_and_by_fallback(page):
    search = page.find_element("id", "search")
    search.send_keys("CATS/")
    assert names_shown(page) == ["cats/b9.jpg", "cats/b10.jpg"]
    click(page, "#only-fallback")
    assert names_shown(page) == ["cats/b10.jpg"]
    search.clear()
    search.send_keys("e\u0301te\u0301")  # été, as some systems spell it in file names
    assert names_shown(page) == []
    click(page, "#only-fallback")
    assert names_shown(page) == ["fotos/Zürich/été #1 50% 写真 🐈.jpg"]


COMPARED = [
    a_card("a.jpg", seed=1, prediction=a_map(21)),
    a_card("b.jpg", seed=2),  # has no prediction
    a_prediction("c.jpg", seed=3),  # nor this a label
    a_card("d.jpg", seed=4, prediction=np.full((24, 36), 200, np.uint8)),
    a_card("e.jpg", seed=5, prediction=a_card(seed=5).label.confidence),
]


@pytest.fixture
def compared(browser, tmp_path):
    path = tmp_path / "index.html"
    options = {"measured": {"predictions": a_measure(1)}, "trainings": {"network": a_training()}}
    path.write_text(page_of(COMPARED, **options), encoding="utf-8")
    browser.get_log("browser")
    browser.get(path.as_uri())
    yield browser
    assert browser.get_log("browser") == []


def shares_of(page):
    script = """
        return [...document.querySelectorAll(".card")].map((card) => [
          card.querySelector(".name").textContent, card.querySelector(".share").textContent])
        """
    return dict(page.execute_script(script))


def captions_of(page):
    script = (
        "return [...document.querySelectorAll('.cutout .what')].map((node) => node.textContent)"
    )
    return page.execute_script(script)


@pytest.mark.browser
def test_the_masks_switch_to_those_of_the_prediction(compared):
    palette = np.reshape(facts_of(page_of(COMPARED))["palette"], (256, 3))
    for card in (COMPARED[0], COMPARED[2]):
        drawn = pixels_of(compared, card.image_id, "prediction")
        np.testing.assert_array_equal(drawn[..., :3], palette[card.prediction])
    assert captions_of(compared) == [
        f"Cut-out, {what}"
        for what in ("pseudo label",) * 2 + ("prediction",) + ("pseudo label",) * 2
    ]
    click(compared, "[name=source][value=prediction]")
    assert captions_of(compared)[:3] == [
        f"Cut-out, {what}" for what in ("prediction", "pseudo label", "prediction")
    ]
    for threshold in (0.29, 0.5, 0.51):
        set_threshold(compared, threshold)
        for card in COMPARED[:3]:
            used = card.label.confidence if card.prediction is None else card.prediction
            expected = mask_at(threshold, used)
            alpha = pixels_of(compared, card.image_id, "cutout")[..., 3]
            np.testing.assert_array_equal(alpha, 255 * expected)
            share = f"{100 * round(expected.mean(), 4):.1f} %"
            assert shares_of(compared)[card.image_id] == share


@pytest.mark.browser
def test_where_nothing_was_found_the_mask_is_empty_at_every_threshold(browser, tmp_path):
    cards = [
        a_card("a.jpg", prediction=a_map(1), prediction_quality=0.0, foreground_found=False),
        a_card("b.jpg", prediction=a_map(2), prediction_quality=0.75),
        a_prediction("c.jpg", prediction_quality=0.5),
    ]
    path = tmp_path / "index.html"
    path.write_text(page_of(cards[::-1]), encoding="utf-8")
    browser.get(path.as_uri())
    assert names_shown(browser) == ["a.jpg", "c.jpg", "b.jpg"]  # the lowest quality first
    click(browser, "[name=source][value=prediction]")
    for threshold in (0.0, 0.5):
        set_threshold(browser, threshold)
        assert not pixels_of(browser, "a.jpg", "cutout")[..., 3].any()
        assert shares_of(browser)["a.jpg"] == "0.0 %"
        assert pixels_of(browser, "b.jpg", "cutout")[..., 3].any()
    click(browser, "[name=source][value=difference]")
    click(browser, "[name=cutout][value=plain]")
    label = mask_at(0.5, cards[0].label.confidence)
    expected = np.where(label[..., None], [255, 64, 129], 0)
    np.testing.assert_array_equal(pixels_of(browser, "a.jpg", "cutout")[..., :3], expected)


@pytest.mark.browser
def test_the_difference_of_the_masks_is_coloured(compared):
    click(compared, "[name=source][value=difference]")
    click(compared, "[name=cutout][value=plain]")
    set_threshold(compared, 0.4)
    card = COMPARED[0]
    label, predicted = (mask_at(0.4, c) for c in (card.label.confidence, card.prediction))
    colours = np.array([[0, 0, 0], [255, 64, 129], [64, 160, 255], [255, 255, 255]])
    plain = pixels_of(compared, card.image_id, "cutout")
    np.testing.assert_array_equal(plain[..., :3], colours[label + 2 * predicted])
    mask = pixels_of(compared, card.image_id, "mask")
    both = label & predicted
    (photo,) = pictures_of(page_of([card]), "original")
    np.testing.assert_array_equal(mask[both][:, :3], np.asarray(photo)[both])
    percent = [f"{100 * round(m.mean(), 4):.1f}" for m in (label, predicted)]
    assert shares_of(compared)["a.jpg"] == f"{percent[0]} / {percent[1]} %"
    only = mask_at(0.4, COMPARED[1].label.confidence)
    alone = pixels_of(compared, "b.jpg", "cutout")
    np.testing.assert_array_equal(alone[..., :3], np.stack([255 * only] * 3, axis=-1))


@pytest.mark.browser
def test_cards_sort_by_label_iou_with_those_that_have_none_last(compared):
    def measure(card):
        return iou_of_masks(card.label.confidence, card.prediction)

    both = [card for card in COMPARED if card.label and card.prediction is not None]
    expected = [card.image_id for card in sorted(both, key=measure)]
    click(compared, "[name=order][value=label_iou]")
    assert names_shown(compared) == [*expected, "b.jpg", "c.jpg"]
    click(compared, "#reverse")
    assert names_shown(compared) == [*expected[::-1], "b.jpg", "c.jpg"]


@pytest.mark.browser
def test_a_picture_from_the_network_is_refused(browser, address):
    browser.get(address)
    refused = browser.execute_async_script(
        """
        const done = arguments[arguments.length - 1];
        document.addEventListener("securitypolicyviolation", (event) => done(event.blockedURI));
        document.body.append(Object.assign(new Image(), { src: "http://127.0.0.1:9/x.png" }));
        """
    )
    assert refused == "http://127.0.0.1:9/x.png"


@pytest.mark.browser
@pytest.mark.parametrize("width", [320, 390, 900])
def test_nothing_is_wider_than_the_window(browser, tmp_path, width):
    long = "folder/" + 120 * "x" + ".jpg"
    failure = Failure(image_id=long, error_kind=60 * "k", error=200 * "e")
    cards = [a_card(long, fallback=150 * "f"), a_card(prediction=a_map(1)), a_prediction()]
    more = {"measured": {60 * "m": a_measure(1)}, "trainings": {60 * "n": a_training(10_000)}}
    path = tmp_path / "index.html"
    run = {"digest": "0f" * 64, "settings": {"text": 300 * "s"}}
    path.write_text(page_of(cards, [failure], title=80 * "t", run=run, **more), "utf-8")
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        browser.get(path.as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
        click(browser, "[name=source][value=difference]")  # its key is shown
        edges = """
            const root = document.documentElement;
            const right = (node) => node.getBoundingClientRect().right;
            const boxes = [...document.querySelectorAll("body *:not(.scrolling *)")];
            return [root.clientWidth, root.scrollWidth, ...boxes.map(right)];
            """
        window, *rights = browser.execute_script(edges)
        assert width - 20 < window <= width  # less the scroll bar
        assert max(rights) <= window
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
