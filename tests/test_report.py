import base64
import hashlib
import html as markup
import io
import itertools
import json
import re
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st
from PIL import Image

from saff.report import Card, Failure, disagreement, image_confidence, render

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>.jpg",
    "\"' onload='alert(3)' \".png",
    "<!--<script>",
    "]]>{{ 7*7 }}{% raw %}&lt;&amp;amp; .jpg",
    "fotos/Zürich/été #1 50% 写真 🐈.jpg",
    "folder with  spaces/a.jpg",
]
RUN = {"config": "default", "digest": "0f" * 32, "saff": "0.1.0", "settings": {"count": 250}}
TOTALS = {"images": 10_582, "labelled": 10_580, "failed": 2}


def a_card(image_id="a.jpg", shape=(24, 36), seed=0, **changes):
    rng = np.random.default_rng(seed)
    rows, columns = np.indices(shape)
    superpixels = (rows * 3 // shape[0]) * 4 + columns * 4 // shape[1]
    superpixels = np.unique(superpixels, return_inverse=True)[1].reshape(shape).astype(np.int32)
    fields = {
        "image": rng.integers(0, 256, (*shape, 3), np.uint8),
        "confidence": rng.integers(0, 256, shape, np.uint8),
        "superpixels": superpixels,
        "features": rng.random((superpixels.max() + 1, 4)),
        "weights": [0.5, -0.25, 1.0, 0.125, -0.0625],
        "seeds_foreground": 7,
        "seeds_background": 31,
    }
    return Card(image_id=image_id, **{**fields, **changes})


def page_of(cards, failures=(), **options):
    return render(cards, failures, **{"title": "a run", "run": RUN, "totals": TOTALS, **options})


def facts_of(html):
    data = re.search(r'<script type="application/json" id="facts">(.*?)</script>', html, re.S)
    return json.loads(data[1])


def pictures_of(html, kind):
    found = re.findall(rf'<figure class="{kind}">.*?src="data:[^;]+;base64,([^"]+)"', html, re.S)
    return [Image.open(io.BytesIO(base64.b64decode(content))) for content in found]


# Measures


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 9))
@settings(deadline=None)
def test_measures_are_means_over_pixels(seed, height, width):
    card = a_card(shape=(height, width), seed=seed)
    rtol = 256 * np.finfo(np.float64).eps  # at most 81 float64 terms, summed in another order
    semantic, saliency = (card.features[card.superpixels, k] for k in (0, 2))
    np.testing.assert_allclose(
        disagreement(card.features, card.superpixels), np.abs(semantic - saliency).mean(), rtol
    )
    decided = np.mean([abs(2 * (c / 255) - 1) for c in card.confidence.ravel().tolist()])
    np.testing.assert_allclose(image_confidence(card.confidence), decided, rtol)


def test_the_share_of_foreground_counts_pixels_at_or_above_each_threshold():
    card = a_card()
    confidence = [int(c) for c in card.confidence.ravel()]
    # c / 255 >= t / 100, in whole numbers
    slow = [sum(100 * c >= 255 * t for c in confidence) / len(confidence) for t in range(101)]
    shares = facts_of(page_of([card]))["cards"][0]["foreground"]
    np.testing.assert_allclose(shares, slow, atol=0.5e-4)  # written with four decimals


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
    np.testing.assert_array_equal(np.asarray(grey)[..., 0], card.confidence)
    palette = np.reshape(facts_of(html)["palette"], (256, 3))
    for kind, column in (("semantic", 0), ("saliency", 2)):
        (painted,) = pictures_of(html, kind)
        levels = np.rint(255 * card.features[:, column]).astype(int)
        np.testing.assert_array_equal(np.asarray(painted), palette[levels][card.superpixels])


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


# Text


@pytest.mark.parametrize("text", HOSTILE)
def test_untrusted_text_is_escaped_wherever_it_goes(text):
    html = page_of(
        [a_card(text, fallback=text)],
        [Failure(image_id=text, error_kind=text, error=text)],
        title=text,
        run={text: text, "settings": {text: [text]}},
        totals={text: 1},
    )
    plain = page_of(
        [a_card("plain", fallback="plain")],
        [Failure(image_id="plain", error_kind="plain", error="plain")],
        run={"plain": "plain", "settings": {"plain": ["plain"]}},
        totals={"plain": 1},
    )
    tags = [re.findall(r"<[!/]?[a-z-]+", page, re.I) for page in (html, plain)]
    assert tags[0] == tags[1]
    if any(character in text for character in "<>\"'&"):
        assert text not in html
    assert facts_of(html)["cards"][0]["name"] == text


def test_the_page_is_utf_8_whatever_the_names():
    html = page_of([a_card("a\udcff\x00\r\u202eb.jpg")])
    assert facts_of(html.encode().decode())["cards"][0]["name"] == "a\ufffd␀␍\u202eb.jpg"


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
        page_of([a_card()], [Failure(image_id="b", error_kind="k", error="e")]) for _ in "12"
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
def browser(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium is not installed")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("chromium and chromedriver (Debian: chromium, chromium-driver) not found")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "disable-dev-shm-usage"),
        *("no-first-run", "disable-background-networking", "disable-component-update"),
        *("disable-sync", "window-size=1280,900", "lang=en"),
        f"user-data-dir={tmp_path_factory.mktemp('profile')}",
    ):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    options.unhandled_prompt_behavior = "ignore"  # an alert stays, and fails what comes next
    session = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield session
    session.quit()


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
def test_the_slider_changes_every_mask(page):
    names = names_shown(page)
    for threshold in (0, 0.29, 0.5, 0.51, 1):
        set_threshold(page, threshold)
        for card in CARDS[:2]:
            expected = mask_at(threshold, card.confidence)
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
    np.testing.assert_array_equal(cutout[..., 3], 255 * mask_at(0.7, CARDS[0].confidence))
    page.find_element("id", "reset").send_keys("\ue007")  # enter
    until_level(page, "0.50")


@pytest.mark.browser
def test_mask_plain_mask_and_confidence_are_drawn_from_the_confidence(page):
    card = CARDS[0]
    inside = mask_at(0.5, card.confidence)
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
    np.testing.assert_array_equal(confidence[..., :3], palette[card.confidence])


@pytest.mark.browser
def test_cards_sort_by_name_confidence_and_disagreement_both_ways(page):
    plain = [card.image_id for card in CARDS[:3]]
    assert [n for n in names_shown(page) if n in plain] == [
        "cats/b9.jpg",
        "cats/b10.jpg",
        "dogs/C.jpg",
    ]
    measures = {
        "confidence": lambda card: image_confidence(card.confidence),
        "disagreement": lambda card: -disagreement(card.features, card.superpixels),
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
    card = a_card(long, fallback=150 * "f")
    path = tmp_path / "index.html"
    run = {"digest": "0f" * 64, "settings": {"text": 300 * "s"}}
    path.write_text(page_of([card], [failure], title=80 * "t", run=run), encoding="utf-8")
    screen = {"width": width, "height": 800, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    try:
        browser.get(path.as_uri())
        browser.execute_script("document.querySelectorAll('details').forEach((d) => d.open = true)")
        edges = """
            const root = document.documentElement;
            const right = (node) => node.getBoundingClientRect().right;
            const boxes = [...document.querySelectorAll("body *")];
            return [root.clientWidth, root.scrollWidth, ...boxes.map(right)];
            """
        window, *rights = browser.execute_script(edges)
        assert width - 20 < window <= width  # less the scroll bar
        assert max(rights) <= window
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
