"""Each data set is read from its look-alike, traps included; what is wrong with one is named."""

from importlib.util import find_spec
from pathlib import Path

import lookalikes
import numpy as np
import pytest
import torch
from lookalikes import DEFECT
from PIL import Image

from fsad import datasets
from fsad.datasets import (
    DATASETS,
    Category,
    fingerprint,
    load,
    read,
    read_mask,
)
from fsad.errors import FsadError, InputError
from fsad.images import load_image

WITH_ROOT = [name for name, dataset in DATASETS.items() if dataset.marks]


def names(category: Category, root: Path) -> tuple[list[str], list[str], list[str]]:
    """Paths below the category: normal pictures to adapt to, then normal and anomalous ones to test on."""
    test = {bad: [p.source for p in category.test if p.anomalous == bad] for bad in (False, True)}
    return tuple(
        [path.relative_to(root).as_posix() for path in paths] for paths in (category.normal, *test.values())
    )


def check_masks(category: Category) -> None:
    """Every anomalous picture, and no other, has its mask."""
    assert category.has_masks
    for picture in category.test:
        expected = DEFECT if picture.anomalous else np.zeros((16, 16))
        np.testing.assert_array_equal(read_mask(picture.mask, 16), expected)


def test_mvtec(tmp_path):
    lookalikes.mvtec(tmp_path)
    categories = load("mvtec", tmp_path)
    assert [category.name for category in categories] == ["bottle", "metal_nut"]
    for category in categories:
        normal, good, bad = names(category, tmp_path / category.name)
        assert normal == [f"train/good/00{i}.PNG" for i in range(3)]
        assert good == ["test/good/000.png"]
        assert bad == ["test/broken/000.png", "test/broken/001.PNG", "test/scratch/000.bmp"]
        check_masks(category)
    masks = [picture.mask.name for picture in categories[0].test if picture.anomalous]
    assert masks == ["000_mask.png", "001.png", "000_mask.bmp"]


def test_visa_as_distributed(tmp_path):
    lookalikes.visa(tmp_path)
    categories = load("visa", tmp_path)
    assert [category.name for category in categories] == ["candle", "pcb1"]
    for category in categories:
        normal, good, bad = names(category, tmp_path / category.name / "Data" / "Images")
        assert normal == [f"Normal/000{i}.JPG" for i in range(3)]
        assert good == ["Normal/0003.JPG", "Normal/0004.JPG"]
        assert bad == ["Anomaly/000.JPG", "Anomaly/001.JPG"]
        check_masks(category)


@pytest.mark.parametrize(
    ("name", "write", "categories", "counts"),
    [
        ("visa", lookalikes.visa_converted, ["candle", "pcb1"], (3, 1, 1)),
        ("mpdd", lookalikes.mpdd, ["connector", "tubes"], (2, 2, 2)),
        ("btad", lookalikes.btad, ["01", "02", "03"], (2, 2, 2)),
    ],
)
def test_layouts_like_mvtec(tmp_path, name, write, categories, counts):
    write(tmp_path)
    found = load(name, tmp_path)
    assert [category.name for category in found] == categories
    for category in found:
        assert tuple(map(len, names(category, tmp_path))) == counts
        check_masks(category)


def test_kolektor_is_split_by_items(tmp_path):
    lookalikes.kolektor(tmp_path)
    (category,) = load("kolektor", tmp_path)
    normal, good, bad = names(category, tmp_path)
    assert normal == ["kos01/Part0.jpg", "kos03/Part0.jpg", "kos03/Part1.jpg"]
    assert good == ["kos02/Part0.jpg", "kos02/Part1.jpg", "kos04/Part0.jpg"]
    assert bad == ["kos01/Part1.jpg", "kos04/Part1.jpg"]
    check_masks(category)


def test_folders_of_ones_own(tmp_path):
    lookalikes.folders(tmp_path)
    only_bad, plain = load("folders", tmp_path)
    assert (only_bad.name, plain.name) == ("only bad", "plain")
    assert plain.dataset == f"folders:{tmp_path.name}"  # other folders are another set
    assert names(plain, tmp_path / "plain") == (
        ["train/0.JPEG", "train/1.JPEG"],
        ["test/Good/0.tiff", "test/Good/1.tiff"],
        ["test/dents/0.png", "test/dents/1.png"],
    )
    assert tuple(map(len, names(only_bad, tmp_path))) == (2, 0, 2)
    assert not plain.has_masks
    lookalikes.mask(tmp_path / "plain" / "ground_truth" / "dents" / "0.png")
    with pytest.raises(InputError, match=r"test/dents/1\.png has no mask; expected 1_mask\.\* or 1\.\*"):
        load("folders", tmp_path)  # some masks are worse than none
    lookalikes.picture(tmp_path / "plain" / "test" / "dents" / "0.jpg")
    with pytest.raises(InputError, match=r"dents/0\.jpg and .*dents/0\.png share one name"):
        load("folders", tmp_path)


