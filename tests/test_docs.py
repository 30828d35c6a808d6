"""What the documentation says of settings and modules is what the code does."""

import ast
import dataclasses
import json
import re
from pathlib import Path

import pytest

from saff import config
from saff.config import Config, Inference, Training

HOME = Path(__file__).parents[1]
PAGES = [HOME / "README.md", HOME / "CONTRIBUTING.md", *sorted((HOME / "docs").rglob("*.md"))]
NAMED = {name: json.loads(make().to_json()) for name, make in config.NAMED.items()}
SECTIONS = {"": Config, "training.": Training, "inference.": Inference}
SETTINGS = {
    prefix + field.name
    for prefix, kind in SECTIONS.items()
    for field in dataclasses.fields(kind)
    if field.name not in ("training", "inference")
}
LONG = "|".join(sorted((name for name in SETTINGS if "_" in name), key=len, reverse=True))
STATED = re.compile(  # `name` is 5, `name` (5), `name` of 5, `name`: 5, `name` = 5, `name=5`
    rf"`({LONG})(?:`(?: is| of|:| =)? [(`]*|=)(\d[\d.,_]*\d|\d|\.\d+)( million)?"
)
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")


def value_of(settings, name):
    section, _, last = name.rpartition(".")
    return (settings[section] if section else settings)[last]


def json_of(page):
    """JSON that a page prints as settings: blocks, and code in lines that begins with a name."""
    text = page.read_text(encoding="utf-8")
    blocks = (block for kind, block in FENCE.findall(text) if kind == "json")
    yield from (block for block in blocks if '"Statement"' not in block)  # a policy of AWS
    for code in INLINE.findall(FENCE.sub("", text)):
        if re.match(r'"\w+": ', code):
            yield f"{{{code}}}"
        elif code.startswith('{"'):
            yield code


def tables_of(page):
    """Tables of settings: the names in the header and the rows, cells as JSON."""
    for table in re.findall(r"^\| Setting \|.*\n(?:\|.*\n)+", page.read_text(), re.MULTILINE):
        header, _, *rows = (
            [cell.strip(" `") for cell in line.strip("|").split("|")] for line in table.splitlines()
        )
        yield header[1:], {name: [json.loads(cell) for cell in cells] for name, *cells in rows}


def names_of(text):
    """Settings of a section that a text names, as ``training.steps``."""
    for section, name in re.findall(r"(?<![\w/.-])(training|inference)\.([a-z_]+)\b", text):
        if name not in ("py", "md"):
            yield f"{section}.{name}"


def wrong_statements(text):
    """Settings that a text states with a number that no configuration has."""
    for name, number, million in STATED.findall(text):
        value = float(number.replace(",", "").replace("_", "")) * (1e6 if million else 1)
        known = {value_of(settings, name) for settings in NAMED.values()}
        if value not in known:
            yield f"{name} is {value:g}, not {sorted(known)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_that_a_page_prints_exist(page):
    for text in json_of(page):
        assert config.from_json(text).digest()
    assert {*names_of(page.read_text())} <= SETTINGS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_values_that_a_page_states_are_those_of_the_code(page):
    text = FENCE.sub("", page.read_text(encoding="utf-8"))
    assert list(wrong_statements(text)) == []
    for names, rows in tables_of(page):
        for setting, cells in rows.items():
            expected = [value_of(NAMED[name], setting) for name in names]
            assert cells == expected, f"{setting} in {page.name}"


def test_tables_hold_every_setting_in_which_the_configurations_differ():
    found = {}
    for page in PAGES:
        for names, rows in tables_of(page):
            for setting in rows:
                found.setdefault(setting, set()).update(names)
    for setting in SETTINGS:
        values = {name: json.dumps(value_of(settings, setting)) for name, settings in NAMED.items()}
        if len({*values.values()}) > 1:
            differ = {name for name in NAMED if values[name] != values["default"]}
            assert found.get(setting, set()) >= {"default", *differ}, setting


EQUATIONS = [  # of docs/method.md, and the settings that stand in them
    ("paper", r"S_a\(i\)} < ([\d.]+), ", ["background_below"]),
    ("paper", r"S_a\(i\)} > ([\d.]+) \.", ["foreground_above"]),
    ("default", r"e_i < ([\d.]+), .*e_i > ([\d.]+), ", ["background_below", "foreground_above"]),
    ("default", r"\\cos\^\+\(f_i\^l, f_j\^l\)\\Bigr\)\^{(\d)}\n", ["affinity_power"]),
    ("default", r"N\(M'_s\\, s\)\\bigr\)\^{([\d.]+)}", ["gamma"]),
    ("default", r"sets \$\\lambda\$ = (\d+), which", ["prior_strength"]),
    ("default", r"\*\*([\d.]+) \.728 / \.877\*\*, 6", ["edge_scale"]),
    ("default", r"about 300 \((\d+) in `default\(\)`\)", ["superpixel_count"]),
    ("paper", r"SLIC from OpenCV, about (\d+) \(", ["superpixel_count"]),
    ("default", r"Computed at (\d+) pixels on the longer side", ["working_side"]),
    ("paper", r"with \$T\$ = (\d+) \(", ["temperature"]),
]


