"""The field's data sets: what each is, how it lies on disk, and how that becomes categories to evaluate on.

`DATASETS` describes them, `load` reads one. Nothing is downloaded and nothing guessed: a
root that is not laid out as described, a picture without its mask and a file that is missing raise
InputError, which names the path.
"""

import csv
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fsad.errors import FsadError, InputError
from fsad.images import FORMATS, SUFFIXES, ImageLike, display_name, list_images, load_image, resize
from fsad.procedural import FAMILIES, HELD_OUT, ProceduralTask
from fsad.video import TEMPORAL, Frame, VideoCategory, avenue, entries, shanghaitech, ucsd

GOOD = ("good", "ok", "normal")  # what folders of normal pictures are called, in any case


class Picture(NamedTuple):
    source: Any  # ImageLike, or Frame
    anomalous: bool
    mask: ImageLike | None  # for `read_mask`; None for a normal picture, or where there is no pixel truth


@dataclass
class Category:
    """One product, or camera: normal pictures to adapt to, and pictures to test on."""

    name: str
    normal: list[Any]  # ImageLike, or Frame
    test: list[Picture]
    videos: list[int] = field(default_factory=list)  # lengths of those that the test pictures are of
    dataset: str = ""  # as it was asked for; own folders with their name, "folders:NAME"

    def add(self, source: Any, anomalous: bool, held_out: bool, mask: ImageLike | None = None) -> None:
        """To test on if it is anomalous or held out, else to adapt to; normal ones lose their mask."""
        if anomalous or held_out:
            self.test.append(Picture(source, anomalous, mask if anomalous else None))
        else:
            self.normal.append(source)

    @property
    def has_masks(self) -> bool:
        """Whether there is pixel truth: every anomalous picture has a mask."""
        return all(picture.mask is not None for picture in self.test if picture.anomalous)


class Dataset(NamedTuple):
    name: str
    title: str
    licence: str
    source: str
    layout: str  # what lies in its root
    marks: tuple[str, ...]  # patterns, of which a root holds at least one; empty: takes no root
    read: Callable[[Any], list[Any]]
    video: bool = False


def read_mask(source: ImageLike | None, size: int | tuple[int, int]) -> np.ndarray:
    """bool (size, size), or `size` = (h, w): which pixels are anomalous; none where there is no mask.

    Resized with antialiasing; then more than half of a pixel's area must be anomalous. With any share above
    0, masks would grow as pictures shrink.
    """
    if source is None:
        return np.zeros((size, size) if isinstance(size, int) else size, dtype=bool)
    return resize(_marked(source), size) > 0.5


def read_picture(source: Any) -> np.ndarray:
    """`load_image` of a category's picture, which may be a frame of a video."""
    return load_image(source.picture() if isinstance(source, Frame) else source)


def check_masks(category: Category, size: int) -> None:
    """That masks can be right: of their pictures' sizes, none empty, and not all gone at ``size``.

    Raises InputError, which names the file or the category. Pictures are not decoded, only masks.
    """
    seen = False
    for source, anomalous, mask in category.test:
        if mask is None:
            continue
        marked, shape = _marked(mask), _shape(source)
        name = display_name(mask) if isinstance(mask, (str, os.PathLike)) else f"a mask of {category.name}"
        if marked.shape != shape:
            sizes = f"{marked.shape[1]} x {marked.shape[0]} pixels, its picture {shape[1]} x {shape[0]}"
            raise InputError(f"{name} is {sizes}; give it the mask that was drawn on it")
        if anomalous and not marked.any():
            advice = "mend it, or move the picture to the normal ones"
            raise InputError(f"{name} marks no pixel, but its picture counts as anomalous; {advice}")
        seen = seen or bool((resize(marked, size) > 0.5).any())
    if not seen:
        gone = f"at {size} x {size} pixels nothing is left of any mask of {category.name}"
        raise InputError(f"{gone}; take a larger --input-size, or leave the category out")


