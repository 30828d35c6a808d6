import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray._private.runtime_env.constants import RAY_JOB_CONFIG_JSON_ENV_VAR
from typer.testing import CliRunner

import saff
from saff import cli, config, config_files
from saff.errors import SettingsError
from saff.fused_prediction import models_beside, predict_fused
from saff.images import decode, decode_png, encode_png
from saff.runs import claim
from saff.samples import open_corpus
from saff.shards import read_rows
from saff.storage import Folder
from saff.trained import NetworkFolder, describe, load_trained, start_network
from stored_runs import a_run, labelled

ROOT = Path(__file__).parent.parent
FLAGS = {
    "label": ["--images", "--manifest", "--output", "--retry-failed", "--dry-run", "--part"],
    "run": ["--images", "--manifest", "--output", "--config", "--rounds", "--truth", "--gpus"],
    "train": ["--output", "--config", "--workers", "--gpus", "--resume", "--restart"],
    "reinfer": ["--output", "--network", "--images", "--manifest", "--workers", "--retry-failed"],
    "serve": ["--host", "--port", "--network", "--replicas", "--queue", "--max-megabytes"],
    "segment": ["--output", "-o", "--what", "--network", "--config"],
    "export-network": ["--to"],
    "export": [
        "--to",
        "--overwrite",
        "--what",
        "--stage",
        "mask",
        "confidence",
        "overlay",
        "cutout",
    ],
    "evaluate": [
        "--output",
        "--truth",
        "--truth-format",
        "--stage",
        "--no-normalise",
        "--measures",
        "--partial",
        "voc",
    ],
    "manifest": ["--images", "--manifest", "--output"],
    "verify": ["--stage", "--images", "--network"],
    "doctor": ["--address", "--network", "--config"],
    "report": ["--cards", "--to"],
    "demo": ["--output"],
}


def refusal(called):
    """The one line of a command that stopped because of what its user gave."""
    code, out, err = called
    assert (code, out) == (2, "")
    lines = [line for line in err.splitlines() if not line.startswith("settings: ")]  # a log's
    assert len(lines) == 1
    assert lines[0].startswith("saff: ")
    return lines[0].removeprefix("saff: ")


# Help


@pytest.mark.parametrize("command", FLAGS)
def test_help_of_a_command_names_its_flags(command):
    wide = {"COLUMNS": "200", "TERM": "dumb", "NO_COLOR": "1"}
    shown = CliRunner().invoke(cli.app, [command, "--help"], env=wide)
    assert shown.exit_code == 0
    words = re.findall(r"[\w-]+", shown.output)
    assert {*FLAGS[command]} <= {*words}


def test_help_names_the_commands_in_the_order_of_a_first_run():
    shown = CliRunner().invoke(cli.app, ["--help"], env={"COLUMNS": "200", "NO_COLOR": "1"})
    assert shown.exit_code == 0
    for command in FLAGS:
        assert re.search(rf"\b{command}\b", shown.output)
    first = [shown.output.index(f"saff {c}") for c in ("segment", "label", "report", "export")]
    assert first == sorted(first)


def test_the_version(call):
    assert call("--version") == (0, f"{saff.__version__}\n", "")


