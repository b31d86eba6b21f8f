"""Look-alikes of the field's data sets: their layouts with a few pictures of 16 x 16, and every trap known.

Each writer fills `root` as the archive of the data set does. The pictures' grey value tells them apart; the
defect of every mask is `DEFECT`, whichever value marks it.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

DEFECT = np.zeros((16, 16), bool)
DEFECT[4:8, 4:12] = True
FRAMES, BAD_FRAMES = 12, slice(5, 9)  # of each test video, from 0


def picture(path: Path, grey: int = 128) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16), grey, np.uint8)).save(path)


def mask(path: Path, value: int = 255, defect: np.ndarray = DEFECT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((defect * value).astype(np.uint8)).save(path)


def litter(folder: Path) -> None:
    """What file managers and archives leave behind."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (".DS_Store", "Thumbs.db", "readme.txt", "license.txt"):
        (folder / name).write_text("no picture")
    (folder / "._000.png").write_text("a resource fork")
    picture(folder / ".ipynb_checkpoints" / "000-checkpoint.png")


def mvtec(root: Path) -> None:
    """Three defective pictures of two kinds; masks of value 1, one without `_mask`; upper-case suffixes."""
    for category in ("bottle", "metal_nut"):
        folder = root / category
        for number in range(3):
            picture(folder / "train" / "good" / f"{number:03}.PNG", number)
        picture(folder / "test" / "good" / "000.png")
        for number, suffix in enumerate(("png", "PNG")):
            picture(folder / "test" / "broken" / f"{number:03}.{suffix}")
        picture(folder / "test" / "scratch" / "000.bmp")
        mask(folder / "ground_truth" / "broken" / "000_mask.png", 255)
        mask(folder / "ground_truth" / "broken" / "001.png", 1)
        mask(folder / "ground_truth" / "scratch" / "000_mask.bmp", 7)
        for part in (".", "train/good", "test", "test/broken", "ground_truth", "ground_truth/broken"):
            litter(folder / part)
    litter(root)
    (root / "papers").mkdir()


def visa(root: Path) -> None:
    """The archive: .JPG pictures, masks of values 1 to 3, and a table, here with a BOM and DOS line ends."""
    lines = ["object,split,label,image,mask"]
    for category in ("pcb1", "candle"):  # as in the archive, in no order
        images, masks = (f"{category}/Data/{kind}" for kind in ("Images", "Masks"))
        for number in range(5):
            name = f"{images}/Normal/{number:04}.JPG"
            picture(root / name, number)
            lines.append(f"{category},{'train' if number < 3 else 'test'},normal,{name},")
        for number in range(2):
            image, truth = f"{images}/Anomaly/{number:03}.JPG", f"{masks}/Anomaly/{number:03}.png"
            picture(root / image)
            mask(root / truth, 1 + number)
            lines.append(f"{category},test,anomaly,{image},{truth}")
        (root / category / "image_anno.csv").write_text("image,label,mask\n")
    (root / "split_csv").mkdir()
    (root / "split_csv" / "1cls.csv").write_text("\ufeff" + "\r\n".join(lines) + "\r\n", "utf-8")
    litter(root)


def visa_converted(root: Path) -> None:
    """As other software's conversion leaves it: `bad` in place of defects, masks named like pictures."""
    for category in ("candle", "pcb1"):
        for number in range(3):
            picture(root / category / "train" / "good" / f"{number:04}.JPG")
        picture(root / category / "test" / "good" / "0009.JPG")
        picture(root / category / "test" / "bad" / "000.JPG")
        mask(root / category / "ground_truth" / "bad" / "000.png", 2)


def mpdd(root: Path) -> None:
    """MVTec AD's layout; masks with `_mask` in one category, without in the other."""
    for category, ending in (("connector", "_mask"), ("tubes", "")):
        for number in range(2):
            picture(root / category / "train" / "good" / f"{number:03}.png")
            picture(root / category / "test" / "good" / f"{number:03}.png")
            picture(root / category / "test" / "parts_mismatch" / f"{number:03}.png")
            mask(root / category / "ground_truth" / "parts_mismatch" / f"{number:03}{ending}.png")


def btad(root: Path) -> None:
    """ok and ko; .bmp and .png pictures, with masks that may have the other suffix."""
    suffixes = {"01": ("bmp", "png"), "02": ("png", "png"), "03": ("bmp", "bmp")}
    for category, (images, masks) in suffixes.items():
        for number in range(2):
            picture(root / category / "train" / "ok" / f"{number:04}.{images}")
            picture(root / category / "test" / "ok" / f"{number:04}.{images}")
            picture(root / category / "test" / "ko" / f"{number:04}.{images}")
            mask(root / category / "ground_truth" / "ko" / f"{number:04}.{masks}")
    litter(root / "01" / "test")