def _shape(source: Any) -> tuple[int, ...]:
    """(H, W) of a picture; of a file, from its header if that tells."""
    with suppress(Exception), Image.open(source, formats=FORMATS) as image:
        # To ask a PNG file without such a chunk for its orientation would decode it.
        upright = image.format == "PNG" and "exif" not in image.info
        if upright or image.getexif().get(0x0112, 1) == 1:
            return image.height, image.width
    return read_picture(source).shape[:2]


def fingerprint(source: Any) -> bytes:
    """A digest of a picture; of a file, by its path, size and time of change, however the path is spelled."""
    about = ""
    if isinstance(source, Frame):
        about, source = f"{source.number} {source.temporal};", source.file
    if isinstance(source, (str, os.PathLike)):
        path, file = Path(source).resolve(), os.stat(source)
        content = f"{path} {file.st_size} {file.st_mtime_ns}".encode()
    else:
        picture = np.empty(0) if source is None else load_image(source)
        content = str(picture.shape).encode() + picture.tobytes()
    return hashlib.sha256(about.encode() + content).digest()


def load(given: str, root: str | os.PathLike | None = None) -> list[Category]:
    """The categories of a data set: `load("NAME", ROOT)` or `load("NAME=ROOT")`.

    Of videos, the frames as pictures; as "NAME:stack" or "NAME:difference" these show motion, see ``Frame``.
    The names of categories then end alike, so that views can be compared in one evaluation.

    root: the folder of the data; None for sets that come from a package or are made up. Raises InputError,
    or FsadError where a package is missing.
    """
    text, _, stated = given.partition("=")
    name, _, temporal = text.partition(":")
    is_video = name in DATASETS and DATASETS[name].video
    if temporal and not (is_video and temporal in TEMPORAL):
        raise InputError(f"got {text!r}; expected NAME, or for videos NAME:{' or NAME:'.join(TEMPORAL)}")
    found = read(name, stated or root)
    # Several folders of one's own are as many data sets.
    dataset = f"{name}:{Path(stated or str(root)).resolve().name}" if name == "folders" else text
    if is_video:
        found = [_frames(camera, temporal or TEMPORAL[0]) for camera in found]
    for category in found:
        category.dataset = dataset
        category.name += text.removeprefix(name)
    return found


def read(name: str, root: str | os.PathLike | None) -> list[Any]:
    """`load` without a view of videos: each Category, or VideoCategory."""
    if name not in DATASETS:
        raise InputError(f"got {name!r}; expected a data set: {', '.join(DATASETS)}")
    dataset = DATASETS[name]
    if (root is None) == bool(dataset.marks):
        raise InputError(f"{name} {'needs a' if dataset.marks else 'takes no'} folder: {dataset.layout}")
    return dataset.read(None if root is None else _checked(Path(root), dataset))


def _frames(camera: VideoCategory, temporal: str) -> Category:
    normal = [Frame(frames, i, temporal) for frames in camera.normal for i in range(len(frames))]
    test = [
        Picture(Frame(video.frames, i, temporal), bool(anomalous), None)
        for video in camera.test
        for i, anomalous in enumerate(video.anomalous)
    ]
    return Category(camera.name, normal, test, [len(video.frames) for video in camera.test])


def _checked(root: Path, dataset: Dataset) -> Path:
    """The root, if it is laid out as it should be; the error says what is missing, and what lies near."""
    if not root.is_dir():
        wrong = f"{display_name(root)} does not exist, or is no folder"
        raise InputError(f"{wrong}; expected the folder of {dataset.title}, which holds {dataset.layout}")
    found = [path.name for path in entries(root)]
    if _fits(root, dataset):
        return root
    near = (*root.absolute().parents[:2], *(root / name for name in found))
    right = next((path for path in near if _fits(path, dataset)), None)
    shown = ", ".join(map(display_name, found[:6])) + (" …" if len(found) > 6 else "")
    wrong = f"{display_name(root)} is not laid out as {dataset.title}: expected {dataset.layout}"
    advice = f". Give {display_name(right)} instead" if right else ""
    mark = display_name(root / dataset.marks[0])
    raise InputError(f"{wrong}, hence {mark}; found {shown or 'nothing'}{advice}")


