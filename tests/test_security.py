"""What docs/security.md promises: data from others is read, never run, and no secret is stored."""

import ast
import errno
import http.server
import io
import json
import pickle
import shutil
import socketserver
import struct
import threading
import traceback
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem

# Importing it registers it with Arrow, as in every worker.
from ray.data._internal.object_extensions.arrow import ArrowPythonObjectType

from s3_server import ACCESS_KEY, SECRET_KEY
from saff import cli
from saff.addresses import locate
from saff.cluster import LabelPart, label_row
from saff.config import Training
from saff.edges import load as load_edges
from saff.errors import SaffError
from saff.evaluation import evaluate
from saff.images import decoding, encode_png
from saff.lists import read_manifest
from saff.manifests import extend_manifest
from saff.picture_export import export_pictures
from saff.plan import plan_stage
from saff.report.stored import write_report
from saff.rows import decode_map
from saff.saliency import load as load_saliency
from saff.samples import open_corpus
from saff.shards import PSEUDO_LABELS, count_rows, read_column, read_rows, write_rows
from saff.storage import Folder, read_bytes
from saff.trained import load_trained
from saff.training import from_bytes
from saff.truth import read_truth
from saff.verification.parts import VerifyPart

HOME = Path(__file__).parents[1]
SECRET = "wJalrXUtnFEMI/K7MDENG"
LOGINS = [  # each holds SECRET
    f"s3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/photos",
    f"S3://AKIAIOSFODNN7EXAMPLE:{SECRET}@bucket/photos",
    f"https://user:{SECRET}@host/photos/a.jpg",
    f"https://user:p@{SECRET}@host/photos/a.jpg",
    f"HTTP://{SECRET.replace('/', '')}@host:80/a.jpg",
    f"https://{SECRET.replace('/', '')}@host?x",
    f"gs://a:{SECRET}@bucket",
    f"nonsense://a:{SECRET}@b/c",
]
SIGNED = f"https://bucket.host/a.jpg?X-Amz-Signature={SECRET}"


def tells(text):
    return SECRET in text or SECRET.replace("/", "") in text


@pytest.fixture
def call(call):
    """Run a command that is to fail: exit code and what it printed, ``call("label", ...)``."""

    def saff_command(*words):
        code, out, err = call(*words)
        return code, out + err

    return saff_command


