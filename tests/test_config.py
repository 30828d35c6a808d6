import dataclasses
import json
import pickle
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from saff import config
from saff.cli import app
from saff.cli.commands import COMMANDS, load as load_command
from saff.config import Config, Inference, Training
from saff.errors import SettingsError

CHANGED = {  # a value of each field that is neither the recommended nor the published one
    "encoder": "efficientnet_lite2",
    "encoder_weights": "weights.pth",
    "encoder_side": 256,
    "saliency": "package.module:saliency",
    "edges": "package.module:edges",
    "superpixel_count": 77,
    "extra_superpixel_counts": (50, 60),
    "working_side": 640,
    "max_pixels": 1000,
    "temperature": 0.7,
    "semantic_unary": {"default": "max_class", "paper": "border_contrast"},
    "semantic_affinity": {"default": "classes", "paper": "features"},
    "affinity_power": 3.25,
    "edge_scale": 1.25,
    "background_below": 0.15,
    "foreground_above": 0.85,
    "seeds": {"default": "geometric_mean", "paper": "consensus"},
    "balance": False,
    "prior": (0.1, 0.2, 0.3, 0.5),
    "prior_strength": 0.125,
    "spread_steps": 5,
    "gamma": 1.25,
    "network_share": 0.125,
    "zoom_share": 0.25,
    "outline": {"default": "none", "paper": "graph_cut"},
    "training": Training(steps=77, scale_range=(0.9, 1.1), network_weights="trunk.pth"),
    "inference": Inference(input_sides=(100, 200), horizontal_flip=True),
}
FIELDS = [field.name for field in dataclasses.fields(Config)]


def changed(base, name):
    value = CHANGED[name]
    return value[base] if isinstance(value, dict) else value


@pytest.mark.parametrize("name", config.NAMED)
def test_changes_are_those_of_a_file(name):
    named = config.NAMED[name]()
    changed = config.with_changes(named, ["superpixel_count=123", "training.crop_size=64"])
    training = dataclasses.replace(named.training, crop_size=64)
    assert changed == dataclasses.replace(named, superpixel_count=123, training=training)
    assert config.with_changes(named, []) == named


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("superpixels=3", "unknown setting superpixels; known: "),
        ("trainings.steps=3", "unknown setting trainings; known: "),
        ("superpixel_count=many", "superpixel_count must be .*, got 'many'"),
        ("superpixel_count.x=1", "superpixel_count is one without settings below it"),
        ("training=1", "training must be"),
    ],
)
def test_changes_that_cannot_be_are_named(change, said):
    with pytest.raises(SettingsError, match=said):
        config.with_changes(config.default(), [change])
    with pytest.raises(SettingsError, match="names edges twice; keep one of each"):
        config.with_changes(config.default(), ["edges=gradient", "edges=learned"])


def test_no_field_is_left_untested():
    assert sorted(CHANGED) == sorted(FIELDS)


@pytest.mark.parametrize("base", ["default", "paper"])
def test_json_gives_the_same_settings_back(base):
    settings = config.NAMED[base]()
    again = config.from_json(settings.to_json())
    assert again == settings
    assert again.digest() == settings.digest()
    assert list(json.loads(settings.to_json())) == FIELDS


@pytest.mark.parametrize("name", FIELDS)
@pytest.mark.parametrize("base", ["default", "paper"])
def test_every_field_goes_through_json_and_into_the_digest(base, name):
    settings = config.NAMED[base]()
    other = dataclasses.replace(settings, **{name: changed(base, name)})
    assert other != settings
    assert other.digest() != settings.digest()
    assert config.from_json(other.to_json()) == other
    # A field alone changes that field of default() alone.
    value = json.loads(other.to_json())[name]
    alone = dataclasses.replace(config.default(), **{name: changed(base, name)})
    assert config.from_json(json.dumps({name: value})) == alone


def test_the_digest_is_that_of_the_settings_and_nothing_else():
    assert config.default().digest() == config.default().digest()
    assert config.default().digest() != config.paper().digest()
    assert len(config.default().digest()) == 64
    assert config.from_json("{}") == config.default()