@pytest.mark.parametrize("job", ["pseudo_labels", "train", "reinfer", "evaluate", "pipeline"])
def test_a_job_is_a_script_with_the_same_flags(job, call_job, monkeypatch):
    for name, value in {"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}.items():
        monkeypatch.setenv(name, value)
    command = {"pseudo_labels": "label", "pipeline": "run"}.get(job, job)
    code, out, _ = call_job(job, "--help")
    assert code == 0
    assert {*FLAGS[command]} <= {*re.findall(r"[\w-]+", out)}


def test_a_job_that_cannot_run_says_why_in_one_line(tmp_path):
    """In a process and a folder of its own."""
    job = [sys.executable, str(ROOT / "jobs" / "pseudo_labels.py")]
    job += ["--images", "missing", "--output", "out"]
    ended = subprocess.run(job, capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "saff: no images at missing: no such file, folder or prefix\n"
    assert os.listdir(tmp_path) == []


def test_the_package_is_a_program_with_the_same_answers(tmp_path):
    """``python -m saff`` is the command ``saff``, with its messages and exit codes."""
    command = [sys.executable, "-m", "saff", "label", "missing", "--output", "out"]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "saff: no images at missing: no such file, folder or prefix\n"


# What label refuses


def test_images_that_are_not_there(call, tmp_path):
    (tmp_path / "empty").mkdir()
    output = tmp_path / "out"
    for name, said in (("empty", "it holds no files"), ("missing", "no such file, folder or")):
        for words in ([tmp_path / name], ["--images", tmp_path / name]):
            assert said in refusal(call("label", *words, "--output", output))
    assert not output.exists()


@pytest.mark.parametrize("words", [[], ["--images", ""], ["a", "--images", "b"]])
def test_images_are_named_once(call, tmp_path, words):
    assert refusal(call("label", *words, "--output", tmp_path / "out")) == (
        "name the images once: a folder, --images, or --manifest"
    )
    called = call("label", "--images", "a", "--manifest", "b", "--output", tmp_path)
    assert "name the images once" in refusal(called)


@pytest.mark.parametrize("name", ["list.csv", "list.TSV", "*.csv"])
def test_a_list_that_is_named_as_an_image_is_refused(call, tmp_path, name):
    (tmp_path / name).write_text("image_id,uri\na,a.jpg\n")
    assert refusal(call("manifest", tmp_path / name, "--output", tmp_path / "out")) == (
        f"{tmp_path / name} is no image but a table; if it is a list of images: "
        f"--manifest {tmp_path / name}"
    )


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("superpixel_count=99", {"superpixel_count": 99}),
        ("fast,edges=learned", {"edges": "learned"}),
        ("default,extra_superpixel_counts=[100,300],edges=gradient", {"edges": "gradient"}),
    ],
)
def test_settings_are_changed_on_the_command_line(words, expected):
    found = json.loads(config_files.read_config(words).to_json())
    assert expected.items() <= found.items()
    if "extra" in words:
        assert found["extra_superpixel_counts"] == [100, 300]


def test_settings_of_a_file_are_changed_on_the_command_line(tmp_path, call, corpus):
    path = tmp_path / "a,b.json"
    path.write_text('{"superpixel_count": 77, "training": {"steps": 5}}')
    found = config_files.read_config(f"{path},training.steps=6")
    assert (found.superpixel_count, found.training.steps) == (77, 6)
    words = ["label", corpus, "--output", tmp_path / "out", "--config", "fast,nothing=1"]
    assert refusal(call(*words)).startswith("unknown setting nothing; known: ")


def test_an_output_must_be_named(call, corpus):
    code, _, err = call("label", corpus)
    assert code == 2
    assert "--output" in err
    assert refusal(call("label", corpus, "--output", "")) == "a path or URI is empty"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no-columns.csv", "has no column image_id and no column uri; it has 'a', 'b'"),
        ("no-rows.csv", "has no rows"),
        ("unsafe.parquet", "the row image_id='../x.jpg'"),
        ("garbage.parquet", "cannot be read: "),
        ("missing.parquet", "no manifest at "),
    ],
)
def test_a_manifest_that_cannot_be_used(call, tmp_path, name, said):
    (tmp_path / "no-columns.csv").write_text("a,b\n1,2\n")
    (tmp_path / "no-rows.csv").write_text("image_id,uri\n")
    (tmp_path / "garbage.parquet").write_bytes(b"PAR1\nline\nPAR1")
    unsafe = pa.Table.from_pylist([{"image_id": "../x.jpg", "uri": "x"}])
    pq.write_table(unsafe, tmp_path / "unsafe.parquet")
    words = ["label", "--manifest", tmp_path / name, "--output", tmp_path / "out"]
    assert said in refusal(call(*words))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_an_output_of_another_configuration(call, finished, corpus, dry):
    before = finished.read("run.json")
    text = refusal(call("label", corpus, "--output", finished.path, "--config", "paper", *dry))
    assert text.startswith(f"{finished.path} belongs to another run: ")
    assert "config.spread_steps is 2 in that run and 0 in this one" in text
    assert text.endswith("choose another output, or the settings it has")
    assert finished.read("run.json") == before