def refused(function, *arguments, **options):
    """Message of the one-line error that is expected."""
    with pytest.raises(cli.SaffError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Nothing is unpickled: the source

RUN_WHAT_THEY_READ = {
    *("pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "joblib"),
    *("yaml", "h5py", "code", "codeop", "torch.load", "numpy.load"),
}
RUN_TEXT = {"eval", "exec", "compile", "__import__", "os.system", "os.popen"}
UNPICKLE = ("torch.jit.", "torch.package.", "torch.hub.load", "pd.read_pickle")
READ_PARQUET = {"ParquetFile", "read_table", "ParquetDataset", "read_parquet", "open_stream"}
SAFE_WITH = {"torch.load": "weights_only=True", "np.load": "allow_pickle=False"}
# safe_load, of the cluster's own settings
TRUSTED = {"saff/cluster/ray_internals.py": ["imports yaml"]}
PARQUET_READERS = {
    "saff/containers.py": 2,
    "saff/lists.py": 1,
    "saff/shards.py": 1,
    "saff/verification/files.py": 1,
}  # each checks types first


def findings(source):
    """What could run what it reads, and what reads Parquet: a line of text for each place."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            names = []
        if {name if name in RUN_WHAT_THEY_READ else name.split(".")[0] for name in names} & (
            RUN_WHAT_THEY_READ
        ):
            yield f"imports {names[-1]}"
        elif isinstance(node, ast.Call) and (fault := fault_of(node)):
            yield fault


def fault_of(call):
    name = ast.unparse(call.func).replace("numpy.", "np.")
    options = {f"{k.arg}={getattr(k.value, 'value', None)}" for k in call.keywords}
    if name in RUN_TEXT or (name.startswith(UNPICKLE) and not name.endswith("_from_url")):
        return name
    if name.rpartition(".")[2] in READ_PARQUET:
        return "reads Parquet"
    if name in SAFE_WITH and SAFE_WITH[name] not in options:
        return f"{name} without {SAFE_WITH[name]}"
    return next((o for o in options if o in ("allow_pickle=True", "shell=True")), None)


@pytest.mark.parametrize(
    "source",
    [
        *("import pickle", "from pickle import loads", "import a, marshal", "import h5py as h"),
        *("from torch import load", "import ray.x, cloudpickle.y", "def f():\n import shelve"),
        *(
            "eval(x)",
            "exec(x)",
            "__import__(x)",
            "pd.read_pickle(x)",
            "os.system(x)",
            "os.popen(x)",
        ),
        *("torch.load(f)", "torch.load(f, weights_only=False)", "torch.load(f, weights_only=w)"),
        *(
            "np.load(f)",
            "np.load(f, allow_pickle=True)",
            "numpy.load(f)",
            "g(f, allow_pickle=True)",
        ),
        *("torch.jit.load(f)", "torch.hub.load(f)", "pq.read_table(f)"),
        *("ray.data.read_parquet(f)", "g(shell=True)", "pq.ParquetFile(f)"),
    ],
)
def test_the_search_finds(source):
    assert len(list(findings(source))) == 1


@pytest.mark.parametrize(
    "source",
    [
        *("network.eval()", "torch.load(f, weights_only=True)", "np.load(f, allow_pickle=False)"),
        *("json.loads(x)", "import numpy", "re.compile(x)", "from a import b"),
    ],
)
def test_the_search_leaves_alone(source):
    assert not list(findings(source))


def test_no_module_runs_what_it_reads_and_few_read_parquet():
    files = sorted([*HOME.glob("saff/**/*.py"), *HOME.glob("jobs/*.py")])
    assert len(files) > 50
    found = {str(f.relative_to(HOME)): list(findings(f.read_text())) for f in files}
    expected = {name: ["reads Parquet"] * count for name, count in PARQUET_READERS.items()}
    assert {name: places for name, places in found.items() if places} == expected | TRUSTED


def test_no_template_calls_a_value_safe():
    for file in HOME.glob("saff/templates/*"):
        text = file.read_text()
        assert "|safe" not in text.replace(" ", "")
        assert "autoescape false" not in text
    marked = [file.name for file in HOME.glob("saff/**/*.py") if "Markup" in file.read_text()]
    assert marked == ["plots.py"]  # what matplotlib draws, in which no text of a run is


# Nothing is unpickled: files


class Malicious:
    """Creates a file where it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "x")


@pytest.fixture
def trap(tmp_path):
    """Give a path that is not there, as long as nothing has run."""
    return tmp_path / "it-ran"


def test_the_malicious_object_would_run(trap):
    pickle.loads(pickle.dumps(Malicious(trap))).close()
    assert trap.exists()


def bad_files(trap):
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "more": Malicious(trap)}, stream)
    yield stream.getvalue()
    yield pickle.dumps(Malicious(trap))
    stream = io.BytesIO()
    np.save(stream, np.array([Malicious(trap)], object))
    yield stream.getvalue()
    stream = io.BytesIO()
    torch.save(Malicious(trap), stream, _use_new_zipfile_serialization=False)
    yield stream.getvalue()


def test_malicious_checkpoints_weights_and_models_are_refused_and_not_run(trap, tmp_path):
    network = Folder.at(str(tmp_path / "run" / "network"))
    network.write("run.json", json.dumps({"training": {"network": Training().network}}).encode())
    model = tmp_path / "model"
    for content in bad_files(trap):
        assert "(none was run)" in refused(from_bytes, content, "d1", "step-1.pt")
        network.write("weights.pt", content)
        assert "(none was run)" in refused(load_trained, Folder.at(str(tmp_path / "run")))
        model.write_bytes(content)
        assert "no model file" in refused(load_edges, f"learned:{model}")
        assert "no model file" in refused(load_saliency, f"drfi:{model}")
        assert "no structured forest" in refused(load_edges, f"structured:{model}")
    assert not trap.exists()


def test_a_malicious_network_is_one_line_on_the_command_line(trap, tmp_path, call, corpus):
    network = Folder.at(str(tmp_path / "run" / "network"))
    network.write("run.json", json.dumps({"training": {"network": Training().network}}).encode())
    network.write("weights.pt", next(bad_files(trap)))
    photo = next(corpus.glob("chelsea*"))
    code, said = call("segment", photo, "-o", tmp_path / "m.png", "--network", tmp_path / "run")
    assert (code, said.count("\n")) == (2, 1)
    assert "(none was run)" in said
    assert not trap.exists()


# Nothing is unpickled: the Arrow types that Ray registers