def kolektor(root: Path) -> None:
    """Four items of two parts, one of them with a defect in items 1 and 4; labels of value 1 and 255."""
    for item in (1, 2, 3, 4):
        for part in range(2):
            picture(root / f"kos{item:02}" / f"Part{part}.jpg", item)
            defect = DEFECT & (part == 1 and item in (1, 4))
            mask(root / f"kos{item:02}" / f"Part{part}_label.bmp", 1 if item == 1 else 255, defect)
        litter(root / f"kos{item:02}")
    (root / "kos_sketches").mkdir()


def folders(root: Path) -> None:
    """One's own: plain, without masks, names in capitals; and rejects in train, nothing normal in test."""
    for number in range(2):
        picture(root / "plain" / "train" / f"{number}.JPEG")
        picture(root / "plain" / "test" / "Good" / f"{number}.tiff")
        picture(root / "plain" / "test" / "dents" / f"{number}.png")
        picture(root / "only bad" / "train" / "OK" / f"{number}.png")
        picture(root / "only bad" / "train" / "rejects" / f"{number}.png")
        picture(root / "only bad" / "test" / "broken" / f"{number}.png")
    litter(root / "plain" / "train")


def ucsd(root: Path, name: str, *, table: bool = True) -> None:
    """Frames as .tif; truth in a list of ranges, beside masks for the last video, or in masks alone."""
    folder = root / name
    for number in (1, 2):
        for frame in range(FRAMES):
            picture(folder / "Train" / f"Train{number:03}" / f"{frame + 1:03}.tif", frame)
            picture(folder / "Test" / f"Test{number:03}" / f"{frame + 1:03}.tif", frame)
        for frame in range(FRAMES) if number == 2 or not table else ():
            bad = DEFECT & (frame in range(FRAMES)[BAD_FRAMES])
            mask(folder / "Test" / f"Test{number:03}_gt" / f"{frame + 1:03}.bmp", defect=bad)
        litter(folder / "Test" / f"Test{number:03}")
    litter(folder / "Test")
    if table:
        ranges = "TestVideoFile = {};\nTestVideoFile{end+1}.gt_frame = [6:7, 8 : 9];\n"
        ranges += "TestVideoFile{end+1}.gt_frame = [1, 12];\n"
        (folder / "Test" / f"{name}.m").write_text(ranges)


def avenue(root: Path, write_video) -> None:
    """Films and a .mat file of masks for each; `write_video(path, frames)` writes one."""
    for part in ("training_videos", "testing_videos"):
        for number in (1, 10):
            write_video(root / part / f"{number:02}.avi", FRAMES)
    for number in (1, 10):
        cells = np.empty((1, FRAMES), object)
        for frame in range(FRAMES):
            cells[0, frame] = (DEFECT & (frame in range(FRAMES)[BAD_FRAMES])).astype(np.uint8)
        path = root / "ground_truth_demo" / "testing_label_mask" / f"{number}_label.mat"
        path.parent.mkdir(parents=True, exist_ok=True)
        savemat(path, {"volLabel": cells})


def shanghaitech(root: Path, write_video) -> None:
    """Scenes 01 and 12, and 13 without tests; test frames as pictures, 0.jpg to 11.jpg, truth in .npy."""
    for clip in ("01_001", "01_002", "12_001", "13_001"):
        write_video(root / "training" / "videos" / f"{clip}.avi", FRAMES)
    labels = np.zeros(FRAMES, np.int64)
    labels[BAD_FRAMES] = 1
    (root / "testing" / "test_frame_mask").mkdir(parents=True)
    for clip in ("01_0014", "12_0142"):
        for frame in range(FRAMES):
            picture(root / "testing" / "frames" / clip / f"{frame}.jpg", frame)
        np.save(root / "testing" / "test_frame_mask" / f"{clip}.npy", labels)


def pictures_as_video(path: Path, frames: int) -> None:
    """A folder of frames in place of a film, whose grey value is 10 times their number."""
    for frame in range(frames):
        picture(path.with_suffix("") / f"{frame}.png", 10 * frame)


def film(path: Path, frames: int) -> None:
    """The same frames as an .avi file; needs PyAV."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", format="avi") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 32, 32, "yuv420p", 10**6
        for number in range(frames):
            grey = np.full((32, 32, 3), 10 * number, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(grey, format="rgb24")))
        out.mux(stream.encode())


WRITERS = {
    "mvtec": mvtec,
    "visa": visa,
    "mpdd": mpdd,
    "btad": btad,
    "kolektor": kolektor,
    "folders": folders,
    "ucsd-ped1": lambda root: ucsd(root, "UCSDped1"),
    "ucsd-ped2": lambda root: ucsd(root, "UCSDped2", table=False),
    "avenue": lambda root: avenue(root, pictures_as_video),
    "shanghaitech": lambda root: shanghaitech(root, pictures_as_video),
}
