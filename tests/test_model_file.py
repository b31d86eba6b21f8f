"""Model files: whole, checked, and refused in words when they are not."""

import os
import stat

import pytest
import torch
from safetensors.torch import save_file

from fsad import model_file
from fsad.backbones import load_backbone, saved_backbone
from fsad.errors import ModelFileError
from fsad.model_file import read_model, write_model

TENSORS = {
    "patches": torch.arange(12, dtype=torch.float16).view(3, 4),
    "count": torch.tensor(7),
    "roi": torch.tensor([[True, False]]),
}
DESCRIPTION = {"kind": "test", "value": 0.1 + 0.2, "name": "Prüfling"}


@pytest.fixture
def path(tmp_path):
    write_model(tmp_path / "part.fsad", TENSORS, DESCRIPTION)
    return tmp_path / "part.fsad"


def test_round_trip(path):
    tensors, description = read_model(path)
    assert description == DESCRIPTION
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype and torch.equal(tensors[name], tensor)


def test_every_flipped_byte_is_found(path):
    original = path.read_bytes()
    refused = 0
    for position in range(len(original)):
        flipped = bytearray(original)
        flipped[position] ^= 0x10
        path.write_bytes(flipped)
        with pytest.raises(ModelFileError, match=str(path)):
            read_model(path)
        refused += 1
    assert refused == len(original)


def test_every_truncation_is_found(path):
    original = path.read_bytes()
    for length in range(len(original)):
        path.write_bytes(original[:length])
        with pytest.raises(ModelFileError, match="not a complete fsad model"):
            read_model(path)
    path.write_bytes(original + b"\0")
    with pytest.raises(ModelFileError):
        read_model(path)


def test_other_files(tmp_path):
    text = tmp_path / "readme.txt"
    text.write_text("not a model at all, but long enough to have a header length")
    with pytest.raises(ModelFileError, match="another kind of file"):
        read_model(text)
    foreign = tmp_path / "foreign.safetensors"
    save_file(TENSORS, foreign, metadata={"format": "pt"})
    with pytest.raises(ModelFileError, match="not an fsad model"):
        read_model(foreign)
    with pytest.raises(FileNotFoundError):
        read_model(tmp_path / "missing.fsad")
    with pytest.raises(IsADirectoryError):
        read_model(tmp_path)


def test_newer_version(path, monkeypatch):
    monkeypatch.setattr(model_file, "FORMAT_VERSION", 2)
    write_model(path, TENSORS, DESCRIPTION)
    monkeypatch.undo()
    with pytest.raises(ModelFileError, match=r"format version 2.*reads up to 1"):
        read_model(path)


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_interrupted_write_leaves_the_old_file(path, monkeypatch, moment):
    before = path.read_bytes()

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, moment, interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_model(path, {"other": torch.zeros(9)}, DESCRIPTION)
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_unwritable_places(tmp_path):
    with pytest.raises(OSError):
        write_model(tmp_path / "no" / "part.fsad", TENSORS, DESCRIPTION)
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError):
        write_model(tmp_path / "folder", TENSORS, DESCRIPTION)
    assert [entry.name for entry in tmp_path.iterdir()] == ["folder"]


def test_permissions_are_those_of_any_file(path):
    plain = path.parent / "plain"
    plain.write_text("")
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(plain.stat().st_mode)


def test_numbers_that_json_does_not_know_are_not_written(tmp_path):
    with pytest.raises(ValueError):
        write_model(tmp_path / "part.fsad", TENSORS, {"value": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_backbone_of_a_model():
    ours = load_backbone("small_resnet")
    saved = {"name": ours.name, "weights_hash": ours.weights_hash}
    assert saved_backbone("part.fsad", saved, None).weights_hash == ours.weights_hash
    assert saved_backbone("part.fsad", saved, ours) is not ours  # its caller freezes it
    module = torch.nn.Conv2d(3, 4, 1)
    wrapped = load_backbone(module)
    saved = {"name": wrapped.name, "weights_hash": wrapped.weights_hash}
    assert saved_backbone("part.fsad", saved, module).name == "module:Conv2d"
    with pytest.raises(ModelFileError, match=r"Conv2d.*backbone=module"):
        saved_backbone("part.fsad", saved, None)
    with torch.no_grad():
        module.weight += 1
    with pytest.raises(ModelFileError, match="same, or adapt again"):
        saved_backbone("part.fsad", saved, module)
