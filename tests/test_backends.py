import pytest

from saff import backends
from saff.errors import SettingsError

MODULE = """
class Flat:
    digest = "1234"
    def __call__(self, image):
        return image[..., 0] * 0.0

def number():
    return 7

seven = 7
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Give the name of a module of the user's own, importable for this test."""
    name = f"own_{tmp_path.name}"  # another in each test: modules are imported once
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_a_known_name_comes_first():
    assert backends.load("edges", "plain", {"plain": lambda: abs}) is abs


def test_a_back_end_of_the_users_own_is_found(own_module):
    back_end = backends.load("edges", f"{own_module}:Flat", {})
    assert type(back_end).__name__ == "Flat"
    assert backends.identity(back_end) == "1234"


def test_a_back_end_without_weights_has_no_identity():
    assert backends.identity(abs) == ""


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("plane", "unknown edges 'plane'; known: plain, ridge, or your own as package.module:fact"),
        ("", "unknown edges ''; known"),
        ("absent_module:f", "'absent_module:f' cannot be imported: No module named 'absent_module"),
        ("{own}:absent", "cannot be imported: module '.*' has no attribute 'absent'"),
        ("{own}:", "cannot be imported: module '.*' has no attribute ''"),
        (":f", "':f' cannot be imported: Empty module name"),
        (".own:f", "'.own:f' cannot be imported: .*relative import"),
        ("{own}:seven", "is of type int, expected a factory"),
        ("{own}:number", "gave int, expected a callable"),
    ],
)
def test_a_name_that_gives_no_back_end_is_explained(name, message, own_module):
    with pytest.raises(SettingsError, match=message):
        backends.load("edges", name.format(own=own_module), {"ridge": lambda: abs, "plain": abs})