@pytest.mark.parametrize(("name", "pattern", "settings"), EQUATIONS)
def test_equations_of_the_method_hold_the_values_of_the_code(name, pattern, settings):
    found = re.search(pattern, (HOME / "docs" / "method.md").read_text(encoding="utf-8"))
    assert found, pattern
    assert [float(number) for number in found.groups()] == [NAMED[name][s] for s in settings]


def test_the_search_finds_what_is_wrong():
    assert list(wrong_statements("`superpixel_count` is 301 and `max_pixels` (5 million)")) == [
        "superpixel_count is 301, not [300, 400, 600]",
        "max_pixels is 5e+06, not [100000000]",
    ]
    right = "`superpixel_count` is 400, `max_pixels` (100 million), `training.crop_size` = 320"
    assert list(wrong_statements(right)) == []
    assert len(STATED.findall(right)) == 3
    assert list(names_of("a lower `training.rate` in training.py")) == ["training.rate"]


@pytest.mark.parametrize("page", ["README.md", "docs/guides/laptop.md"])
def test_every_named_configuration_is_introduced(page):
    text = (HOME / page).read_text(encoding="utf-8")
    for name in NAMED:
        assert f"`{name}`" in text


def numbers(text):
    return [float(n.replace(",", "")) for n in re.findall(r"(?<![\w.])[\d,]*\.?\d+", text)]


def test_the_bill_of_a_million_images_adds_up():
    page = (HOME / "docs" / "cluster.md").read_text(encoding="utf-8")
    table = page.partition("| | Arithmetic | Dollars |")[2].partition("\n\n")[0]
    rows = [[cell.strip(" *") for cell in line.strip("|").split("|")] for line in table.split("\n")]
    bill = {name: (how, numbers(dollars)) for name, how, dollars in rows[2:]}
    work = 0.0
    for name in ("labels", "predictions on CPUs"):
        images, seconds, hour, hours, price = numbers(bill[name][0])
        assert round(images * seconds / hour) == hours
        assert bill[name][1] == [round(images * seconds / hour * price, 2)]
        work += hours
    cpus, wait, hours, price = numbers(
        bill["nodes that start and wait: 5 + 10 minutes of 160 CPUs"][0]
    )
    assert (
        cpus * wait
        == hours
        == bill["nodes that start and wait: 5 + 10 minutes of 160 CPUs"][1][0] / price
    )
    (head,) = (name for name in bill if name.startswith("the head"))
    assert numbers(head)[1] == work
    assert numbers(bill[head][0])[:3] == [work, cpus, 0.5]
    assert numbers(bill[head][0])[3] == round(work / cpus + 0.5, 2)
    lines = list(bill).index("the run")
    costs = [dollars for _, dollars in list(bill.values())[:lines]]
    total = [round(sum(pick(dollars) for dollars in costs), 2) for pick in (min, max)]
    assert bill["the run"][1] == total


# The order of modules


def listed_modules():
    """Modules of ``saff``, and of ``cluster``, in the order of docs/architecture.md."""
    text = (HOME / "docs" / "architecture.md").read_text(encoding="utf-8")
    package, found = "", []
    for line in text.partition("```text\nsaff/\n")[2].partition("\njobs/")[0].splitlines():
        indent = len(line) - len(line.lstrip())
        if indent == 2:
            names = re.findall(
                r"([\w/]+)(?:\.py|/)(?=[, ])", re.split(" {2,}", line.strip())[0] + " "
            )
            found += [name.replace("/", ".") for name in names]
            package = names[-1]
        elif indent == 4 and package == "cluster":
            found += [f"cluster.{name}" for name in re.findall(r"(?<!/)\b(\w+)\.py", line)]
    return list(dict.fromkeys(found))


def imported_modules(source):
    """Modules of saff that a source imports anywhere in it, without ``saff.``."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and re.match(r"saff\b", node.module or ""):
            for name in node.names:
                yield f"{node.module}.{name.name}".removeprefix("saff.")
        elif isinstance(node, ast.Import):
            yield from (n.name.removeprefix("saff.") for n in node.names if n.name[:5] == "saff.")


def test_architecture_names_every_module_and_imports_point_up():
    order = {name: place for place, name in enumerate(listed_modules())}

    def listed(name):
        while name and name not in order:
            name = name.rpartition(".")[0]
        return name

    unnamed, down = [], []
    for file in sorted((HOME / "saff").rglob("*.py")):
        name = ".".join(file.relative_to(HOME / "saff").with_suffix("").parts)
        if name in ("__init__", "__main__", "cluster.__init__"):  # what they offer lies below
            continue
        me = listed(name)
        if me in ("", "cluster"):
            unnamed.append(name)
            continue
        known = {listed(other) for other in imported_modules(file.read_text())} - {"", "cluster"}
        down += [f"{name} imports {other}" for other in known if order[other] > order[me]]
    paths = [HOME / "saff" / name.replace(".", "/") for name in order]
    gone = [str(path) for path in paths if not (path.is_dir() or path.with_suffix(".py").exists())]
    assert (unnamed, down, gone) == ([], [], [])