@pytest.mark.parametrize("dry", [[], ["--dry-run"]])
def test_an_output_that_cannot_be_written(call, corpus, settings_file, tmp_path, dry):
    (tmp_path / "file").touch()
    words = ["label", corpus, "--output", tmp_path / "file", "--config", settings_file, *dry]
    assert f"no access to {tmp_path}/file" in refusal(call(*words))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no configuration 'swift'; known: default, fast, best, paper, or a JSON file"),
        ("{'a': 1}", "the configuration is not JSON: "),
        ("\ufeffé", "the configuration is not JSON: "),
        ("[]", "the configuration must be a JSON object, got list"),
        ('{"superpixels": 3}', "unknown setting superpixels; known: "),
        ('{"gamma": "high"}', "gamma must be a finite number above 0, got 'high'"),
        ('{"encoder": "resnet"}', "unknown encoder 'resnet'"),
    ],
)
def test_settings_that_cannot_work(call, corpus, tmp_path, monkeypatch, content, said):
    monkeypatch.chdir(tmp_path)
    if content is not None:
        Path("swift").write_text(content)
    text = refusal(call("label", corpus, "--output", tmp_path / "out", "--config", "swift"))
    assert text.startswith(said)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "words",
    [
        ["label", "photos", "--output", "/out"],
        ["label", "--images", "s3://b/photos", "--output", "out"],
        ["label", "--manifest", "m.csv", "--output", "/out"],
        ["evaluate", "out", "--truth", "/truth"],
        ["evaluate", "/out", "--truth", "truth"],
        ["train", "--output", "out"],
        ["reinfer", "--output", "out"],
        ["reinfer", "--output", "/out", "--network", "run", "--images", "/photos"],
        ["run", "/photos", "--output", "out"],
        ["run", "/photos", "--output", "/out", "--truth", "truth"],
    ],
)
def test_a_submitted_job_refuses_relative_paths(call, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(RAY_JOB_CONFIG_JSON_ENV_VAR, "{}")
    assert " is relative, and a submitted job runs in a copy that is deleted; " in refusal(
        call(*words)
    )
    assert os.listdir(tmp_path) == []


# What label says and does without Ray


def test_a_dry_run_says_what_would_be_done(call, corpus, settings_file, finished, tmp_path):
    words = ["label", corpus, "--config", settings_file, "--dry-run", "--output"]
    said = "7 images: 0 labelled, 0 failed, 7 to do, into "
    code, out, err = call(*words, tmp_path / "out", "--cpus", 64, "--cpu-price", 0.02)
    assert (code, err) == (0, "")
    lines = out.splitlines()
    assert lines[0] == f"{said}{tmp_path}/out"
    assert lines[1].startswith("7 images on one core of this machine: ")
    assert " on 64 CPUs; " in lines[2]
    assert lines[3].startswith("at $0.02 per CPU-hour: $")
    assert not (tmp_path / "out").exists()
    said = "7 images: 4 labelled, 3 failed, {} to do, into "
    assert call(*words, finished.path)[1].startswith(said.format(0))
    assert call(*words, finished.path, "--retry-failed")[1].startswith(said.format(3))


def test_images_are_taken_in_once_and_shared(call, corpus, settings_file, tmp_path):
    label = ["label", corpus, "--config", settings_file, "--output", tmp_path / "out"]
    said = refusal(call(*label, "--part", "1/2"))
    assert "has no images yet" in said
    assert f"saff manifest --images {corpus} --output {tmp_path}/out" in said
    assert not (tmp_path / "out").exists()
    assert "a share is i/n" in refusal(call(*label, "--part", "3/2"))
    take_in = ["manifest", corpus, "--output", tmp_path / "out"]
    assert call(*take_in) == (0, "", "7 new images; 4 parts\n")
    assert call(*take_in) == (0, "", "0 new images; 4 parts\n")
    lefts = [call(*label, "--part", f"{k}/2", "--dry-run", "--sample", 0)[1] for k in (1, 2)]
    assert [text.partition(" images")[0] for text in lefts] == ["4", "3"]


def test_a_run_that_is_done_does_nothing(call, corpus, settings_file, finished, monkeypatch):
    monkeypatch.setattr("saff.cluster.stage_job.start_ray", lambda: pytest.fail("Ray was started"))
    words = ["label", "--images", corpus, "--output", finished.path, "--config", settings_file]
    code, out, err = call(*words)
    assert (code, out) == (0, "")
    lines = err.splitlines()
    assert lines[0].startswith(f"settings: {settings_file} ")
    assert lines[1] == "done: 7 images: 4 labelled, 3 failed, 0 to do in 0 parts"
    assert lines[2] == f"saff report {finished.path} shows why images failed"


# One picture


@pytest.mark.parametrize("what", ["mask", "confidence", "overlay", "cutout"])
def test_segment_writes_a_picture_in_the_size_of_the_image(
    call, corpus, photographs, finished, settings_file, tmp_path, what
):
    words = ["segment", corpus / "chelsea ü.png", "--config", settings_file, "--what", what]
    words += ["--method", "label"]
    assert call(*words, "-o", tmp_path / "out.png") == (0, "", "")
    with PIL.Image.open(tmp_path / "out.png") as picture:
        drawn = np.asarray(picture)
    assert drawn.shape[:2] == photographs["chelsea"].shape[:2]
    stage = finished / "pseudo_labels"
    rows = {r["image_id"]: r for n in stage.names(".parquet") for r in read_rows(stage, n)}
    confidence = decode_png(rows["chelsea ü.png"]["confidence"])
    if what == "mask":
        np.testing.assert_array_equal(drawn, np.where(confidence >= 128, 255, 0))
    if what == "confidence":
        np.testing.assert_array_equal(drawn, confidence)
    assert drawn.shape[2:] == {"overlay": (3,), "cutout": (4,)}.get(what, ())


def test_segment_says_that_a_picture_holds_nothing(call, corpus, tmp_path):
    wall, to = tmp_path / "wall.png", tmp_path / "mask.png"
    wall.write_bytes(encode_png(np.full((60, 80, 3), 180, np.uint8)))
    said = f"{wall}: no foreground found; the mask is empty\n"
    assert call("segment", wall, "-o", to, "--threshold", "0") == (0, "", said)
    with PIL.Image.open(to) as mask:
        assert mask.size == (80, 60)
        assert not np.asarray(mask).any()
    assert call("segment", corpus / "chelsea ü.png", "-o", to) == (0, "", "")
    with PIL.Image.open(to) as mask:
        assert np.asarray(mask).any()


def test_segment_refuses_what_is_no_picture(call, corpus, settings_file, tmp_path):
    words = ["--config", settings_file, "-o", tmp_path / "out.png"]
    for name, said in (
        ("empty.jpg", "image is empty: 0 bytes"),
        ("page.jpg", "image is an HTML page"),
        ("missing.jpg", "[Errno 2] No such file or directory"),
        ("nested", "[Errno 21] Is a directory"),
    ):
        text = refusal(call("segment", corpus / name, *words))
        assert text.startswith(f"{corpus / name}: {said}")
    assert not (tmp_path / "out.png").exists()


def test_segment_keeps_to_the_limit_of_its_settings(call, corpus, tmp_path):
    (tmp_path / "few.json").write_text('{"max_pixels": 1000}')
    words = ["--config", tmp_path / "few.json", "-o", tmp_path / "out.png"]
    text = refusal(call("segment", corpus / "chelsea ü.png", *words))
    assert "expected at most max_pixels=1000" in text


@pytest.mark.parametrize(("what", "to"), [("mask", "-"), ("overlay", "-"), ("mask", "again.png")])
def test_segment_reads_standard_input_and_writes_standard_output(
    call, corpus, settings_file, tmp_path, what, to
):
    photo = corpus / "chelsea ü.png"
    words = ["segment", "--config", settings_file, "--what", what, "-o"]
    assert call(*words, tmp_path / "out.png", photo)[0] == 0
    program = [sys.executable, "-c", "from saff.cli import main; main()"]
    piped = subprocess.run(
        [*program, *words, to, "-"],
        input=photo.read_bytes(),
        check=True,
        capture_output=True,
        cwd=tmp_path,
    )
    found = piped.stdout if to == "-" else (tmp_path / to).read_bytes()
    assert found == (tmp_path / "out.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "what", "file_format"),
    [
        ("a.webp", "mask", "WEBP"),
        ("a.TIF", "confidence", "TIFF"),
        ("a.tiff", "cutout", "TIFF"),
        ("a.jpg", "overlay", "JPEG"),
    ],
)
def test_segment_writes_what_the_name_of_the_file_says(
    call, corpus, settings_file, tmp_path, name, what, file_format
):
    words = ["segment", corpus / "chelsea ü.png", "--config", settings_file, "--what", what]
    words += ["--method", "label"]
    assert call(*words, "-o", tmp_path / name) == (0, "", "")
    assert call(*words, "-o", tmp_path / "a.png") == (0, "", "")
    with PIL.Image.open(tmp_path / name) as found, PIL.Image.open(tmp_path / "a.png") as png:
        assert (found.format, found.size) == (file_format, png.size)
        if file_format != "JPEG":
            np.testing.assert_array_equal(found.convert(png.mode), png)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a.jpg", "a mask is not written as JPEG"),
        ("a.gif", "name a file that ends in .png"),
        ("a", "a has no extension"),
        ("folder.png", "cannot write"),
        ("missing/a.png", "cannot write"),
    ],
)
def test_segment_refuses_a_file_before_the_picture_is_read(call, tmp_path, monkeypatch, name, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.png").mkdir()
    assert said in refusal(call("segment", "no such picture.jpg", "-o", name))
    assert os.listdir(tmp_path) == ["folder.png"]


@pytest.mark.s3
def test_segment_reads_a_picture_by_its_address(
    call, corpus, settings_file, tmp_path, bucket, s3_other
):
    photo = corpus / "chelsea ü.png"
    s3_other.put_file(str(photo), f"{bucket}/a b.png")
    words = ["--config", settings_file, "-o", tmp_path / "out.png"]
    found = []
    for source in (photo, photo.as_uri(), f"{bucket}/a b.png"):
        assert call("segment", source, *words) == (0, "", "")
        found.append((tmp_path / "out.png").read_bytes())
    assert found[0] == found[1] == found[2]
    assert "nothing.png" in refusal(call("segment", f"{bucket}/nothing.png", *words))


def test_segment_does_not_write_over_its_photograph(call, corpus, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photo = tmp_path / "d.png"
    shutil.copy(corpus / "chelsea ü.png", photo)
    (tmp_path / "link.png").symlink_to(photo)
    (tmp_path / "hard.png").hardlink_to(photo)
    (tmp_path / "folder").symlink_to(tmp_path)
    before = photo.read_bytes()
    for source in ("d.png", "link.png", f"{tmp_path}/d.png", "folder/d.png"):
        for to in ("d.png", "./d.png", "D.png", "link.png", "hard.png", "folder/d.png", photo):
            assert "is the photograph itself" in refusal(call("segment", source, "-o", to))
    assert photo.read_bytes() == before
    assert (tmp_path / "link.png").is_symlink()


def test_segment_names_a_file_it_cannot_write(call, corpus, settings_file, tmp_path):
    words = ["segment", corpus / "chelsea ü.png", "--config", settings_file]
    to = tmp_path / "missing" / "out.png"
    assert refusal(call(*words, "-o", to)).startswith(f"cannot write {to}: ")


# What is taken out of a run


def test_export_counts(call, finished, tmp_path):
    said = f"4 files in {tmp_path}/to; 3 images left out: 3 failed in the run\n"
    words = ["export", finished.path, "--to", tmp_path / "to"]
    assert call(*words) == (0, "", said)
    with PIL.Image.open(tmp_path / "to" / "chelsea ü.png") as mask:
        assert {*np.unique(np.asarray(mask))} == {0, 255}
    code, _, err = call(*words, "--what", "confidence")
    *refused, last = err.splitlines()
    assert code == 1
    reason = "a file with another content exists; --overwrite replaces it"
    assert refused[0] == f"not written: astronaut ü.png: {reason}"
    assert last == (
        f"0 files in {tmp_path}/to; 7 images left out: 3 failed in the run, 4 could not be written"
    )
    assert call(*words, "--what", "confidence", "--overwrite") == (0, "", said)


def test_export_refuses_to_write_over_the_photographs(call, label_folder, corpus, tmp_path):
    photos = tmp_path / "photos"
    shutil.copytree(corpus, photos)
    output = label_folder(photos, tmp_path / "run")
    before = {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()}
    for more in ([], ["--overwrite"]):
        text = refusal(call("export", output.path, "--to", photos, *more))
        assert "would be written over" in text
    assert {path: path.read_bytes() for path in photos.rglob("*") if path.is_file()} == before
    note = f"note: {photos}/masks lies among the images; saff label would label its files, too"
    code, _, err = call("export", output.path, "--to", photos / "masks")
    assert (code, err.splitlines()[0]) == (0, note)


def test_names_of_strangers_in_an_export_cannot_steer_a_terminal(call, tmp_path):
    output = a_run(tmp_path, [labelled(tmp_path, "a\x1b[2J//b.jpg")])
    code, _, err = call("export", output.path, "--to", tmp_path / "to")
    assert code == 1
    assert "\x1b" not in err
    assert "not written: a\\x1b[2J//b.jpg: " in err


def test_evaluate_prints_the_three_conventions(call, run_copy, tmp_path):
    truth = tmp_path / "truth"
    assert call("export", run_copy.path, "--to", truth)[0] == 0  # its own masks
    for words in ([run_copy.path], ["--output", run_copy.path]):
        code, out, err = call("evaluate", *words, "--truth", truth, "--truth-format", "binary")
        assert code == 0
        assert out.splitlines()[:3] == [
            "max F mean_pr  1.0000",
            "max F mean_f   1.0000",
            "max F max_f    1.0000",
        ]
        assert re.fullmatch(r"IoU 1\.0000, MAE 0\.\d{4}, 4 images", out.splitlines()[3])
        assert out.splitlines()[4].startswith("F at 0.5 1.0000, adaptive F ")
        assert re.fullmatch(
            r"S-measure 0\.\d{4}, weighted F 0\.\d{4}, boundary F 1\.0000", out.splitlines()[5]
        )
        assert err.splitlines()[1:] == [f"more in {run_copy.path}/evaluation/pseudo_labels"]
        assert err.startswith("left out: 3 images that failed: ")
    written = json.loads((run_copy / "evaluation" / "pseudo_labels").read("metrics.json"))
    assert written["normalised"] is True
    _, out, _ = call(
        "evaluate", run_copy.path, "--truth", truth, "--no-normalise", "--measures", "f"
    )
    assert "S-measure" not in out
    written = json.loads((run_copy / "evaluation" / "pseudo_labels").read("metrics.json"))
    assert written["normalised"] is False


def test_evaluate_refuses(call, finished, tmp_path):
    (tmp_path / "truth").mkdir()
    words = ["--truth", tmp_path / "truth"]
    assert refusal(call("evaluate", *words)) == "name the output once"
    assert refusal(call("evaluate", "a", "--output", "b", *words)) == "name the output once"
    assert f"no masks at {tmp_path}/truth: " in refusal(call("evaluate", finished.path, *words))
    (tmp_path / "truth" / "chelsea ü.png").write_bytes(encode_png(np.zeros((2, 2), np.uint8)))
    assert "only 1 of 4 images can be" in refusal(call("evaluate", finished.path, *words))
    assert "chelsea ü.png: it is 2 x 2, its image" in refusal(
        call("evaluate", finished.path, *words, "--partial")
    )


def test_report_says_what_to_open(call, run_copy, tmp_path):
    code, out, err = call("report", run_copy.path, "--cards", "2")
    assert (code, err) == (0, "")
    page = Path(out.removeprefix("open ").rstrip("\n"))
    assert page == Path(run_copy.path) / "report" / "index.html"
    assert page.read_text(encoding="utf-8").count('<figure class="original">') == 2
    code, out, err = call("report", run_copy.path, "--to", tmp_path / "look.html")
    assert (code, out, err) == (0, f"open {tmp_path}/look.html\n", "")


def test_report_counts_lost_photographs_in_its_last_line(call, tmp_path):
    rows = [labelled(tmp_path, f"{n}.jpg") for n in range(3)]
    output = a_run(tmp_path, rows)
    for row in rows[:2]:
        os.remove(row["uri"])
    code, out, err = call("report", output.path)
    assert (code, out) == (0, f"open {output.path}/report/index.html\n")
    assert err == "not shown: 2 photographs are gone\n"


@pytest.mark.parametrize("command", [["report"], ["export", "--to", "to"]])
def test_what_is_no_run_is_refused(call, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    assert refusal(call(*command, tmp_path)) == (
        f"{tmp_path} is not the output of a run: it has no run.json"
    )
    (tmp_path / "run.json").write_text("{")
    assert "run.json is damaged: " in refusal(call(*command, tmp_path))
    (tmp_path / "run.json").write_text("{}")
    assert "has no pseudo_labels yet" in refusal(call(*command, tmp_path))
    assert os.listdir(tmp_path) == ["run.json"]


# Networks


@pytest.fixture
def trained(run_copy):
    """A run whose network is the one that training starts from."""
    results = NetworkFolder(run_copy / "network")
    training = config.default().training
    corpus = open_corpus(run_copy / "pseudo_labels")
    results.claim(describe(training, corpus, {"stage": "pseudo_labels", "digest": "d"}))
    results.finish(start_network(training).state_dict())
    return run_copy


def test_a_picture_is_segmented_by_a_network(call, corpus, trained, tmp_path):
    photo, to = corpus / "chelsea ü.png", tmp_path / "map.png"
    words = ["segment", photo, "-o", to, "--what", "confidence"]
    assert call(*words, "--network", trained.path) == (0, "", "")
    network = load_trained(trained).network
    settings, pixels = config.default(), decode(photo.read_bytes())
    ((expected, _),) = predict_fused(network, [pixels], settings, models_beside(settings))
    np.testing.assert_array_equal(decode_png(to.read_bytes()), np.rint(expected * 255))
    shipped = load_trained(None).network
    assert call(*words) == (0, "", "")  # without it, by the network that comes with saff
    ((expected, _),) = predict_fused(shipped, [pixels], settings, models_beside(settings))
    np.testing.assert_array_equal(decode_png(to.read_bytes()), np.rint(expected * 255))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--output", "here"], "here is not the output of a run: it has no run.json"),
        (["reinfer", "--output", "here"], "here is not the output of a run: it has no run.json"),
        (["reinfer", "--output", "o", "--network", "n"], "new images need both --network RUN and"),
        (["reinfer", "--output", "o", "--images", "i"], "new images need both --network RUN and"),
        (
            ["reinfer", "--output", "o", "--images", "i", "--manifest", "m", "--network", "n"],
            "name the images once",
        ),
        (["run", "--output", "o"], "name the images once"),
        (["run", "i", "--images", "i", "--output", "o"], "name the images once"),
        (["export-network", "here", "--to", "model.onnx"], "there is no trained network at"),
    ],
)
def test_networks_that_cannot_be_are_refused(call, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in refusal(call(*words))
    assert os.listdir(tmp_path) == []


def test_a_run_without_a_network_cannot_be_asked(call, corpus, run_copy, tmp_path):
    words = ["segment", corpus / "chelsea ü.png", "-o", tmp_path / "a.png", "--network"]
    assert "there is no trained network at" in refusal(call(*words, run_copy.path))
    (run_copy / "network").write("run.json", b"{}")
    assert "training has not ended at" in refusal(call(*words, run_copy.path))
    assert not (tmp_path / "a.png").exists()


def test_an_output_has_the_images_of_one_source(call, tmp_path):
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cat.jpg").write_bytes(b"")
    output = tmp_path / "out"
    for _ in range(2):
        code, _, err = call("manifest", tmp_path / "one", "--output", output)
        assert code == 0, err
    code, _, err = call("manifest", tmp_path / "other", "--output", output)
    said = f"the images of {output} come from {tmp_path}/one, and these from {tmp_path}/other"
    assert (code, err) == (2, f"saff: {said}; name another output\n")
    with pytest.raises(SettingsError, match=r"come from .*/one, and these from .*/other"):
        claim(Folder.at(str(output)), {"source": f"{tmp_path}/other", "digest": "1"})
    claim(Folder.at(str(output)), {"source": f"{tmp_path}/one", "digest": "1"})


def test_what_an_error_quotes_cannot_steer_a_terminal(call, tmp_path):
    code, _, err = call("label", f"{tmp_path}/\x1b[2Jphotos", "--output", tmp_path / "out")
    assert code == 2
    assert err.startswith(f"saff: no images in {tmp_path}/\\x1b[2Jphotos: it holds no files")
