import json

import numpy as np
import pytest
from safetensors.numpy import save

from saff.errors import WeightsError
from saff.modelfile import pack, parse, read_model, shipped

ARRAYS = {"b": np.arange(6, dtype=np.int16).reshape(2, 3), "a": np.float32([0.5, -1])}


def test_what_is_packed_comes_back():
    model = parse(pack("saff test 1", ARRAYS, {"images": "3"}), "here", "saff test 1")
    assert model.notes == {"images": "3"}
    assert model.source == "here"
    assert {*model.arrays} == {*ARRAYS}
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(model.arrays[name], array)
        assert model.arrays[name].dtype == array.dtype


def test_the_same_arrays_are_the_same_bytes_in_any_order():
    other = {name: ARRAYS[name] for name in sorted(ARRAYS)}
    assert pack("saff test 1", ARRAYS) == pack("saff test 1", other)


def test_another_kind_or_version_is_named():
    data = pack("saff test 1", ARRAYS)
    with pytest.raises(WeightsError, match="here holds 'saff test 1', expected 'saff test 2'"):
        parse(data, "here", "saff test 2")


def test_every_cut_is_noticed():
    data = pack("saff test 1", ARRAYS)
    for length in range(len(data)):
        with pytest.raises(WeightsError):
            parse(data[:length], "here", "saff test 1")


def test_a_changed_number_is_noticed():
    data = bytearray(pack("saff test 1", ARRAYS))
    data[-1] ^= 1
    with pytest.raises(WeightsError, match="here is not what its checksum says"):
        parse(bytes(data), "here", "saff test 1")


def test_a_changed_header_is_noticed():
    data = pack("saff test 1", ARRAYS)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header["__metadata__"]["saff"] = json.dumps({"kind": "saff test 1", "sha256": "0" * 64})
    text = json.dumps(header).encode()
    changed = len(text).to_bytes(8, "little") + text + data[8 + length :]
    with pytest.raises(WeightsError, match="checksum"):
        parse(changed, "here", "saff test 1")


@pytest.mark.parametrize("about", ["[" * 100_000, "[1]", "no JSON"])
def test_metadata_that_say_nothing_are_refused(about):
    with pytest.raises(WeightsError, match="here holds 'no model of saff'"):
        parse(save(ARRAYS, {"saff": about}), "here", "saff test 1")


def test_numbers_of_a_type_that_numpy_has_not_are_refused():
    header = json.dumps({"a": {"dtype": "BF16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    data = len(header).to_bytes(8, "little") + header + b"\0\0"
    with pytest.raises(WeightsError, match="here is damaged or no model file"):
        parse(data, "here", "saff test 1")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"cannot read the weights .*none\.safetensors"):
        read_model(str(tmp_path / "none.safetensors"), "saff test 1")


@pytest.mark.parametrize(("name", "most"), [("saliency", 8_000_000), ("edges", 2_000_000)])
def test_shipped_models_are_small_and_have_a_card(name, most):
    with open(shipped(name), "rb") as file:
        assert len(file.read()) <= most
    with open(shipped(name).replace(".safetensors", ".md"), encoding="utf-8") as card:
        text = card.read()
    digest = read_model(shipped(name), f"saff {name} 1").digest
    assert digest[:16] in text, "the card is of another file"