@pytest.mark.parametrize(
    ("given", "same"),
    [
        ({"temperature": 2}, {"temperature": 2.0}),
        ({"prior": [1, 0, 0, 0]}, {"prior": (1.0, 0.0, 0.0, -0.0)}),
        ({"edge_scale": 0.0}, {"edge_scale": -0.0}),
    ],
)
def test_equal_settings_have_one_digest_however_they_are_written(given, same):
    assert Config(**given) == Config(**same)
    assert Config(**given).digest() == Config(**same).digest()
    assert hash(Config(**given)) == hash(Config(**same))


def test_paper_is_the_published_procedure():
    paper = config.paper()
    assert (paper.background_below, paper.foreground_above) == (0.2, 0.6)
    assert (paper.edge_scale, paper.balance, paper.seeds) == (3.5, True, "geometric_mean")
    assert (paper.semantic_unary, paper.semantic_affinity) == ("max_class", "classes")
    assert (paper.prior_strength, paper.spread_steps, paper.gamma) == (0.0, 0, 1.0)
    assert (paper.saliency, paper.edges) == ("drfi", "learned")


def test_settings_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.default().gamma = 2.0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the configuration is not JSON: Expecting value"),
        ("{", "the configuration is not JSON"),
        ("[]", "the configuration must be a JSON object, got list"),
        ("null", "the configuration must be a JSON object, got NoneType"),
        ('{"gama": 1, "alpha": 2}', "unknown settings alpha, gama; known: affinity_power, .*gamma"),
        ('{"gamma": "1"}', "gamma must be a finite number above 0, got '1'"),
        ('{"gamma": null}', "gamma must be a finite number above 0, got None"),
        ('{"gamma": NaN}', "gamma must be a finite number above 0, got nan"),
        ('{"edge_scale": Infinity}', "edge_scale must be a finite number of at least 0, got inf"),
        (
            '{"prior_strength": 1e999}',
            "prior_strength must be a finite number of at least 0, got inf",
        ),
        (
            '{"temperature": 1' + 400 * "0" + "}",
            "temperature must be a finite number above 0, got 1000",
        ),
        ('{"gamma": true}', "gamma must be a finite number above 0, got True"),
        (
            '{"superpixel_count": true}',
            "superpixel_count must be a whole number from 1 to 4096, got True",
        ),
        (
            '{"superpixel_count": 300.0}',
            "superpixel_count must be a whole number from 1 to 4096, got 300.0",
        ),
        ('{"balance": 1}', "balance must be true or false, got 1"),
        ('{"encoder": 1}', "encoder must be text, got 1"),
        ('{"encoder_weights": 1}', "encoder_weights must be text or null, got 1"),
        ('{"seeds": "best"}', "seeds must be 'geometric_mean' or 'consensus', got 'best'"),
        ('{"seeds": ["best"]}', "seeds must be 'geometric_mean' or 'consensus', got"),
        ('{"prior": [1, 2, 3]}', r"prior must be a list of 4 finite numbers, got \[1, 2, 3\]"),
        ('{"prior": [1, 2, 3, NaN]}', "prior must be a list of 4 finite numbers, got"),
        ('{"prior": [1, 2, 3, true]}', "prior must be a list of 4 finite numbers, got"),
        ('{"prior": "0000"}', "prior must be a list of 4 finite numbers, got '0000'"),
        ('{"training": 5}', "training must be an object of settings, got 5"),
        ('{"training": {"stepz": 5}}', r"unknown setting training\.stepz; known: .*, steps, "),
        (
            '{"training": {"steps": 0}}',
            r"training\.steps must be a whole number of at least 1, got 0",
        ),
        (
            '{"training": {"steps": 1.5}}',
            r"training\.steps must be a whole number of at least 1, got 1\.5",
        ),
        (
            '{"training": {"scale_range": [1]}}',
            r"training\.scale_range must be a list of 2 finite numbers, got \[1\]",
        ),
        (
            '{"inference": {"input_sides": 5}}',
            r"inference\.input_sides must be a list of one or more whole numbers.*, got 5",
        ),
        (
            '{"inference": {"input_sides": [0.5]}}',
            r"inference\.input_sides must be a list of one or more whole numbers",
        ),
    ],
)
def test_json_that_is_no_configuration_is_refused_by_name(text, message):
    with pytest.raises(SettingsError, match=f"^{message}"):
        config.from_json(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"encoder_side": 0}, "encoder_side must be a whole number of at least 1, got 0"),
        ({"superpixel_count": 0}, "superpixel_count must be a whole number from 1 to 4096, got 0"),
        (
            {"superpixel_count": 10**6},
            "superpixel_count must be a whole number from 1 to 4096, got 1000000",
        ),
        ({"spread_steps": 101}, "spread_steps must be a whole number from 0 to 100, got 101"),
        (
            {"extra_superpixel_counts": (9, 0)},
            r"extra_superpixel_counts must be a list of whole numbers from 1 to 4096, got \(9, 0\)",
        ),
        (
            {"extra_superpixel_counts": (9, 5000)},
            r"extra_superpixel_counts must be a list of whole numbers from 1 to 4096, got \(9, 5",
        ),
        ({"working_side": -5}, "working_side must be a whole number of at least 1, got -5"),
        ({"max_pixels": 0}, "max_pixels must be a whole number of at least 1, got 0"),
        ({"temperature": 0.0}, "temperature must be a finite number above 0, got 0.0"),
        ({"affinity_power": -1}, "affinity_power must be a finite number above 0, got -1"),
        ({"gamma": 0}, "gamma must be a finite number above 0, got 0"),
        ({"edge_scale": -1e-9}, "edge_scale must be a finite number of at least 0, got -1e-09"),
        ({"prior_strength": -1}, "prior_strength must be a finite number of at least 0, got -1"),
        ({"background_below": -0.1}, "expected 0 <= background_below <= foreground_above <= 1"),
        ({"background_below": 0.8}, "expected 0 <= background_below .*, got 0.8 and"),
        ({"foreground_above": 1.1}, "expected 0 <= background_below .* and 1.1"),
        (
            {"superpixel_count": True},
            "superpixel_count must be a whole number from 1 to 4096, got True",
        ),
        ({"seeds": "best"}, "seeds must be 'geometric_mean' or 'consensus', got 'best'"),
        ({"temperature": "hot"}, "temperature must be a finite number above 0, got 'hot'"),
    ],
)
def test_values_that_cannot_work_are_refused_by_name(values, message):
    with pytest.raises(SettingsError, match=f"^{message}"):
        Config(**values)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, got 0"),
        ({"frozen_stages": -1}, "frozen_stages must be a whole number of at least 0, got -1"),
        ({"scale_range": (0.0, 1.0)}, r"scale_range must be 0 < low <= high, got \[0.0, 1.0\]"),
        ({"scale_range": (1.0, 0.5)}, r"scale_range must be 0 < low <= high, got \[1.0, 0.5\]"),
        ({"ignore_margin": 0.6}, r"ignore_margin must be a number in \[0, 0.5\], got 0.6"),
        ({"learning_rate": 0.0}, "learning_rate must be a finite number above 0, got 0.0"),
        ({"ema_decay": 1.0}, r"ema_decay must be a number in \[0, 1\), got 1.0"),
        ({"momentum": -0.1}, r"momentum must be a number in \[0, 1\), got -0.1"),
        ({"optimiser": "adam"}, "optimiser must be 'sgd' or 'adamw', got 'adam'"),
    ],
)
def test_a_training_that_cannot_work_is_refused_by_name(values, message):
    with pytest.raises(SettingsError, match=rf"^training\.{message}"):
        Training(**values)