def _fits(root: Path, dataset: Dataset) -> bool:
    return root.is_dir() and any(next(root.glob(mark), None) is not None for mark in dataset.marks)


def _marked(source: ImageLike) -> np.ndarray:
    """float32 (H, W), 1 where a mask is not 0, whichever values it has. JPEG makes small values of the zeros
    near an edge: there, half of the maximum tells where the edge was. What is transparent marks nothing."""
    colours = load_image(source, background=0).transpose(2, 0, 1)
    values = np.maximum.reduce([*colours])  # ten times as fast as the maximum over an axis
    is_jpeg = isinstance(source, (str, os.PathLike)) and Path(source).suffix.lower() in (".jpg", ".jpeg")
    return (values > (values.max() / 2 if is_jpeg else 0)).astype(np.float32)


def folders(folder: Path) -> list[Path]:
    """In a folder but for hidden ones, by name; InputError where there is no such folder."""
    return [path for path in entries(folder) if path.is_dir()]


def _pairs(pictures: list[Path], masks: list[Path], *endings: str) -> Iterator[tuple[Path, Path]]:
    """Each picture with its mask, which has the same name but for one of `endings` and the suffix."""
    left: dict[str, Path] = {}
    for mask in masks:
        if (twin := left.setdefault(mask.stem.lower(), mask)) != mask:
            both = f"{display_name(twin)} and {display_name(mask)}"
            raise InputError(f"{both} are two masks of one name; a picture has one: merge or remove one")
    first: dict[str, Path] = {}
    for picture in pictures:
        if (other := first.setdefault(picture.stem.lower(), picture)) != picture:
            both = f"{display_name(other)} and {display_name(picture)}"
            raise InputError(f"{both} share one name, so that a mask could be either's; rename one")
        names = [picture.stem.lower() + ending for ending in endings]
        name = next((name for name in names if name in left), None)
        if name is None:
            raise InputError(f"{display_name(picture)} has no mask; expected {'.* or '.join(names)}.*")
        yield picture, left.pop(name)
    if left:
        raise InputError(f"{display_name(next(iter(left.values())))} is a mask without a picture")


def _tree(root: Path, need_masks: bool = True) -> list[Category]:
    """MVTec AD's layout and its like; folders with neither train nor test are no categories."""
    found = [path for path in folders(root) if (path / "train").is_dir() or (path / "test").is_dir()]
    return [Category(path.name, _tree_normal(path / "train"), _tree_test(path, need_masks)) for path in found]


def _tree_normal(train: Path) -> list[ImageLike]:
    """The pictures in train/good, or in train where that has no folders."""
    kinds = folders(train)
    good = [kind for kind in kinds if kind.name.lower() in GOOD]
    if kinds and not good:
        raise InputError(f"{display_name(train)} has no folder {' or '.join(GOOD)} of normal pictures")
    return [path for kind in good or [train] for path in list_images(kind)]


def _tree_test(category: Path, need_masks: bool) -> list[Picture]:
    """The pictures in test/<kind>, with masks if these are needed or there is a ground_truth."""
    test: list[Picture] = []
    truth, kinds = category / "ground_truth", folders(category / "test")
    if truth.is_dir() and (left := [p for p in entries(truth) if p.suffix.lower() in SUFFIXES]):
        raise InputError(f"{display_name(left[0])} lies in no folder of a kind of defect; move or remove it")
    known = {*GOOD, *(kind.name.lower() for kind in kinds)}
    for path in folders(truth) if truth.is_dir() else ():
        if path.name.lower() not in known and entries(path):
            wrong = f"{display_name(path)} has masks, but no {display_name(category / 'test' / path.name)}"
            raise InputError(f"{wrong} the pictures; add these, or remove the masks")
    for kind in kinds:
        pictures, anomalous = list_images(kind), kind.name.lower() not in GOOD
        if anomalous and (need_masks or truth.is_dir()):
            masks = list_images(truth / kind.name) if (truth / kind.name).is_dir() else []
            places = {path.relative_to(kind).parent for path in pictures}
            apart = [path for path in masks if path.relative_to(truth / kind.name).parent not in places]
            if apart:
                wrong = f"{display_name(apart[0])} lies in a folder that the pictures have not"
                raise InputError(f"{wrong}; expected a mask for each picture, merged where there are several")
            test += [Picture(path, True, mask) for path, mask in _pairs(pictures, masks, "_mask", "")]
        else:
            test += [Picture(path, anomalous, None) for path in pictures]
    if not kinds:
        raise InputError(f"{display_name(category / 'test')} holds no folders; expected good and defects")
    return test