def objects(trap, count):
    storage = pa.array([pickle.dumps(Malicious(trap))] * count, pa.large_binary())
    return pa.ExtensionArray.from_storage(ArrowPythonObjectType(), storage)


WAYS = ["plain", "in a list", "in a struct"]


def with_objects(table, column, way, trap):
    """Replace a column of a table by malicious objects."""
    array = objects(trap, len(table))
    if way == "in a list":
        array = pa.ListArray.from_arrays(list(range(len(array) + 1)), array)
    if way == "in a struct":
        array = pa.StructArray.from_arrays([array], names=["a"])
    return table.drop_columns([column]).append_column(column, array)


def test_arrow_itself_would_run_them(trap, tmp_path):
    pq.write_table(pa.table({"uri": objects(trap, 1)}), tmp_path / "t.parquet")
    (file,) = pq.read_table(tmp_path / "t.parquet")["uri"].to_pylist()
    file.close()
    assert trap.exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("column", ["image_id", "uri"])
def test_a_malicious_manifest_is_refused_and_not_run(trap, tmp_path, column, way):
    table = pa.table({"image_id": ["a"], "uri": ["a.jpg"]})
    path = str(tmp_path / "m.parquet")
    pq.write_table(with_objects(table, column, way, trap), path)
    said = refused(lambda: list(read_manifest(path)))
    assert said.startswith(f"the manifest {path} cannot be read: column {column}")
    assert said.endswith("expected text")
    assert not trap.exists()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("column", ["image_id", "confidence", "features", "error_kind", "height"])
def test_a_malicious_shard_is_refused_by_all_that_reads_it(
    trap, run_copy, small, corpus, tmp_path, column, way
):
    stage = run_copy / "pseudo_labels"
    name = stage.names(".parquet")[0]
    path = f"{stage.path}/{name}"
    pq.write_table(with_objects(pq.read_table(path), column, way, trap), path)
    readers = [
        lambda: list(read_rows(stage, name)),
        lambda: list(read_rows(stage, name, [column])),
        lambda: read_column(stage, name, column),
        lambda: LabelPart(run_copy, small)({"part": name}),
    ]
    if column in ("image_id", "confidence"):
        readers += [
            lambda: export(run_copy, tmp_path / "to"),
            lambda: write_report(run_copy),
            lambda: evaluate(run_copy, str(corpus), "binary", "pseudo_labels"),
        ]
    for reader in readers:
        assert f"{path} is damaged or not of this version of saff: " in refused(reader)
    (found,) = VerifyPart(run_copy, ("pseudo_labels",))({"part": name}).values()
    assert f"column {column} of type" in found
    assert not trap.exists()


def test_a_malicious_part_of_the_manifest_is_refused_and_not_run(trap, run_copy, small):
    name = (run_copy / "manifest").names(".parquet")[0]
    path = f"{run_copy.path}/manifest/{name}"
    pq.write_table(with_objects(pq.read_table(path), "uri", "plain", trap), path)
    (run_copy / "pseudo_labels").remove(name)
    assert f"{path} is damaged" in refused(LabelPart(run_copy, small), {"part": name})
    assert not trap.exists()


@pytest.mark.parametrize("kind", ["arrow.py_extension_type", "ray.data.arrow_tensor"])
def test_types_whose_parameters_are_pickles_are_not_run(trap, tmp_path, kind):
    about = {
        "ARROW:extension:name": kind,
        "ARROW:extension:metadata": pickle.dumps(Malicious(trap)),
    }
    field = pa.field("image_id", pa.list_(pa.int64()), metadata=about)
    schema = pa.schema([field, pa.field("uri", pa.string())])
    table = pa.Table.from_arrays([pa.array([[1]]), pa.array(["a"])], schema=schema)
    path = str(tmp_path / "m.parquet")
    pq.write_table(table, path)
    folder = Folder.at(str(tmp_path))
    refused(lambda: list(read_manifest(path)))
    refused(lambda: list(read_rows(folder, "m.parquet")))
    assert not trap.exists()


# Damaged shards


