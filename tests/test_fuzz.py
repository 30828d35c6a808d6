"""Damaged and hostile bytes of every kind that is read: a result, or the error that is promised."""

import contextlib
import dataclasses
import io
import json
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, example, given, settings, strategies as st

from saff import config, modelfile
from saff.errors import SaffError, WeightsError
from saff.ids import is_safe_id
from saff.images import ImageError, decode, decode_png, encode_png
from saff.lists import read_manifest
from saff.picture_export import PictureNames
from saff.shards import PSEUDO_LABELS, count_rows, read_column, read_rows
from saff.storage import Folder

KINDS = {"empty", "not_an_image", "unsupported", "truncated", "corrupt", "no_pixels"}
KINDS |= {"too_many_pixels"}
MOST_PIXELS = 21 * 34  # as many as the pictures have
MOST_MEMORY = 150_000_000  # bytes; a bomb that is decoded takes more than its 300 MB
PEAK = Path("/proc/self/clear_refs")  # Linux: writing 5 forgets the highest memory so far
fuzz = settings(
    max_examples=250,
    deadline=timedelta(seconds=10),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


# Hostile bytes


def numbers(width):
    """Numbers at which readers of a field of so many bytes err."""
    top = 2 ** (8 * width)
    return [n.to_bytes(width, "big") for n in (0, 1, top // 2 - 1, top // 2, top - 2, top - 1)]


EXTREMES = [n[::step] for width in (1, 2, 4, 8) for n in numbers(width) for step in (1, -1)]


@st.composite
def mutated(draw, files):
    """One of some files with a few places changed, cut out, repeated or set to an extreme."""
    data = bytearray(draw(st.sampled_from(files)))
    for _ in range(draw(st.integers(1, 5))):
        place = draw(st.integers(0, len(data)))
        if draw(st.booleans()):  # footers and headers decide most
            place = min(place % 400, len(data))
            place = place if draw(st.booleans()) else len(data) - place
        way = draw(st.sampled_from(["set", "flip", "cut", "repeat", "extreme", "end"]))
        size = draw(st.integers(1, 40))
        if way == "set":
            new = draw(st.binary(min_size=1, max_size=8))
            data[place : place + len(new)] = new
        elif way == "flip" and place < len(data):
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif way == "cut":
            del data[place : place + size]
        elif way == "repeat":
            data[place:place] = data[place : place + size]
        elif way == "extreme":
            new = draw(st.sampled_from(EXTREMES))
            data[place : place + len(new)] = new
        elif draw(st.integers(0, 9)) == 0:
            del data[place:]
    return bytes(data)


def outcome(read, allowed):
    """Give what it reads, or the error that is promised; any other passes."""
    try:
        return read()
    except allowed as error:
        return error


@contextlib.contextmanager
def bounded_memory():
    """Fail if the block takes much more memory than this process had before."""
    if not PEAK.exists():
        yield
        return
    before = memory("VmRSS")
    PEAK.write_text("5")
    yield
    assert memory("VmHWM") - before < MOST_MEMORY


def memory(what):
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(what))
    return int(line.split()[1]) * 1000


@pytest.mark.skipif(not PEAK.exists(), reason="the peak of memory is read from Linux's /proc")
def test_the_bound_on_memory_holds():
    with pytest.raises(AssertionError), bounded_memory():
        # far more: Linux may take cold pages back meanwhile
        np.ones(4 * MOST_MEMORY, np.uint8).sum()


# Images

ROWS, COLUMNS = np.mgrid[:21, :34]
PICTURE = np.stack([COLUMNS * 7, ROWS * 12, ROWS * 6 + COLUMNS * 3], axis=-1).astype(np.uint8)


def written(file_format, mode="RGB", **options):
    buffer = io.BytesIO()
    PIL.Image.fromarray(PICTURE).convert(mode).save(buffer, file_format, **options)
    return buffer.getvalue()


PICTURES = {
    "JPEG": [written("JPEG"), written("JPEG", progressive=True), written("JPEG", "CMYK")],
    "PNG": [written("PNG"), written("PNG", "P"), written("PNG", "LA"), written("PNG", "1")],
    "WebP": [written("WEBP"), written("WEBP", lossless=True), written("WEBP", "RGBA")],
    "GIF": [written("GIF", "P"), written("GIF", "P", interlace=1)],
    "TIFF": [
        written("TIFF"),
        *(written("TIFF", compression=c) for c in ("tiff_lzw", "jpeg", "tiff_adobe_deflate")),
        written("TIFF", "1", compression="group4"),
    ],
    "BMP": [written("BMP"), written("BMP", "P"), written("BMP", "1")],
}


@pytest.mark.slow
def test_bytes_that_reach_new_code_give_a_picture_or_an_image_error(tmp_path):
    pytest.importorskip("atheris", reason="atheris has no wheel here")
    for name, files in PICTURES.items():
        for number, content in enumerate(files):
            (tmp_path / f"{name}{number}").write_bytes(content)
    program = Path(__file__).parent / "fuzz_decode.py"
    command = [sys.executable, program, "-max_total_time=10", "-seed=1", "-rss_limit_mb=3000"]
    done = subprocess.run([*command, tmp_path], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    runs = re.search(r"Done (\d+) runs", done.stderr)
    assert runs
    assert int(runs[1]) > 1000


@pytest.mark.parametrize("name", PICTURES)
def test_any_image_is_rgb_within_the_limit_or_an_image_error(name):
    @fuzz
    @given(mutated(PICTURES[name]))
    def check(data):
        image = outcome(lambda: decode(data, max_pixels=MOST_PIXELS), ImageError)
        if isinstance(image, ImageError):
            assert image.kind in KINDS
            assert " at 0x" not in str(image)
        else:
            assert image.dtype == np.uint8
            assert image.shape[2:] == (3,)
            assert 0 < image.size <= 3 * MOST_PIXELS

    for file in PICTURES[name]:
        assert decode(file).shape == PICTURE.shape
    with bounded_memory():
        check()


MAPS = [encode_png(PICTURE[..., 0]), encode_png(PICTURE), encode_png(ROWS.astype(np.uint16))]


def test_any_map_is_an_array_within_the_limit_or_an_image_error():
    @fuzz
    @given(mutated(MAPS) | mutated(PICTURES["PNG"]))
    def check(data):
        samples = outcome(lambda: decode_png(data, max_pixels=MOST_PIXELS), ImageError)
        if isinstance(samples, ImageError):
            assert samples.kind in KINDS
        else:
            assert samples.dtype in (np.uint8, np.uint16)
            assert samples.shape[0] * samples.shape[1] <= MOST_PIXELS

    with bounded_memory():
        check()


def test_thousands_of_mutated_files_of_every_format_end_no_process(tmp_path):
    """The recorded run of docs/results.md, fifty times smaller and with another seed."""
    program = Path(__file__).parent / "fuzz_images.py"
    command = [sys.executable, program, "--files", "2000", "--seed", "7"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert done.returncode == 0, found
    assert found["fault_count"] == 0
    assert sum(found["kinds"].values()) == 2000
    assert {"read", "truncated", "corrupt", "unsupported", "too_many_pixels"} <= found[
        "kinds"
    ].keys()
    assert 0 < found["most_megabytes"] < 150


# Manifests and shards


def parquet(table, **options):
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def a_manifest():
    table = pa.table({"image_id": [f"{n}.jpg" for n in range(20)], "uri": ["a.jpg"] * 20})
    coded = table.set_column(0, "image_id", table["image_id"].dictionary_encode())
    yield parquet(table, compression="none")
    yield parquet(table, compression="zstd", data_page_version="2.0", row_group_size=7)
    yield parquet(coded, compression="gzip", use_dictionary=False)


def shard_rows():
    for n in range(40):
        row = dict.fromkeys(PSEUDO_LABELS.names) | {"image_id": f"{n % 3}.jpg", "uri": "/x"}
        row |= {"height": 21, "width": 34, "confidence": MAPS[0], "features": [0.5] * n}
        yield row | {"weights": [1.0], "error_kind": "empty" if n % 2 else None}


def a_shard():
    table = pa.Table.from_pylist(list(shard_rows()), PSEUDO_LABELS)
    yield parquet(table, compression="none")
    yield parquet(table, compression="zstd")
    yield parquet(table, compression="snappy", data_page_version="2.0", row_group_size=7)


CSV = [
    b'image_id,uri\na.jpg,a.jpg\n"b, ""c"".jpg",s3://b/x\n',
    "\ufeffuri,n,image_id\r\n/x/ü.jpg,1,ü.jpg\r\n".encode(),
]
UNREADABLE = "is damaged or not of this version of saff: "


@pytest.mark.parametrize(("name", "files"), [("m.csv", CSV), ("m.parquet", list(a_manifest()))])
def test_any_manifest_gives_rows_or_one_error(tmp_path, name, files):
    @fuzz
    @given(mutated(files))
    def check(data):
        (tmp_path / name).write_bytes(data)
        rows = outcome(lambda: list(read_manifest(str(tmp_path / name))), SaffError)
        if isinstance(rows, SaffError):
            assert str(rows).startswith(f"the manifest {tmp_path / name} ")
        else:
            assert all(is_safe_id(row["image_id"]) for row in rows)
            assert all(isinstance(row["uri"], str) for row in rows)

    with bounded_memory():
        check()


def test_any_shard_gives_rows_of_their_types_or_one_error(tmp_path):
    folder = Folder.at(str(tmp_path))
    readers = [
        lambda: pa.Table.from_pylist(list(read_rows(folder, "s")), PSEUDO_LABELS),
        lambda: list(read_rows(folder, "s", ["image_id", "confidence", "height"])),
        lambda: read_column(folder, "s", "features"),
        lambda: count_rows(folder, "s"),
    ]

    @fuzz
    @given(mutated(list(a_shard())))
    def check(data):
        (tmp_path / "s").write_bytes(data)
        for reader in readers:
            found = outcome(reader, SaffError)
            if isinstance(found, SaffError):
                assert str(found).startswith(f"{tmp_path}/s {UNREADABLE}")

    with bounded_memory():
        check()


# Models and settings

MODEL = modelfile.pack("saff test 1", {"a": np.eye(3), "b": np.arange(5)}, {"data": "none"})


@fuzz
@given(mutated([MODEL]))
def test_any_model_file_is_the_model_or_a_weights_error(data):
    model = outcome(lambda: modelfile.parse(data, "here", "saff test 1"), WeightsError)
    if isinstance(model, WeightsError):
        assert str(model).startswith("here ")
    else:
        assert model.digest == modelfile.parse(MODEL, "here", "saff test 1").digest


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
FIELDS = [field.name for field in dataclasses.fields(config.Config)]
WRITTEN = [json.dumps(dataclasses.asdict(make())).encode() for make in config.NAMED.values()]


@fuzz
@given(
    mutated(WRITTEN).map(lambda data: data.decode("utf-8", "replace"))
    | st.dictionaries(st.sampled_from(FIELDS), values, min_size=1).map(json.dumps)
)
@example("9" * 10_000)
@example('{"gamma": 1e999}')
@example('{"gamma": ' + "9" * 400 + "}")
def test_any_settings_are_settings_or_one_error(text):
    with contextlib.suppress(SaffError):
        assert config.from_json(text).digest()


# Names

parts = st.text("aA.\\~ é\u0301-", min_size=1, max_size=4)
ids = st.lists(parts, min_size=1, max_size=3).map("/".join).filter(is_safe_id)


@fuzz
@given(st.lists(ids | ids.map(lambda i: f"{i}.png") | ids.map(lambda i: f"{i}.jpg"), unique=True))
def test_any_ids_are_exported_to_paths_apart_and_inside(tmp_path, image_ids):
    names = PictureNames(image_ids)
    paths = [tmp_path / names.name(image_id) for image_id in image_ids]
    assert len(set(paths)) == len(image_ids)
    assert all(path.resolve().is_relative_to(tmp_path.resolve()) for path in paths)