@pytest.mark.skipif(find_spec("elpv_dataset") is None, reason="needs the package elpv-dataset")
def test_elpv():
    mono, poly = load("elpv")
    assert (mono.name, poly.name) == ("mono", "poly")
    assert not mono.has_masks
    counts = [(len(c.normal), len(c.test), sum(p.anomalous for p in c.test)) for c in (mono, poly)]
    assert counts == [(423, 165 + 313, 313), (603, 719, 402)]
    assert not {*mono.normal} & {picture.source for picture in mono.test}
    assert load_image(mono.normal[0]).shape == (300, 300, 3)


def test_elpv_without_its_package(monkeypatch):
    monkeypatch.setattr(datasets, "find_spec", lambda name: None)
    with pytest.raises(FsadError, match="pip install elpv-dataset"):
        load("elpv")


def test_procedural(monkeypatch):
    monkeypatch.setattr(datasets, "FAMILIES", datasets.FAMILIES[:2])
    first, second = load("procedural")
    assert first.name != second.name
    assert (len(first.normal), len(first.test)) == (20, 40)
    for picture in first.test:
        assert read_mask(picture.mask, 96).any() == picture.anomalous
    shown = {picture.tobytes() for picture in (*first.normal, *(picture.source for picture in first.test))}
    assert len(shown) == 60


def test_masks_keep_their_size_when_resized(tmp_path):
    stripes = np.zeros((64, 64), bool)
    stripes[:, :2] = stripes[:, 9:16] = True
    lookalikes.mask(tmp_path / "mask.png", 1, stripes)
    small = read_mask(tmp_path / "mask.png", 8)
    assert small.dtype == bool
    assert small.any(axis=0).tolist() == [False, True] + [False] * 6  # 2 of 8 columns are not enough
    assert read_mask(tmp_path / "mask.png", (32, 16)).shape == (32, 16)
    np.testing.assert_array_equal(read_mask(stripes, 64), stripes)


@pytest.mark.parametrize("value", [40, 255])
def test_masks_as_jpeg(tmp_path, value):
    defect = np.zeros((64, 64), bool)
    defect[11:37, 13:50] = True
    Image.fromarray((defect * value).astype(np.uint8)).save(tmp_path / "mask.JPG", "JPEG", quality=75)
    np.testing.assert_array_equal(read_mask(tmp_path / "mask.JPG", 64), defect)


def test_masks_with_colours(tmp_path):
    image = Image.fromarray((DEFECT * 3).astype(np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, 0, 0, 0, 0, 0, 0, 128, 0, 0])
    image.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png", 16), DEFECT)


