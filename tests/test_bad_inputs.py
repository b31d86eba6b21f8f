"""Whatever is wrong with the input: a clear error, no traceback, and nothing half-written."""

import json
import os
import struct
import sys
import zlib

import numpy as np
import pytest
from command import SMALL, files, fsad, read_scores, write_parts
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file

from fsad.cli import main


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    root = tmp_path_factory.mktemp("parts")
    write_parts(root / "normal", 3)
    write_parts(root / "images", 2, seed=1)
    done = fsad("adapt", "--normal", root / "normal", "-o", root / "part.fsad", *SMALL)
    assert done.returncode == 0, done.stderr
    return root


def header_bomb(side: int) -> bytes:
    """A PNG of a few bytes whose header promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(999)))


def write_broken(folder) -> dict[str, str]:
    """Files that are no pictures, with what is to be said about them."""
    folder.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    for suffix in ("png", "jpg", "bmp", "tif"):
        Image.fromarray(noise).save(folder / f"cut.{suffix}")
        data = (folder / f"cut.{suffix}").read_bytes()
        (folder / f"cut.{suffix}").write_bytes(data[: len(data) // 2])
    (folder / "text.png").write_text("This is not a picture.")
    (folder / "empty.png").touch()
    (folder / "bomb.png").write_bytes(header_bomb(20_000))
    (folder / "folder.png").mkdir()
    (folder / "nowhere.png").symlink_to("gone.png")
    return {
        f"cut.{suffix}": "cut.{suffix}: damaged or cut off" for suffix in ("png", "jpg", "bmp", "tif")
    } | {
        "text.png": "not a PNG, JPEG, BMP or TIFF",
        "empty.png": "empty (0 bytes)",
        "bomb.png": "400,000,000 pixels",
        "nowhere.png": "No such file",
    }


def test_unreadable_pictures_are_named_and_the_rest_goes_on(parts, tmp_path):
    write_parts(tmp_path / "in", 2, seed=1)
    Image.new("RGB", (1, 1), "red").save(tmp_path / "in/one.png")
    broken = write_broken(tmp_path / "in")
    latin = os.fsdecode(b"caf\xe9.png")
    Image.new("L", (40, 30), 99).save(tmp_path / "in" / latin)
    run = ("detect", "--model", parts / "part.fsad", "--images", tmp_path / "in", "-o", tmp_path / "out")
    done = fsad(*run)
    assert done.returncode == 3, done.stderr
    assert "4 pictures scored" in done.stdout and f"{len(broken)} unreadable" in done.stdout
    assert list(read_scores(tmp_path / "out")) == ["00.png", "01.png", "caf\\xe9.png", "one.png"]
    stored = json.loads((tmp_path / "out/scores.json").read_text())
    reasons = {entry["image"]: entry["reason"] for entry in stored["unreadable"]}
    assert reasons.keys() == broken.keys()
    for name, words in broken.items():
        assert words.format(suffix=name[4:]) in reasons[name], name
        assert f"Unreadable: {reasons[name]}" in done.stderr.splitlines()
    ascii_only = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = fsad(*run, env=ascii_only)
    assert done.returncode == 3, done.stderr


def test_strict_stops_and_leaves_nothing(parts, tmp_path):
    write_parts(tmp_path / "in", 2, seed=1)
    (tmp_path / "in/zero.png").touch()
    before = files(tmp_path)
    run = ("--model", parts / "part.fsad", "--images", tmp_path / "in", "-o", tmp_path / "out")
    done = fsad("detect", *run, "--strict")
    assert done.returncode == 1 and "zero.png" in done.stderr
    done = fsad("adapt", "--normal", tmp_path / "in", "-o", tmp_path / "p.fsad", "--strict", *SMALL)
    assert done.returncode == 1 and "zero.png" in done.stderr
    assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_broken_normal_pictures_are_left_out(parts, tmp_path):
    write_parts(tmp_path / "in", 3)
    broken = write_broken(tmp_path / "in")
    done = fsad("adapt", "--normal", tmp_path / "in", "-o", tmp_path / "part.fsad", *SMALL)
    assert done.returncode == 3 and done.stderr.count("Left out: ") == len(broken)
    run = ("--images", parts / "images", "-o", tmp_path / "one")
    assert fsad("detect", "--model", tmp_path / "part.fsad", *run).returncode == 0
    clean = ("--images", parts / "images", "-o", tmp_path / "two")
    assert fsad("detect", "--model", parts / "part.fsad", *clean).returncode == 0
    one, two = read_scores(tmp_path / "one"), read_scores(tmp_path / "two")
    assert one.keys() == two.keys()
    for image, (score, anomalous) in one.items():  # torch's threads may round the last bit either way
        assert two[image] == (pytest.approx(score, rel=1e-4), anomalous)


def test_nothing_readable_is_a_failure(parts, tmp_path):
    write_broken(tmp_path / "in")
    before = files(tmp_path)
    model, pictures = ("--model", parts / "part.fsad"), ("--images", tmp_path / "in")
    done = fsad("detect", *model, *pictures, "-o", tmp_path / "out")
    assert done.returncode == 1 and "None of the 8 pictures can be read" in done.stderr
    done = fsad("adapt", "--normal", tmp_path / "in", "-o", tmp_path / "part.fsad", *SMALL)
    assert done.returncode == 1 and "Error: " in done.stderr
    for folder, words in (("missing", "does not exist"), ("in/folder.png", "holds no pictures")):
        done = fsad("detect", *model, "--images", tmp_path / folder, "-o", tmp_path / "out")
        assert done.returncode == 1 and words in done.stderr
    assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_max_pixels_is_obeyed(parts, tmp_path):
    run = ("--model", parts / "part.fsad", "--images", parts / "images", "-o", tmp_path / "out")
    done = fsad("detect", *run, "--max-pixels", 96 * 96 - 1)
    assert done.returncode == 1 and "96 x 96 is 9,216 pixels" in done.stderr
    assert fsad("detect", *run, "--max-pixels", 96 * 96).returncode == 0


def test_an_output_that_cannot_be_written_is_an_error_before_any_work(parts, tmp_path):
    (tmp_path / "file").write_text("mine")
    model = ("--model", parts / "part.fsad", "--images", parts / "images")
    for output in (tmp_path / "file", tmp_path / "file/out", "/proc/fsad"):
        done = fsad("detect", *model, "-o", output)
        assert done.returncode == 1 and done.stderr.startswith(f"Error: {output}"), done.stderr
        assert len(done.stderr.splitlines()) == 1
    for output in (tmp_path / "gone/part.fsad", "/proc/part.fsad", tmp_path):
        done = fsad("adapt", "--normal", parts / "normal", "-o", output, *SMALL)
        assert done.returncode == 1 and done.stderr.startswith("Error: "), done.stderr
    (tmp_path / "overlays").mkdir()
    (tmp_path / "overlays/mine.png").write_text("mine")
    done = fsad("detect", *model, "-o", tmp_path)
    assert done.returncode == 1 and "not of an earlier run" in done.stderr
    assert files(tmp_path) == {"file", "overlays/mine.png"}
    assert (tmp_path / "file").read_text() == "mine"


def newer(model, path) -> None:
    """The same model as a later fsad would mark it."""
    with safe_open(model, framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    described = json.loads(metadata["fsad"])
    described["version"] = described["version"] + 1
    save_file(tensors, path, {**metadata, "fsad": json.dumps(described)})


def test_model_files_that_are_not_sound_are_refused(parts, tmp_path):
    model = (parts / "part.fsad").read_bytes()
    flipped = bytearray(model)
    flipped[-100] ^= 1
    cases = {
        "empty": b"",
        "cut": model[: len(model) // 2],
        "flipped": bytes(flipped),
        "text": b"not a model, but long enough to hold the length of a header",
        "huge-header": b"\xff" * 7 + b"\x7f" + model[8:],
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
    newer(parts / "part.fsad", tmp_path / "newer")
    before = files(tmp_path)
    words = {"flipped": "checksum", "newer": "newer", "missing": "No such file"}
    for name in (*cases, "newer", "missing"):
        run = ("--model", tmp_path / name, "--images", parts / "images", "-o", tmp_path / "out")
        done = fsad("detect", *run)
        assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
        assert name in done.stderr and words.get(name, "Error") in done.stderr
        assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_every_flipped_byte_of_a_model_is_noticed(parts, tmp_path, monkeypatch, capsys):
    """In this process, for the number of tries."""
    model = (parts / "part.fsad").read_bytes()
    header = 8 + struct.unpack("<Q", model[:8])[0]
    rng = np.random.default_rng(0)
    places = [*range(8), *rng.integers(8, header, 40), *rng.integers(header, len(model), 20)]
    for place in places:
        broken = bytearray(model)
        broken[place] ^= 1 << rng.integers(8)
        (tmp_path / "part.fsad").write_bytes(broken)
        arguments = ("--model", tmp_path / "part.fsad", "--images", parts / "images", "-o", tmp_path / "out")
        monkeypatch.setattr(sys, "argv", ["fsad", "detect", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 1, f"byte {place} of {len(model)}"
        assert capsys.readouterr().err.startswith("Error: ")
        assert files(tmp_path) == {"part.fsad"}


def test_adding_to_a_broken_model_leaves_it_alone(parts, tmp_path):
    (tmp_path / "part.fsad").write_bytes(b"broken")
    done = fsad("adapt", "--normal", parts / "normal", "-o", tmp_path / "part.fsad", "--add")
    assert done.returncode == 1
    assert files(tmp_path) == {"part.fsad"}
    assert (tmp_path / "part.fsad").read_bytes() == b"broken"


def test_output_beside_the_pictures(parts, tmp_path):
    """The folder of pictures, or its parent, may be the output folder, and that twice."""
    write_parts(tmp_path / "in", 2, seed=1)
    for output in (tmp_path, tmp_path / "in", tmp_path / "in"):
        run = ("detect", "--model", parts / "part.fsad", "--images", tmp_path / "in", "-o", output)
        done = fsad(*run)
        assert done.returncode == 0 and "2 pictures scored" in done.stdout, done.stderr


def test_files_of_other_origin_are_not_replaced(parts, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/scores.csv").write_text("mine")
    done = fsad(
        "detect", "--model", parts / "part.fsad", "--images", parts / "images", "-o", tmp_path / "out"
    )
    assert done.returncode == 1 and "holds scores.csv, not of an earlier run" in done.stderr
    assert (tmp_path / "out/scores.csv").read_text() == "mine"


def test_adding_a_fair_sample_calibrates_a_one_picture_model(parts, tmp_path):
    write_parts(tmp_path / "one", 1)
    model = tmp_path / "one.fsad"
    assert "one normal" in fsad("adapt", "--normal", tmp_path / "one", "-o", model, *SMALL).stderr
    more = ("adapt", "--normal", parts / "normal", "-o", model)
    assert fsad(*more, "--representative").returncode == 2
    done = fsad(*more, "--add", "--representative")
    assert done.returncode == 0 and "one normal" not in done.stderr, done.stderr
