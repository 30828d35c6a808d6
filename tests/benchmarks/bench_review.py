"""A review of many rows: its ranking, its pages, and a browser that goes through them; prints JSON.

    python tests/benchmarks/bench_review.py [--rows 100000] [--pages 500]

Rows are real labels of 64 small photographs, repeated under names of their own; their quality is
drawn for each, so that a page has images of all parts of the run.  A headless Chromium opens pages
from the disk: time until something is drawn and until all pictures are loaded (the first picture is
there in between), the memory of all its processes, time to the next page, and whether marks are
there after pages were left.
"""

import argparse
import dataclasses
import json
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
from bench_label_image import machine
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from skimage import data

sys.path.insert(0, str(Path(__file__).parents[1]))

from saff import config, label_image
from saff.images import encode_png
from saff.marks import read_changes
from saff.quality import to_levels
from saff.ranking import rank, write_ranking
from saff.review_pages import PER_PAGE, write_pages
from saff.runs import claim
from saff.shards import PSEUDO_LABELS, write_rows
from saff.storage import Folder
from stored_runs import labelled

PART, DISTINCT, LOOKED_AT = 1024, 64, 10
HEIGHT, WIDTH = 94, 125
LOADED = """
const done = arguments[0];
const [page] = performance.getEntriesByType("navigation");
new PerformanceObserver((list) => {
  const first = list.getEntriesByName("first-contentful-paint");
  if (first.length) done({"first paint": first[0].startTime, loaded: page.loadEventEnd});
}).observe({ type: "paint", buffered: true });
"""


def photographs():
    """Cuts of the photographs that scikit-image carries."""
    rng = np.random.default_rng(0)
    whole = [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()]
    for number in range(DISTINCT):
        image = whole[number % len(whole)]
        top = rng.integers(0, image.shape[0] - 2 * HEIGHT)
        left = rng.integers(0, image.shape[1] - 2 * WIDTH)
        yield np.ascontiguousarray(image[top : top + 2 * HEIGHT : 2, left : left + 2 * WIDTH : 2])


def a_run(home, count):
    """A run of so many rows."""
    output = Folder.at(str(home / "run"))
    claim(output, {"saff": "0.2.0", "config": {}, "digest": "0" * 64})
    settings = dataclasses.replace(config.fast(), network_share=0.0, encoder_side=64)
    rows = []
    for number, image in enumerate(photographs()):
        found = label_image(image, settings)
        levels, mask = to_levels(found.confidence), found.pseudo_label.astype(np.uint8)
        row = labelled(home, f"{number}.png", levels, encode_png(image))
        rows.append(row | {"pseudo_label": encode_png(mask)})
    quality = np.random.default_rng(1).random(count)
    for first in range(0, count, PART):
        part = [
            rows[number % DISTINCT]
            | {"image_id": f"{number // 1000}/{number:07}.png", "quality": float(quality[number])}
            for number in range(first, min(first + PART, count))
        ]
        name = f"part-{first // PART:07}.parquet"
        write_rows(output / "pseudo_labels", name, part, PSEUDO_LABELS)
    return output


class Clock:
    """Wall and CPU seconds of the steps of this process."""

    def __init__(self):
        self.seconds = {}

    def time(self, name, step):
        wall, cpu = time.perf_counter(), time.process_time()
        found = step()
        self.seconds[name] = {
            "wall": round(time.perf_counter() - wall, 1),
            "cpu": round(time.process_time() - cpu, 1),
        }
        return found


def browse(pages, downloads):
    """Look at the first pages one after the other, mark, come back, and save the marks."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in ("--headless=new", "--no-sandbox", "--window-size=1400,1000"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    browser = webdriver.Chrome(options=options, service=service)
    browser.set_script_timeout(60)
    try:
        seen, memory = [], []
        browser.get(f"file://{pages[0]}")
        for number in range(LOOKED_AT):
            seen.append(browser.execute_async_script(LOADED))
            tree = psutil.Process(service.process.pid).children(recursive=True)
            memory.append(sum(process.memory_full_info().pss for process in tree) / 2**20)
            card = browser.find_elements("css selector", ".card")[number]
            start = time.perf_counter()
            card.send_keys("r" if number % 2 else "a")
            marking = time.perf_counter() - start
            start = time.perf_counter()
            browser.find_element("css selector", "a[rel=next]").send_keys(Keys.ENTER)
            browser.execute_script("return document.querySelector('h1').textContent")
            following = time.perf_counter() - start
            seen[-1] |= {"mark": 1000 * marking, "next page": 1000 * following}
        browser.get(f"file://{pages[0]}")
        kept = browser.find_element("css selector", "#count").text
        browser.find_element("css selector", "#save").click()
        end = time.monotonic() + 30
        while not (saved := list(downloads.glob("marks.csv"))) and time.monotonic() < end:
            time.sleep(0.05)
        changes = read_changes(saved[0].read_bytes(), saved[0].name)
    finally:
        browser.quit()
    names = {name: [page[name] for page in seen] for name in seen[0]}
    return {
        "pages looked at": LOOKED_AT,
        **{f"{n}, ms": [round(f(v)) for f in (np.median, max)] for n, v in names.items()},
        "browser, MiB": [round(memory[0]), round(max(memory))],
        "marks kept": kept,
        "marks saved": len(changes),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--pages", type=int, default=500)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        work, clock = Path(scratch), Clock()
        (work / "downloads").mkdir()
        output = a_run(work, args.rows)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        table = clock.time("rank", lambda: rank(output, "pseudo_labels", {}))
        clock.time("write ranking", lambda: write_ranking(output, table))
        pages = clock.time(
            "write pages", lambda: write_pages(output, "pseudo_labels", table, args.pages)
        )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        sizes = [Path(page).stat().st_size / 2**20 for page in pages]
        print(
            json.dumps(
                {
                    "benchmark": "review in a browser",
                    "rows": args.rows,
                    "pages": len(pages),
                    "images on a page": PER_PAGE,
                    "MiB of a page": round(float(np.median(sizes)), 2),
                    "seconds": clock.seconds,
                    "most memory of this process, MiB": [round(before), round(peak)],
                    **browse(pages, work / "downloads"),
                    **machine(),
                },
                indent=1,
            )
        )


if __name__ == "__main__":
    main()