@pytest.mark.parametrize("sides", [(), (0,)])
def test_an_inference_that_cannot_work_is_refused_by_name(sides):
    with pytest.raises(
        SettingsError, match=r"^inference\.input_sides must be a list of one or more"
    ):
        Inference(input_sides=sides)


def test_networks_do_not_decide_what_pseudo_labels_are():
    other = dataclasses.replace(
        config.default(), training=Training(steps=1), inference=Inference(input_sides=(1,))
    )
    assert other.labeling() == config.default().labeling()
    assert other.digest() != config.default().digest()
    assert config.paper().labeling() != config.default().labeling()


def test_the_papers_recipe():
    training = config.paper().training
    assert (training.network, training.crop_size, training.batch_size) == ("vgg16", 321, 10)
    assert (training.steps, training.learning_rate, training.poly_power) == (20_000, 1e-3, 0.9)
    assert (training.optimiser, training.momentum, training.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (training.targets, training.ignore_margin, training.ema_decay) == ("hard", 0.0, 0.0)
    assert (
        training.bias_learning_rate_factor,
        training.head_learning_rate_factor,
        training.frozen_stages,
    ) == (2.0, 10.0, 0)


@pytest.mark.parametrize(("old", "new"), sorted(config.RENAMED.items()))
def test_a_setting_under_its_old_name_is_refused_with_its_new_one(old, new):
    def nested(name, value):
        section, _, last = name.rpartition(".")
        return {section: {last: value}} if section else {last: value}

    section, _, last = new.rpartition(".")
    value = getattr(getattr(config.default(), section) if section else config.default(), last)
    assert config.from_json(json.dumps(nested(new, value))) == config.default()
    with pytest.raises(SettingsError) as refusal:
        config.from_json(json.dumps(nested(old, value)))
    assert str(refusal.value) == f"unknown setting {old}; it is called {new} now"


def test_everything_that_is_wrong_is_in_one_message():
    with pytest.raises(SettingsError) as refusal:
        config.from_json('{"gamma": 0, "alpha": 1, "spreads": 2, "balance": 1}')
    parts = str(refusal.value).split("; ")
    assert parts.pop(3).startswith("known: affinity_power, ")
    assert parts == [
        "unknown setting spreads",
        "it is called spread_steps now",
        "unknown setting alpha",
        "balance must be true or false, got 1",
        "gamma must be a finite number above 0, got 0",
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_a_byte_order_mark_does_not_matter(encoding):
    settings = dataclasses.replace(config.default(), encoder_weights="Gewichte für ü.pth")
    assert config.from_json(settings.to_json().encode(encoding)) == settings
    assert config.from_json("\ufeff" + settings.to_json()) == settings


@pytest.mark.parametrize("data", [b"\xff{}", b'{"encoder": "\xe4"}', b"\xef\xbb\xbf"])
def test_bytes_that_are_no_text_are_refused(data):
    with pytest.raises(SettingsError, match=r"^the configuration is not JSON: "):
        config.from_json(data)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ('{"gamma": 1, "balance": true, "gamma": 1}', "gamma"),
        ('{"gamma": 1, "edges": "x", "edges": "y", "gamma": 2}', "gamma, edges"),
        ('{"training": {"steps": 5, "seed": 1, "steps": 5}}', "steps"),
        ('{"training": {}, "training": {}}', "training"),
    ],
)
def test_a_setting_that_is_named_twice_is_refused(text, names):
    with pytest.raises(SettingsError, match=f"names {names} twice; keep one of each"):
        config.from_json(text)


