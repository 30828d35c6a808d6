"""The image of a node: its lines fit this repository; building it needs a registry."""

import fnmatch
import re
import shlex
import subprocess
import sys

import pytest

from label_runs import ROOT

LINES = re.sub(r"\\\n\s*", "", (ROOT / "Dockerfile").read_text()).splitlines()
INSTRUCTIONS = [line.split(maxsplit=1) for line in LINES if line and not line.startswith("#")]
ARGUMENTS = dict(rest.split("=", 1) for name, rest in INSTRUCTIONS if name == "ARG")


def sources():
    for name, rest in INSTRUCTIONS:
        if name == "COPY":
            words = [word for word in shlex.split(rest) if not word.startswith("--")]
            yield from words[:-1]


def test_only_what_is_known_of_docker_is_used():
    assert {name for name, _ in INSTRUCTIONS} == {"FROM", "ARG", "WORKDIR", "COPY", "RUN", "USER"}


def test_what_is_copied_exists_and_is_not_ignored():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = [line[1:] for line in ignored if line.startswith("!")]
    for source in sources():
        assert (ROOT / source).exists()
        assert any(fnmatch.fnmatch(source, pattern) for pattern in allowed)
    assert sorted(allowed) == sorted(sources())


def test_its_ray_and_python_are_those_of_the_package():
    (image,) = (rest for name, rest in INSTRUCTIONS if name == "FROM")
    version, python = re.fullmatch(r"rayproject/ray:([\d.]+)-py3(\d+)-cpu", image).groups()
    assert f"ray=={version}\n" in (ROOT / "constraints.txt").read_text()
    assert (
        f'"Programming Language :: Python :: 3.{python}"' in (ROOT / "pyproject.toml").read_text()
    )


def test_the_package_that_it_installs_has_its_extras(tmp_path):
    source = tmp_path / "saff-source"
    source.mkdir()
    for name in sources():
        (source / name).symlink_to(ROOT / name)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--no-deps"]
    command += ["-c", "saff-source/constraints.txt"]
    target = f"./saff-source[{ARGUMENTS['EXTRAS']}]"
    done = subprocess.run([*command, target], cwd=tmp_path, capture_output=True, text=True)
    if "No matching distribution found for hatchling" in done.stderr:
        pytest.skip("no package index here, which building a wheel asks for hatchling")
    assert done.returncode == 0, done.stderr
    assert "does not provide the extra" not in done.stderr