def _visa(root: Path) -> list[Category]:
    """As it is distributed, split by its table, or as it is converted for other software."""
    table, categories = root / "split_csv" / "1cls.csv", dict[str, Category]()
    if not table.is_file():
        return _tree(root)
    with open(table, newline="", encoding="utf-8-sig", errors="replace") as file:
        rows = list(csv.DictReader(file, restval=""))
    if not rows:
        raise InputError(f"{display_name(table)} lists no pictures")
    lines = dict[str, int]()
    for number, row in enumerate(rows, 2):
        kind = f"{row.get('split')} {row.get('label')}"
        image, mask = root / row.get("image", ""), root / row.get("mask", "")
        known = kind in ("train normal", "test normal") or (kind == "test anomaly" and mask.is_file())
        if not known or "object" not in row or not image.is_file():
            expected = "object, split, label, image and mask, and files that exist"
            raise InputError(f"{display_name(table)}, line {number}: expected {expected}; got {row}")
        if (first := lines.setdefault(row["image"], number)) != number:
            twice = f"{display_name(table)} lists {row['image']} twice, in lines {first} and {number}"
            raise InputError(f"{twice}; a picture is to adapt to or to test on, once: remove one")
        category = categories.setdefault(row["object"], Category(row["object"], [], []))
        category.add(image, kind == "test anomaly", kind != "train normal", mask)
    return sorted(categories.values(), key=lambda category: category.name)


def _kolektor(root: Path) -> list[Category]:
    """The normal pictures of items with odd numbers are to adapt to, all others to test on. There is no split
    of its own; pictures of an item are alike, and so stay together, but for the defects."""
    category = Category("kolektor", [], [])
    for item in (path for path in folders(root) if re.fullmatch(r"(?i)kos\d+", path.name)):
        files = list_images(item)
        labels = [path for path in files if path.stem.lower().endswith("_label")]
        for path, label in _pairs([path for path in files if path not in labels], labels, "_label"):
            category.add(path, bool(_marked(label).any()), int(item.name[3:]) % 2 == 0, label)
    return [category]


def _elpv(_: None) -> list[Category]:
    """Mono- and polycrystalline cells that are defective with a probability of 0 or 1. Blocks of 60
    neighbouring numbers stay together, since neighbours are alike: every third is for testing."""
    package = find_spec("elpv_dataset")
    if package is None or package.origin is None:
        raise FsadError("elpv is not installed; `pip install elpv-dataset` or `pip install 'fsad[demo]'`")
    root = Path(package.origin).parent / "data"
    categories = {kind: Category(kind, [], []) for kind in ("mono", "poly")}
    for line in (root / "labels.csv").read_text().splitlines():
        name, text, kind = line.split()
        probability, held_out = float(text), int(name[-8:-4]) // 60 % 3 == 2  # images/cell0001.png
        if probability in (0, 1):
            categories[kind].add(root / name, probability == 1, held_out)
    return list(categories.values())


def _procedural(_: None) -> list[Category]:
    """One product of each family, with seeds that training does not reach; arrays in place of paths."""
    categories = []
    for number, family in enumerate(FAMILIES):
        task = ProceduralTask(HELD_OUT + number, 96, family)
        test = [Picture(task.normal(i).image, False, None) for i in range(20, 40)]
        test += [Picture(part.image, True, part.mask) for part in map(task.defective, range(40, 60))]
        categories.append(Category(task.name, [task.normal(i).image for i in range(20)], test))
    return categories


