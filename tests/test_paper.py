"""The paper's tables end to end on look-alikes: who is trained on what, and what stands beside what."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import lookalikes
import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fsad.backbones import load_backbone
from fsad.cli import app
from fsad.datasets import load, read_picture
from fsad.energy import augmented
from fsad.errors import InputError
from fsad.evaluate import Protocol, drawn, run_evaluation
from fsad.model_file import read_model
from fsad.paper import DIFFERENCE, TABLES, prepare
from fsad.procedural import ProceduralTask

SIZE = 16


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    """What a training is judged by takes long, and does not matter here."""
    monkeypatch.setattr("fsad.recipe.held_out_auroc", lambda loss, episodes: 0.5)


@pytest.fixture(scope="module")
def mvtec(tmp_path_factory):
    """Three of MVTec AD's categories, of procedural products."""
    root = tmp_path_factory.mktemp("mvtec")
    for seed, name in enumerate(("hazelnut", "leather", "tile")):
        product = ProceduralTask(seed, SIZE)
        for kind, make, numbers in (
            ("train/good", product.normal, range(14)),
            ("test/good", product.normal, range(14, 16)),
            ("test/bad", product.defective, range(2)),
        ):
            for number in numbers:
                path, part = root / name / kind / f"{number:03}.png", make(number)
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(part.image).save(path)
                if kind == "test/bad":
                    lookalikes.mask(
                        root / name / "ground_truth" / "bad" / f"{number:03}_mask.png", 255, part.mask
                    )
    return f"mvtec={root}"


def set_up(number, given, folder, updates=0):
    categories = [category for text in given for category in load(text)]
    default = Protocol(size=SIZE, draws=1, shots=(3,))
    return prepare(number, given, categories, folder, updates, default)


def trained_on(protocol, category):
    """Of each network, the names of the categories it was trained on, and how."""
    weights = [*protocol.backbones, *([protocol.maml] if protocol.maml else [])]
    saved = [read_model(each.replace("{category}", category.name))[1]["training"] for each in weights]
    return [{name for name, _ in each["episodes"]["categories"]} for each in saved], saved


def test_table_4(mvtec, tmp_path):
    tested, protocol = set_up(4, [mvtec], tmp_path)
    assert [category.name for category in tested] == ["hazelnut", "leather"]
    names, saved = trained_on(protocol, tested[0])
    assert names == [{"leather", "tile"}] * 3  # never seen
    assert [each["sparse_coding"].get("shrinkage") for each in saved] == [None, "sigshrink", "none"]
    assert [each["sparse_coding"].get("step") for each in saved] == [None, 1.0, None]
    assert [each["sparse_coding"].get("schedule") for each in saved] == [None, "absolute", None]
    assert [each["sparse_coding"].get("normalize") for each in saved] == [None, False, None]
    assert all(each["sparse_coding"]["receptive_field"] == 3 for each in saved)
    protocol = replace(protocol, shots=(10,))
    results = run_evaluation(tested, protocol, tmp_path)
    assert {result["method"] for result in results} == {"fsad", "fsad-gradient"}
    assert len(results) == 3 * 2 * 2 and all("mIoU" in result["metrics"] for result in results)


def test_masks_are_checked_before_training(mvtec, tmp_path, monkeypatch):
    root = tmp_path / "mvtec"
    shutil.copytree(mvtec.partition("=")[2], root)
    lookalikes.mask(root / "leather" / "ground_truth" / "bad" / "000_mask.png", 255, np.ones((9, 9)))
    monkeypatch.setattr("fsad.paper.run", None)
    with pytest.raises(InputError, match=r"000_mask\.png is 9 x 9 pixels, its picture 16 x 16"):
        set_up(4, [f"mvtec={root}"], tmp_path / "out")
    given = ["evaluate", mvtec, "--table", "4", "--input-size", "16", "-o", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*given, "--backbone", str(tmp_path / "none.safetensors")])
    assert isinstance(done.exception, FileNotFoundError)
    done = CliRunner().invoke(app, [*given[:-3], "40", *given[-2:], "--method", "ae-mse"])
    assert "ae-mse takes sizes divisible by 16; got 40" in str(done.exception)


def test_a_table_has_its_own_shots(mvtec, tmp_path):
    done = CliRunner().invoke(
        app, ["evaluate", mvtec, "--table", "1", "--shots", "1", "-o", str(tmp_path / "out")]
    )
    assert done.exit_code == 2 and "--table takes the shots of the paper's table" in done.output
    assert not (tmp_path / "out").exists()


def test_the_third_column_of_table_4(mvtec, tmp_path):
    """How far mean energies of anomalous and normal pictures are apart, beside what the paper prints."""
    options = ["--updates", "0", "--draws", "1", "--input-size", str(SIZE), "--backbone", "small_resnet"]
    given = ["evaluate", mvtec, "--table", "4", *options, "-o", str(tmp_path)]
    done = CliRunner().invoke(app, given)
    lines = done.output.partition(f"### {DIFFERENCE}, 10 shots")[2].partition("###")[0].splitlines()
    ours = [line.split(" | ") for line in lines if line.startswith("| fsad |")]
    assert len(ours) == 4 and ours[-1][1] == "small_resnet"
    assert not any("gain" in line for line in lines)  # no two networks of one unit
    for name, cells in (("", "2.4 | 1.6 | 2.0"), (", no sparsity", "1.7 | 0.9 | 1.3")):
        row = f"| the paper's method{name}, published | Wang et al., NeurIPS 2022, Table 4 | {cells} |"
        assert row in lines
    assert "/l3-" in ours[0][1] and "/paper-" in ours[1][1]
    (category,) = (c for c in load(mvtec) if c.name == "hazelnut")

    def batch(sources):
        return torch.from_numpy(np.stack([read_picture(source) for source in sources])).permute(0, 3, 1, 2)

    pictures = augmented(batch([category.normal[i] for i in drawn(category, 10, 0)]))
    for row in ours[:2]:
        network = load_backbone(row[1].replace("{category}", "hazelnut")).eval()
        with torch.no_grad():
            layer = network.layer().adapt(network(pictures))
            bad, good = (
                layer(network(batch([p.source for p in category.test if p.anomalous == kind]))).energy.mean()
                for kind in (True, False)
            )
        assert float(row[2]) == pytest.approx(1e4 * float(bad - good), rel=6e-3) and float(row[2]) != 0