@pytest.mark.parametrize("hidden", [0, 255])
def test_masks_with_a_transparent_background(tmp_path, hidden):
    pixels = np.where(DEFECT[:, :, None] > 0, 255, np.array([hidden] * 3 + [0])).astype(np.uint8)
    Image.fromarray(pixels, "RGBA").save(tmp_path / "transparent.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "transparent.png", 16), DEFECT)


@pytest.mark.parametrize("name", WITH_ROOT)
def test_a_root_one_level_off_is_recognised(tmp_path, name):
    root = tmp_path / "data" / "set"
    lookalikes.WRITERS[name](root)
    assert read(name, root)
    inside = next(path for path in sorted(root.iterdir()) if path.is_dir() and path.name[0] != ".")
    for wrong in (root.parent, inside):
        with pytest.raises(InputError) as error:
            read(name, wrong)
        assert DATASETS[name].layout in str(error.value)
        assert str(wrong / DATASETS[name].marks[0]) in str(error.value)
        assert str(error.value).endswith(f"Give {root} instead")


@pytest.mark.parametrize("name", WITH_ROOT)
def test_a_wrong_root_is_answered_by_what_was_expected(tmp_path, name):
    root = tmp_path / "a" / "b" / "c"
    lookalikes.picture(root / "holiday" / "beach.jpg")
    with pytest.raises(InputError, match=r"found holiday$") as error:
        read(name, root)
    assert DATASETS[name].layout in str(error.value)
    with pytest.raises(InputError, match="nowhere does not exist") as error:
        read(name, root / "nowhere")
    assert DATASETS[name].layout in str(error.value)
    with pytest.raises(InputError, match=f"{name} needs a folder: "):
        read(name, None)


def test_names_and_roots_that_cannot_be(tmp_path):
    with pytest.raises(InputError, match="got 'imagenet'; expected a data set: mvtec, visa"):
        load("imagenet", tmp_path)
    with pytest.raises(InputError, match="procedural takes no folder"):
        load("procedural", tmp_path)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("mvtec", "bottle/ground_truth/broken/000_mask.png", r"broken/000\.png has no mask"),
        ("mvtec", "bottle/ground_truth/scratch/000_mask.bmp", r"ground_truth/scratch holds no pictures"),
        ("mvtec", "bottle/test/broken/001.PNG", r"broken/001\.png is a mask without a picture"),
        ("btad", "02/test/ko/0001.png", r"ko/0001\.png is a mask without a picture"),
        ("btad", "03/ground_truth/ko/0001.bmp", r"test/ko/0001\.bmp has no mask"),
        (
            "visa",
            "candle/Data/Masks/Anomaly/001.png",
            r"1cls\.csv, line 15: .* files that exist; got .*001\.png",
        ),
        ("visa", "pcb1/Data/Images/Normal/0000.JPG", r"1cls\.csv, line 2: .*0000\.JPG"),
        ("kolektor", "kos03/Part1_label.bmp", r"kos03/Part1\.jpg has no mask; expected part1_label\.\*"),
        ("kolektor", "kos03/Part1.jpg", r"Part1_label\.bmp is a mask without a picture"),
    ],
)
def test_a_lost_file_is_named(tmp_path, name, lost, message):
    lookalikes.WRITERS[name](tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=message):
        load(name, tmp_path)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ("broken/000_mask.bmp", r"000_mask\.bmp and .*000_mask\.png are two masks of one name"),
        ("broken/001/000.png", r"broken/001/000\.png lies in a folder that the pictures have not"),
        ("crack/000_mask.png", r"ground_truth/crack has masks, but no .*bottle/test/crack"),
        ("000_mask.png", r"ground_truth/000_mask\.png lies in no folder"),
        ("good/000_mask.png", None),
    ],
)
def test_masks_that_belong_to_no_picture(tmp_path, extra, message):
    lookalikes.mvtec(tmp_path)
    lookalikes.mask(tmp_path / "bottle" / "ground_truth" / extra)
    if message is None:
        (tmp_path / "bottle" / "ground_truth" / "empty").mkdir()
        assert len(load("mvtec", tmp_path)) == 2  # of normal pictures masks are no harm
        return
    with pytest.raises(InputError, match=message):
        load("mvtec", tmp_path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("bottle/ground_truth", "bottle/masks", r"broken/000\.png has no mask"),
        ("bottle/test", "bottle/tests", r"bottle/test does not exist"),
        ("bottle/train", "bottle/trains", r"bottle/train does not exist"),
        ("bottle/train/good", "bottle/train/bad", r"bottle/train has no folder good or ok or normal"),
        ("bottle/train/good/000.PNG", "bottle/000.PNG", None),
    ],
)
def test_a_folder_of_another_name(tmp_path, old, new, message):
    lookalikes.mvtec(tmp_path)
    (tmp_path / old).rename(tmp_path / new)
    if message is None:
        assert len(load("mvtec", tmp_path)[0].normal) == 2  # a stray picture is no harm
        return
    with pytest.raises(InputError, match=message):
        load("mvtec", tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("object,split,image\na,train,x.JPG\n", "line 2: expected object, split, label, image and mask"),
        ("object,split,label,image,mask\na,train,anomaly,x.JPG,x.JPG\n", "line 2: expected object"),
        ("object,split,label,image,mask\na,train,normal\n", "line 2: expected object"),
        ("split,label,image,mask\ntrain,normal,x.JPG,\n", "line 2: expected object"),
        (
            "object,split,label,image,mask\na,train,normal,x.JPG,\na,test,normal,x.JPG,\n",
            "lists x.JPG twice, in lines 2 and 3",
        ),
        ("object,split,label,image,mask\n", "lists no pictures"),
        ("\0\1\2", "lists no pictures"),
    ],
)
def test_tables_of_visa_that_cannot_be(tmp_path, table, message):
    lookalikes.picture(tmp_path / "x.JPG")
    (tmp_path / "split_csv").mkdir()
    (tmp_path / "split_csv" / "1cls.csv").write_text(table)
    with pytest.raises(InputError, match=rf"1cls\.csv,? {message}"):
        load("visa", tmp_path)


def test_descriptions():
    for name, dataset in DATASETS.items():
        assert name == dataset.name
        assert all((dataset.title, dataset.licence, dataset.source, dataset.layout))
    stated = {name for name, dataset in DATASETS.items() if dataset.licence != "none stated"}
    assert {*DATASETS} - stated == {"mpdd", "ucsd-ped1", "ucsd-ped2", "avenue"}


def test_fingerprints_are_of_what_is_seen(tmp_path, monkeypatch):
    """Not of how a path is spelled; of a picture in memory, all of it."""
    lookalikes.picture(tmp_path / "a.png")
    monkeypatch.chdir(tmp_path)
    spellings = (Path("a.png"), "a.png", "./a.png", tmp_path / "a.png")
    assert len({fingerprint(each) for each in spellings}) == 1
    pictures = [np.zeros((64, 64), np.float32) for _ in range(2)]
    pictures[1][32, 32] = 0.5
    for kind in (lambda a: a, lambda a: Image.fromarray((255 * a).astype(np.uint8)), torch.from_numpy):
        assert len({fingerprint(kind(picture)) for picture in pictures}) == 2