@pytest.mark.parametrize("make", config.NAMED.values())
def test_settings_go_through_pickle_as_ray_sends_them(make):
    assert pickle.loads(pickle.dumps(make())) == make()


def test_settings_of_a_section_are_checked_however_they_come():
    given = {"steps": 5, "scale_range": [1, 2]}
    assert Config(training=given) == Config(training=Training(steps=5, scale_range=(1.0, 2.0)))
    with pytest.raises(SettingsError, match=r"^inference must be an object of settings, got Train"):
        dataclasses.replace(config.default(), inference=Training())
    with pytest.raises(
        SettingsError, match=r"^unknown settings inference\.scale_range, inference\."
    ):
        dataclasses.replace(config.default(), inference=given)


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        (["--help"], {"numpy", "saff.storage", "saff.config"}),
        (["--version"], {"numpy", "saff.storage", "saff.config"}),
        (["segment", "--help"], {"torch", "ray", "pandas", "scipy", "matplotlib"}),
    ],
)
def test_help_imports_what_it_needs_alone(words, heavy):
    """As a time would be, but that no other work on the machine changes it."""
    code = f"""
import sys
from saff.cli import app
sys.argv = ["saff", *{words!r}]
try:
    app()
except SystemExit:
    print(sorted({heavy!r} & {{*sys.modules}}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout
    assert done.stderr == "[]\n"


def test_a_command_that_is_misspelt_is_corrected():
    done = CliRunner().invoke(app, ["segmnt", "photo.jpg"])
    assert done.exit_code == 2
    assert "Did you mean 'segment'?" in " ".join(done.output.split())


@pytest.mark.parametrize("name", sorted(COMMANDS))
def test_the_list_of_commands_says_what_each_says_of_itself(name):
    first, _, _ = load_command(name).help.partition("\n\n")
    assert COMMANDS[name].summary == " ".join(first.split())