def test_what_was_trained_on_other_pictures_is_trained_again(mvtec, tmp_path, monkeypatch):
    """And what was trained on the same is not, by whichever path they are named."""
    root = tmp_path / "mvtec"
    shutil.copytree(mvtec.partition("=")[2], root)
    monkeypatch.chdir(tmp_path)

    def trained(given="mvtec=mvtec", out="out"):
        set_up(3, [given], Path(out))
        return {path.resolve(): path.stat().st_mtime_ns for path in Path(out).rglob("network.safetensors")}

    first = trained()
    assert len(first) == 3 * 2
    assert trained(f"mvtec={root}", tmp_path / "out") == first
    Image.new("RGB", (SIZE, SIZE)).save(root / "tile" / "train" / "good" / "000.png")
    changed = trained()
    assert len(changed) == 2 * 3 * 2 and changed.items() > first.items()
    monkeypatch.setattr("fsad.paper.__version__", "another")
    assert len(trained()) == 3 * 3 * 2
    l1 = TABLES[3].networks["l1"] | {"contrast": 1.0}
    monkeypatch.setitem(TABLES, 3, TABLES[3]._replace(networks={"l1": l1}))
    assert len(trained()) == 3 * 3 * 2 + 2


def test_tables_1_and_3(mvtec, tmp_path):
    tested, protocol = set_up(1, [mvtec], tmp_path)
    assert [category.name for category in tested] == ["hazelnut", "leather", "tile"]
    names, saved = trained_on(protocol, tested[2])
    assert names == [{"hazelnut", "leather"}] * 3
    assert [each["method"] for each in saved] == ["episodic", "episodic", "maml-ae"]
    assert (protocol.shots, protocol.draws, protocol.augment) == ((10,), 1, True)
    assert {"fsad", "ae-mse", "ae-ssim", "maml-ae"} <= {run[0] for run in protocol.runs}
    tested, protocol = set_up(3, [mvtec], tmp_path, updates=2)
    fields = [each["sparse_coding"]["receptive_field"] for each in trained_on(protocol, tested[0])[1]]
    assert [category.name for category in tested] == ["hazelnut", "leather"] and fields == [1, 3, 3]
    with pytest.raises(
        InputError, match="table 3 needs leather, grid, hazelnut, cable, zipper; got procedural"
    ):
        set_up(3, ["procedural"], tmp_path)


def write_video(path, frames):
    rng = np.random.default_rng(len(path.name))
    for frame in range(frames):
        (path.with_suffix("")).mkdir(parents=True, exist_ok=True)
        grey = rng.integers(0, 255, (SIZE, SIZE)).astype(np.uint8)
        Image.fromarray(grey).save(path.with_suffix("") / f"{frame}.png")


def test_table_2(tmp_path, monkeypatch):
    monkeypatch.setattr("lookalikes.FRAMES", 16)
    lookalikes.shanghaitech(tmp_path / "sh", write_video)
    lookalikes.ucsd(tmp_path / "ucsd", "UCSDped2", table=False)
    given = [f"shanghaitech={tmp_path / 'sh'}", f"ucsd-ped2={tmp_path / 'ucsd'}"]
    tested, protocol = set_up(2, given, tmp_path)
    assert [category.name for category in tested] == ["12", "UCSDped2"]  # 01 is trained on, 13 has no tests
    assert trained_on(protocol, tested[0])[0] == [{"01"}] * 3
    assert trained_on(protocol, tested[1])[0] == [{"01", "12", "13"}] * 3
    assert protocol.shots == TABLES[2].shots == (1, 5, 10)
    shutil.copytree(tmp_path / "ucsd", tmp_path / "more")
    (tmp_path / "more" / "UCSDped2").rename(tmp_path / "more" / "UCSDped1")
    with monkeypatch.context() as patch:  # a further set needs no further training
        patch.setattr("fsad.paper.run", None)
        set_up(2, [given[0], f"ucsd-ped1={tmp_path / 'more'}", given[1]], tmp_path)
    results = run_evaluation(tested, protocol, tmp_path)
    assert len(results) == 2 * 3 * 3
    assert all("frame AUC, normalised by video" in result["metrics"] for result in results)
    monkeypatch.setattr("fsad.paper.SPLIT", "01")
    views = [text.replace("=", ":stack=", 1) for text in given]
    tested, protocol = set_up(2, views, tmp_path)
    assert [category.name for category in tested] == ["12:stack", "UCSDped2:stack"]
    assert trained_on(protocol, tested[0])[0] == [{"01:stack"}] * 3
    with pytest.raises(InputError, match="table 2 needs shanghaitech=ROOT"):
        set_up(2, given[1:], tmp_path)