def test_a_damaged_shard_is_named_by_all_that_reads_it(run_copy, small, corpus, tmp_path):
    stage = run_copy / "pseudo_labels"
    name = stage.names(".parquet")[0]
    path = Path(stage.path) / name
    whole = path.read_bytes()
    readers = {
        "plan": lambda: plan_stage(run_copy),
        "task": lambda: LabelPart(run_copy, small)({"part": name}),
        "export": lambda: export(run_copy, tmp_path / "to"),
        "report": lambda: write_report(run_copy),
        "evaluate": lambda: evaluate(run_copy, str(corpus), "binary", "pseudo_labels"),
        "train": lambda: open_corpus(stage),
    }
    for content in (b"", b"PAR1", whole[:-20], whole[: len(whole) // 2], b"<html>" * 100):
        path.write_bytes(content)
        for reader in readers.values():
            assert f"{path} is damaged or not of this version of saff: " in refused(reader)
    path.write_bytes(whole)
    for reader in ("plan", "task", "export", "report", "train"):
        readers[reader]()


def test_columns_that_do_not_fit_are_named(tmp_path):
    folder = Folder.at(str(tmp_path))
    pq.write_table(pa.table({"image_id": ["a"], "height": ["tall"]}), tmp_path / "s")
    said = refused(lambda: list(read_rows(folder, "s")))
    assert "column height is of type string, expected int32; put back a copy" in said
    assert "columns ['image_id'], expected ['image_id', 'uri']" in refused(
        lambda: list(read_rows(folder, "s", ["image_id", "uri"]))
    )
    pq.write_table(pa.table({"image_id": ["a"], "new": [1]}), tmp_path / "s")
    assert "column new is of type int64, expected no such column" in refused(
        lambda: list(read_rows(folder, "s"))
    )
    pq.write_table(pa.table({"error_kind": ["a"]}), tmp_path / "s", write_statistics=False)
    assert "its footer does not count the errors" in refused(count_rows, folder, "s")


def test_text_that_is_none_is_told(tmp_path):
    table = pa.table({"image_id": ["plain-text"]})
    pq.write_table(table, tmp_path / "s", compression="none", write_statistics=False)
    content = (tmp_path / "s").read_bytes().replace(b"plain-text", b"plain-\xff\xfext")
    (tmp_path / "s").write_bytes(content)
    folder = Folder.at(str(tmp_path))
    for reader in (
        lambda: list(read_rows(folder, "s")),
        lambda: read_column(folder, "s", "image_id"),
    ):
        assert f"{tmp_path}/s is damaged" in refused(reader)


class Failing(MemoryFileSystem):
    """A storage that opens files and then fails with ``error``."""

    protocol = "failing"
    error: Exception

    def _open(self, path, mode="rb", **options):
        file = super()._open(path, mode, **options)
        file.read = self.fail
        return file

    def fail(self, *_):
        raise self.error


@pytest.mark.parametrize(
    "error", [OSError(errno.EIO, "no answer"), ConnectionError("reset"), RuntimeError("throttled")]
)
def test_the_storages_own_errors_are_not_called_damage(run_copy, monkeypatch, error):
    name = (run_copy / "manifest").names(".parquet")[0]
    monkeypatch.setattr(MemoryFileSystem, "store", {})
    fs = Failing(skip_instance_cache=True)
    fs.pipe_file(f"/run/{name}", (run_copy / "manifest").read(name))
    fs.error = error
    for reader in (lambda f: list(read_rows(f, name)), lambda f: count_rows(f, name)):
        with pytest.raises(type(error), match=str(error.args[-1])) as caught:
            reader(Folder(fs, "/run"))
        assert not isinstance(caught.value, cli.SaffError)


# Sizes


def a_bomb(width, height):
    """Give a PNG that announces much and holds little."""

    def chunk(name, body):
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [
        chunk(b"IHDR", header),
        chunk(b"IDAT", zlib.compress(bytes(1000))),
        chunk(b"IEND", b""),
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_a_bomb_is_a_row_and_no_mask_or_map(tmp_path, small, monkeypatch):
    def decoder(*_):
        pytest.fail("a decoder was called")

    monkeypatch.setattr(decoding, "_DECODERS", dict.fromkeys(decoding._DECODERS, decoder))
    bomb = a_bomb(60_000, 60_000)
    (tmp_path / "a.png").write_bytes(bomb)
    row = label_row("a.png", str(tmp_path / "a.png"), small)
    assert row["error_kind"] == "too_many_pixels"
    stored = {"image_id": "a.png", "confidence": bomb, "height": 200, "width": 300}
    with pytest.raises(SaffError, match=r"of a\.png is damaged \(image announces 60000 x"):
        decode_map(stored, "confidence")
    for truth_format in ("voc", "binary"):
        with pytest.raises(SaffError, match="image announces 60000 x 60000 = "):
            read_truth(bomb, truth_format)


# Names


def export(output, to, **options):
    return export_pictures(output, Folder.at(str(to)), "mask", **options)


def a_labelled_run(folder, ids):
    output = Folder.at(str(folder / "run"))
    output.write(
        "run.json", json.dumps({"saff": "0.2.0", "config": {}, "digest": "0" * 64}).encode()
    )
    row = dict.fromkeys(PSEUDO_LABELS.names) | {"uri": "/x", "height": 2, "width": 3}
    row["confidence"] = encode_png(np.full((2, 3), 200, np.uint8))
    rows = [row | {"image_id": image_id} for image_id in ids]
    write_rows(output / "pseudo_labels", "part-0000000.parquet", rows, PSEUDO_LABELS)
    return output


def below(folder):
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_strange_ids_stay_in_the_export_folder_and_apart(tmp_path):
    apart = [
        "cat.jpg",
        "Cat.jpg",
        "caf\u00e9.jpg",
        "cafe\u0301.jpg",
        "a\\..\\..\\b.jpg",
        "-rf",
        "~/x",
    ]
    outside = ["../x", "/abs", "a/../../x", "a\0b", "", "..", "a//b", "./a"]
    output = a_labelled_run(tmp_path, [*apart, *outside])
    summary = export(output, tmp_path / "to")
    assert (summary.written, summary.left_out) == (len(apart), len(outside))
    assert len(below(tmp_path / "to")) == len(apart)
    assert set(below(tmp_path)) == {
        *(f"to/{name}" for name in below(tmp_path / "to")),
        "run/run.json",
        "run/pseudo_labels/part-0000000.parquet",
    }


def test_a_name_too_long_for_a_file_is_reported(tmp_path):
    output = a_labelled_run(tmp_path, ["a" * 300 + ".jpg"])
    assert export(output, tmp_path / "to").reasons == [("a" * 300 + ".jpg", "File name too long")]


def test_a_link_put_into_the_export_folder_is_not_followed_out(tmp_path):
    (tmp_path / "to").mkdir()
    (tmp_path / "precious.png").write_bytes(b"precious")
    (tmp_path / "to" / "a.png").symlink_to(tmp_path / "precious.png")
    output = a_labelled_run(tmp_path, ["a.jpg"])
    for overwrite in (False, True):
        summary = export(output, tmp_path / "to", overwrite=overwrite)
        assert summary.reasons == [("a.jpg", "a link is in its place; remove the link")]
        assert (tmp_path / "precious.png").read_bytes() == b"precious"


def test_a_report_of_hostile_names_and_errors_holds_no_tag_of_theirs(tmp_path):
    hostile = "<script>alert(1)</script><img src=x onerror=alert(2)>"
    output = a_labelled_run(tmp_path, ["a"])
    row = dict.fromkeys(PSEUDO_LABELS.names)
    row |= dict.fromkeys(("image_id", "uri", "error", "error_kind"), hostile)
    write_rows(output / "pseudo_labels", "part-0000001.parquet", [row], PSEUDO_LABELS)
    page = Path(write_report(output).uri).read_text()
    assert "alert(1)" in page
    assert "<script>alert" not in page
    assert "<img src=x" not in page
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


# Secrets


@pytest.mark.parametrize("uri", LOGINS)
def test_a_login_in_a_uri_is_refused_and_not_repeated(uri):
    for signed in (False, True):
        said = refused(locate, uri, signed=signed)
        assert "holds a user name or password" in said
        assert "in the environment or by the machine's role" in said
        assert not tells(said)


@pytest.mark.parametrize(
    "uri",
    [
        *(
            "s3://bucket/a@b.jpg",
            "s3://bucket/a:b@c.jpg",
            "http://host:8080/a@b",
            "http://host/a:b@c",
        ),
        *("https://[::1]:8080/a@b", "memory://a/b@c", "/x:y@z", "x:y@z", "photos/a@b:c.jpg"),
        "s3://arn:aws:s3:eu-west-1:123456789012:accesspoint/photos/a@b.jpg",
    ],
)
def test_what_holds_no_login_is_opened(uri):
    assert locate(uri)[1]


@pytest.mark.parametrize("uri", [LOGINS[0], LOGINS[2], SIGNED])
def test_no_command_repeats_or_stores_a_secret(call, corpus, tmp_path, uri):
    commands = [
        ("label", uri, "--output", tmp_path / "out"),
        ("label", "--images", uri, "--output", tmp_path / "out"),
        ("label", "--manifest", uri, "--output", tmp_path / "out"),
        ("label", corpus, "--output", uri),
        ("label", corpus, "--output", tmp_path / "out", "--config", uri),
        ("run", corpus, "--output", uri),
        ("run", uri, "--output", tmp_path / "out"),
        ("train", "--output", uri),
        ("reinfer", "--output", tmp_path / "out", "--network", uri, "--images", corpus),
        ("serve", "--network", uri),
        ("export", uri, "--to", tmp_path / "to"),
        ("export-network", uri, "--to", tmp_path / "to"),
        ("evaluate", uri, "--truth", corpus),
        ("report", uri),
    ]
    for words in commands:
        code, said = call(*words)
        assert code == 2, words
        assert not tells(said), words
        assert said.startswith("saff: "), words
        assert said.count("\n") == 1, words
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("uri", LOGINS)
@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
def test_a_login_in_a_manifest_is_refused_and_not_repeated(tmp_path, uri, name):
    if name == "m.csv":
        (tmp_path / name).write_text(f"image_id,uri\na,{uri}\n")
    else:
        pq.write_table(pa.table({"image_id": ["a"], "uri": [uri]}), tmp_path / name)
    said = refused(lambda: list(read_manifest(str(tmp_path / name))))
    assert "holds a user name or password" in said
    assert "the row image_id='a'" in said
    assert not tells(said)


def test_a_signature_in_a_manifest_is_kept_there_and_not_repeated(tmp_path):
    (tmp_path / "m.csv").write_text(f"image_id,uri\na,{SIGNED}\n")
    rows = list(read_manifest(str(tmp_path / "m.csv")))
    assert rows == [{"image_id": "a", "uri": SIGNED}]
    output = a_labelled_run(tmp_path, ["a"])
    extend_manifest(output, rows)
    row = dict.fromkeys(PSEUDO_LABELS.names) | rows[0] | {"error": "gone", "error_kind": "gone"}
    write_rows(output / "pseudo_labels", "part-0000001.parquet", [row], PSEUDO_LABELS)
    assert not tells(Path(write_report(output).uri).read_text())
    (tmp_path / "m.csv").write_text(f"image_id,uri\n../a,{SIGNED}\n")
    assert not tells(refused(lambda: list(read_manifest(str(tmp_path / "m.csv")))))


class Refusing(http.server.BaseHTTPRequestHandler):
    """A web server that refuses every request, or says that nothing is there."""

    def do_GET(self):
        self.send_error(404 if "none" in self.path else 403)

    def log_message(self, *_):
        pass


@pytest.fixture
def web(monkeypatch):
    """Address of that server."""
    monkeypatch.setenv("SAFF_STORAGE_PATIENCE", "0")
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Refusing) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_refused_signature_is_not_repeated(web, small):
    with pytest.raises(
        OSError, match=r"no access to http://127.*/a\.jpg\?\.\.\.: the store does not .*403"
    ) as caught:
        read_bytes(f"{web}/a.jpg?X-Amz-Signature={SECRET}")
    assert not tells("".join(traceback.format_exception(caught.value)))
    row = label_row("a", f"{web}/none.jpg?X-Amz-Signature={SECRET}", small)
    assert row["error_kind"] == "not_found"
    assert not tells(row["error"])


def test_credentials_of_a_store_are_in_no_error_and_no_file(
    s3_user, s3_other, bucket, corpus, label_folder, tmp_path, call
):
    photos = tmp_path / "photos"
    photos.mkdir()
    shutil.copy(next(corpus.glob("chelsea*")), photos / "a.png")
    output = label_folder(photos, f"{bucket}/run")
    write_report(output)
    folder = Folder.at(f"{bucket}/run")
    stored = [s3_other.cat_file(path) for path in s3_other.find(bucket)]
    assert len(stored) == 4  # run.json, a part, a shard, the report
    for text in (*stored, pickle.dumps(folder), repr(folder).encode()):
        assert ACCESS_KEY.encode() not in text
        assert SECRET_KEY.encode() not in text
    for settings in ({"AWS_SECRET_ACCESS_KEY": SECRET}, {"AWS_ACCESS_KEY_ID": SECRET}):
        s3_user(**settings)
        for ask in (
            lambda: read_bytes(f"{bucket}/run/run.json"),
            lambda: Folder.at(bucket).names(""),
        ):
            with pytest.raises(OSError, match=r".") as caught:
                ask()
            said = "".join(traceback.format_exception(caught.value))
            assert not tells(said)
            assert SECRET_KEY not in said
        assert not tells(call("report", f"{bucket}/run")[1])
