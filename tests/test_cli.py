"""The command from outside: its files, exit codes and messages."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from command import SMALL, files, fsad, read_scores, write_parts
from PIL import Image

from fsad import FewShotDetector


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """Folders `normal` and `images` (with `bad` inside) and a model adapted to the first."""
    root = tmp_path_factory.mktemp("parts")
    write_parts(root / "normal", 6, kind="weave")
    write_parts(root / "images", 3, kind="weave", seed=1)
    write_parts(root / "images/bad", 3, kind="weave", seed=2, defective=True)
    done = fsad("adapt", "--normal", root / "normal", "-o", root / "part.fsad", *SMALL)
    assert done.returncode == 0, done.stderr
    assert "Wrote" in done.stderr and "normal pictures" in done.stderr
    return root


@pytest.fixture(scope="module")
def detected(parts):
    out = parts / "new/out"
    done = fsad("detect", "--model", parts / "part.fsad", "--images", parts / "images", "-o", out)
    assert done.returncode == 0, done.stderr
    assert "6 pictures scored" in done.stdout and "report.html" in done.stdout
    return out


def test_scores_are_those_of_the_library(parts, detected):
    scores = read_scores(detected)
    names = [f"{i:02}.png" for i in range(3)]
    assert list(scores) == names + [f"bad/{name}" for name in names]
    detector = FewShotDetector.load(parts / "part.fsad")
    expected = detector.anomaly_scores([parts / "images" / name for name in scores])
    np.testing.assert_allclose([score for score, _ in scores.values()], expected, rtol=1e-5)
    flags = [flag for _, flag in scores.values()]
    assert flags == list(expected > detector.threshold_.value)


def test_json_holds_the_same_and_explains_it(parts, detected):
    stored = json.loads((detected / "scores.json").read_text())
    scores = read_scores(detected)
    assert {r["image"]: r["anomalous"] for r in stored["images"]} == {k: v for k, (_, v) in scores.items()}
    assert stored["threshold"]["kind"] == "extrapolated"  # 10 % is finer than 1/7
    assert stored["model"]["backbone"] == "efficientnet_lite0" and stored["model"]["normal_pictures"] == 6
    assert stored["versions"]["fsad"] and stored["unreadable"] == []
    for row in stored["images"]:
        assert row["score"] == pytest.approx(scores[row["image"]][0], rel=1e-6)
        assert bool(row["regions"]) == row["anomalous"] and (row["width"], row["height"]) == (96, 96)
        assert row["defect_area"] == sum(region["area"] for region in row["regions"])
        for region in row["regions"]:
            assert 0 <= region["x"] < region["x"] + region["width"] <= 96
            assert 0 < region["area"] <= region["width"] * region["height"]
            assert region["peak"] > stored["threshold"]["value"]


def test_every_picture_has_an_overlay_of_its_own(parts, detected):
    stored = json.loads((detected / "scores.json").read_text())
    overlays = {row["overlay"] for row in stored["images"]}
    assert files(detected) == overlays | {"scores.csv", "scores.json", "report.html"}
    assert len(overlays) == 6
    for row in stored["images"]:
        assert Image.open(detected / row["overlay"]).size == (96, 96)


def test_names_that_differ_in_suffix_only_do_not_collide(parts, tmp_path):
    for name in ("a.png", "a.jpg", "a.jpg.png", "sub/a.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (20, 30), "gray").save(tmp_path / "in" / name)
    done = fsad("detect", "--model", parts / "part.fsad", "--images", tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    stored = json.loads((tmp_path / "out/scores.json").read_text())
    overlays = {row["overlay"] for row in stored["images"]}
    assert len(overlays) == 4 and all((tmp_path / "out" / overlay).is_file() for overlay in overlays)


def test_detecting_without_a_model_file_gives_the_same_scores(parts, tmp_path):
    arguments = ("--normal", parts / "normal", "--images", parts / "images", "--false-alarm", 0.3)
    assert fsad("adapt", *arguments[:2], "-o", tmp_path / "part.fsad").returncode == 0
    assert fsad("detect", *arguments, "-o", tmp_path / "one").returncode == 0
    model = ("--model", tmp_path / "part.fsad", *arguments[2:])
    assert fsad("detect", *model, "-o", tmp_path / "two").returncode == 0
    one, two = (read_scores(tmp_path / name) for name in ("one", "two"))
    for image, (score, anomalous) in one.items():
        assert two[image] == (pytest.approx(score, rel=1e-4), anomalous)


def test_adding_a_rejected_part_lowers_its_score(parts, detected, tmp_path):
    model = tmp_path / "part.fsad"
    model.write_bytes((parts / "part.fsad").read_bytes())
    (tmp_path / "rejected").mkdir()
    part = (parts / "images/bad/01.png").read_bytes()
    (tmp_path / "rejected/01.png").write_bytes(part)
    done = fsad("adapt", "--normal", tmp_path / "rejected", "-o", model, "--add")
    assert done.returncode == 0, done.stderr
    assert files(tmp_path) == {"part.fsad", "rejected/01.png"}
    score = FewShotDetector.load(model).anomaly_scores([parts / "images/bad/01.png"])[0]
    assert score < 0.5 * read_scores(detected)["bad/01.png"][0]
    assert FewShotDetector.load(model).n_support_ == 7


def test_the_false_alarm_level_moves_the_threshold(parts, tmp_path):
    values = []
    for level in (0.02, 0.4):
        out = tmp_path / str(level)
        model = ("--model", parts / "part.fsad", "--images", parts / "images")
        assert fsad("detect", *model, "-o", out, "--false-alarm", level).returncode == 0
        values.append(json.loads((out / "scores.json").read_text())["threshold"])
    assert values[0]["value"] > values[1]["value"]
    assert values[0]["kind"] == "extrapolated" and values[1]["kind"] == "conformal"


def test_anomalies_fail_the_run_only_if_asked(parts, tmp_path):
    model = ("--model", parts / "part.fsad", "--false-alarm", 0.4)
    bad = (*model, "--images", parts / "images/bad", "-o", tmp_path / "bad")
    assert fsad("detect", *bad).returncode == 0
    assert any(anomalous for _, anomalous in read_scores(tmp_path / "bad").values())
    assert fsad("detect", *bad, "--fail-on-anomaly").returncode == 4
    (tmp_path / "good").mkdir()
    support = (parts / "normal/00.png").read_bytes()
    (tmp_path / "good/00.png").write_bytes(support)
    good = (*model, "--images", tmp_path / "good", "-o", tmp_path / "out", "--fail-on-anomaly")
    assert fsad("detect", *good).returncode == 0
    (tmp_path / "good/01.png").write_text("text")
    assert fsad("detect", *good).returncode == 3


def test_a_second_run_replaces_the_first_and_does_not_judge_its_overlays(parts, tmp_path):
    pictures = tmp_path / "images"
    write_parts(pictures, 3, kind="weave")
    run = ("detect", "--model", parts / "part.fsad", "--images", pictures, "-o", pictures / "out")
    assert fsad(*run).returncode == 0
    (pictures / "02.png").unlink()
    assert fsad(*run).returncode == 0
    assert list(read_scores(pictures / "out")) == ["00.png", "01.png"]
    expected = {"scores.csv", "scores.json", "report.html", "overlays/00.png", "overlays/01.png"}
    assert files(pictures / "out") == expected


def test_roi_tiles_and_augmentation_reach_the_detector(parts, tmp_path):
    mask = np.zeros((96, 96), np.uint8)
    mask[:48] = 255
    Image.fromarray(mask).save(tmp_path / "mask.png")
    extra = ("--roi", tmp_path / "mask.png", "--tile", 64, "--augment")
    done = fsad("adapt", "--normal", parts / "normal", "-o", tmp_path / "part.fsad", *extra)
    assert done.returncode == 0, done.stderr
    detector = FewShotDetector.load(tmp_path / "part.fsad")
    assert (detector.tile, detector.augment) == (64, True)
    (anomaly_map,) = detector.anomaly_maps([parts / "images/00.png"])
    assert anomaly_map.shape == (96, 96) and anomaly_map[:40].max() > 0 == anomaly_map[56:].max()


@pytest.mark.parametrize(
    "arguments, words",
    [
        ((), "Usage"),
        (("detect",), "Missing option"),
        (("detect", "--images", "i", "-o", "o"), "either --model FILE or --normal FOLDER"),
        (("detect", "--images", "i", "-o", "o", "--model", "m", "--normal", "n"), "either --model"),
        (("detect", "--images", "i", "-o", "o", "--model", "m", "--device", "tpu"), "'cpu', 'cuda', 'auto'"),
        (("adapt", "--normal", "n", "-o", "o", "--false-alarm", "7"), "less than or equal to 0.9999"),
        (("adapt", "--normal", "n", "-o", "o", "--add", "--augment"), "cannot change"),
        (("demo", "--draws", "0"), "greater than or equal to 1"),
        (("paint",), "No such command"),
    ],
)
def test_wrong_usage_exits_with_2_and_touches_nothing(arguments, words, tmp_path):
    done = fsad(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert words in " ".join((done.stdout + done.stderr).replace("│", " ").split())
    assert files(tmp_path) == set()


def test_help_names_the_commands_and_exit_codes():
    done = fsad("--help")
    assert done.returncode == 0
    for word in ("adapt", "detect", "demo", "doctor", "Exit codes"):
        assert word in done.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_what_was_there(parts, detected, number, tmp_path):
    pictures = write_parts(tmp_path / "images", 300, kind="weave")
    before = files(tmp_path)
    run = ("detect", "--model", parts / "part.fsad", "--images", pictures[0].parent, "-o", tmp_path / "out")
    process = subprocess.Popen(
        [sys.executable, "-m", "fsad", *map(str, run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has SIGINT ignored, which is inherited.
        preexec_fn=lambda: signal.signal(number, signal.SIG_DFL),
    )
    end = time.monotonic() + 120
    while len(files(tmp_path)) < len(before) + 3:  # in the middle of the work
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.send_signal(number)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode not in (0, 2, 3) and "Traceback" not in output
    assert files(tmp_path) == before and not os.path.exists(tmp_path / "out")