def _ucsd(number: int) -> tuple[str, tuple[str], Callable[[Path], list[VideoCategory]], bool]:
    name = f"UCSDped{number}"
    text = f"{name}/Train/Train001/001.tif, {name}/Test/{{Test001/001.tif,{name}.m or Test001_gt/001.bmp}}"
    return text, (f"{name}/Train",), partial(ucsd, name=name), True


# The fields of `Dataset` from `layout` on.
LIKE_MVTEC = "<category>/train/good/*.png, test/{good,<defect>}/*.png, ground_truth/<defect>/<name>_mask.png"
TREE = LIKE_MVTEC, ("*/train/good",), _tree
VISA_TABLE = "split_csv/1cls.csv (object,split,label,image,mask), and the pictures that it names"
VISA = f"{VISA_TABLE}; or MVTec AD's layout", ("split_csv/1cls.csv", "*/train/good"), _visa
BTAD = "{01,02,03}/{train/ok,test/{ok,ko},ground_truth/ko}/*", ("*/train/ok", "*/train/good"), _tree
KOLEKTOR = "kosNN/PartM.jpg, kosNN/PartM_label.bmp; only odd NN to adapt to", ("kos*/*_label.*",), _kolektor
ELPV = "package elpv-dataset; labels 0 and 1, every third block of 60 to test on", (), _elpv
LOOSE = "<category>/train/*.png or train/good/*.png, test/{good,<defect>}/*.png, and maybe ground_truth"
FOLDERS = LOOSE, ("*/train",), partial(_tree, need_masks=False)
MADE_UP = "no files; a product of each family, 20 to adapt to, 20 + 20 to test on", (), _procedural
CLIPS = "{training,testing}_videos/01.avi, ground_truth_demo/testing_label_mask/1_label.mat"
AVENUE = CLIPS, ("training_videos",), avenue, True
SCENES = "training/videos/01_001.avi, testing/frames/01_0014/000.jpg, testing/test_frame_mask/01_0014.npy"
SHANGHAITECH = SCENES, ("testing/frames",), shanghaitech, True
BY_NC_SA, NOT_STATED = "CC BY-NC-SA 4.0", "none stated"

_ALL = (
    Dataset("mvtec", "MVTec AD", BY_NC_SA, "mvtec.com/company/research/datasets/mvtec-ad", *TREE),
    Dataset("visa", "VisA", "CC BY 4.0", "github.com/amazon-science/spot-diff", *VISA),
    Dataset("mpdd", "MPDD, metal parts", NOT_STATED, "github.com/stepanje/MPDD", *TREE),
    Dataset("btad", "BTAD", BY_NC_SA, "avires.dimi.uniud.it/papers/btad/btad.zip", *BTAD),
    Dataset("kolektor", "KolektorSDD", BY_NC_SA, "vicos.si/resources/kolektorsdd", *KOLEKTOR),
    Dataset("elpv", "ELPV, solar cells", BY_NC_SA, "pypi.org/project/elpv-dataset", *ELPV),
    Dataset("folders", "folders of categories", "yours", "your own pictures", *FOLDERS),
    Dataset("procedural", "made-up products, NOT real data", "Apache-2.0", "fsad.procedural", *MADE_UP),
    Dataset("ucsd-ped1", "UCSD Ped1", NOT_STATED, "svcl.ucsd.edu/projects/anomaly/dataset.htm", *_ucsd(1)),
    Dataset("ucsd-ped2", "UCSD Ped2", NOT_STATED, "svcl.ucsd.edu/projects/anomaly/dataset.htm", *_ucsd(2)),
    Dataset("avenue", "CUHK Avenue", NOT_STATED, "cse.cuhk.edu.hk/leojia/projects/detectabnormal", *AVENUE),
    Dataset("shanghaitech", "ShanghaiTech", "BSD 2-Clause", "svip-lab.github.io/dataset", *SHANGHAITECH),
)
DATASETS = {dataset.name: dataset for dataset in _ALL}
