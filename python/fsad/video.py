"""Videos of one camera, as the field's data sets keep them: frames, and which of them are anomalous.

Frames lie in folders of pictures, or in .avi files, which PyAV decodes (extra `video`); none is decoded
before it is asked for. What does not fit together or cannot be decoded raises InputError.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.io import loadmat

from fsad.errors import FsadError, InputError
from fsad.images import ImageLike, display_name, list_images, load_image

Frames = Sequence[ImageLike]


class Video(NamedTuple):
    name: str
    frames: Frames
    anomalous: np.ndarray  # bool (frames,)


@dataclass
class VideoCategory:
    """One camera: the frames of all its training videos, to adapt to, and videos to test on."""

    name: str
    normal: Frames
    test: list[Video]


class FilmFrames(Sequence[Any]):
    """The frames of an .avi file, uint8 (H, W, 3).

    A frame is reached by decoding all before it, which is exact in every file; to see all, iterate.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as film:  # not every header says how many frames there are
            stream = film.streams.video[0]
            self._count = stream.frames or sum(1 for packet in film.demux(stream) if packet.size)

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[np.ndarray]:
        with _opened(self.path) as film:
            frames = film.decode(video=0)
            for number in range(len(self)):
                frame = next(frames, None)
                if frame is None:
                    raise InputError(f"{display_name(self.path)}: {number} frames, of {len(self)} promised")
                yield frame.to_ndarray(format="rgb24")

    def __getitem__(self, number: Any) -> Any:
        return next(islice(self, range(len(self))[number], None))


class JoinedFrames(Sequence[Any]):
    """The frames of several videos, one after the other."""

    def __init__(self, parts: Sequence[Frames]) -> None:
        self._parts = parts

    def __len__(self) -> int:
        return sum(map(len, self._parts))

    def __iter__(self) -> Iterator[Any]:
        return chain.from_iterable(self._parts)

    def __getitem__(self, number: Any) -> Any:
        for part in self._parts:
            if 0 <= number < len(part):
                return part[number]
            number -= len(part)
        raise IndexError(f"the videos have {len(self)} frames, from 0")


def entries(folder: Path) -> list[Path]:
    """What is in a folder but hidden files, by name."""
    if not folder.is_dir():
        raise InputError(f"the folder {display_name(folder)} does not exist, or is no folder")
    return sorted(path for path in folder.iterdir() if path.name[0] != ".")


def ucsd(root: Path, name: str) -> list[VideoCategory]:
    """UCSD's pedestrians. The list of anomalous frames goes first: Ped1 has masks for ten clips only."""
    test = root / name / "Test"
    clips, table = _clips(test), test / f"{name}.m"
    names = [clip for clip in clips if not clip.endswith("_gt")]
    if table.is_file():
        ranges = re.findall(r"gt_frame\s*=\s*\[(.*?)\]", table.read_text("latin-1"))
        if len(ranges) != len(names):
            raise InputError(f"{display_name(table)} lists {len(ranges)} videos; {len(names)} are beside it")
        truth = {clip: _in_ranges(text, len(clips[clip])) for clip, text in zip(names, ranges, strict=True)}
    else:
        masks = {clip: clips.get(f"{clip}_gt", []) for clip in names}
        truth = {clip: np.array([load_image(mask).any() for mask in masks[clip]]) for clip in names}
    videos = [_video(test / clip, clips[clip], truth[clip]) for clip in names]
    return [VideoCategory(name, _joined(root / name / "Train"), videos)]


def avenue(root: Path) -> list[VideoCategory]:
    """CUHK Avenue; ``volLabel`` holds a mask for each frame."""
    videos, truth = [], root / "ground_truth_demo" / "testing_label_mask"
    for clip, frames in _clips(root / "testing_videos").items():
        masks = _array(truth / f"{clip.lstrip('0')}_label.mat").ravel()
        videos.append(_video(root / "testing_videos" / clip, frames, np.array([m.any() for m in masks])))
    return [VideoCategory("avenue", _joined(root / "training_videos"), videos)]


def shanghaitech(root: Path) -> list[VideoCategory]:
    """ShanghaiTech Campus: a category for each scene that has test videos (scene 13 has none)."""
    training, testing = root / "training", root / "testing"
    training /= "frames" if (training / "frames").is_dir() else "videos"
    scenes: dict[str, list[Video]] = {}
    for clip, frames in _clips(testing / "frames").items():
        anomalous = _array(testing / "test_frame_mask" / f"{clip}.npy").ravel() != 0
        video = _video(testing / "frames" / clip, frames, anomalous)
        scenes.setdefault(clip.split("_")[0], []).append(video)
    return [VideoCategory(name, _joined(training, f"{name}_"), videos) for name, videos in scenes.items()]


def _clips(folder: Path, prefix: str = "") -> dict[str, Frames]:
    """The videos in a folder by name: folders of pictures, and .avi files without such a folder beside them.

    Frames may be called 000 ... 999, 1000: shorter names go first.
    """
    found: dict[str, Frames] = {}
    for path in (path for path in entries(folder) if path.name.startswith(prefix)):
        if path.is_dir():
            frames = list_images(path)
            frames.sort(key=lambda frame: (len(frame.name), frame.name))
            found[path.name] = frames
        elif path.suffix.lower() == ".avi" and path.stem not in found:  # folders go first
            found[path.stem] = FilmFrames(path)
    if not found:
        raise InputError(f"{display_name(folder)} has no videos {prefix}*.avi, nor folders of their frames")
    return found


def _joined(folder: Path, prefix: str = "") -> JoinedFrames:
    return JoinedFrames(list(_clips(folder, prefix).values()))


def _video(path: Path, frames: Frames, anomalous: np.ndarray) -> Video:
    if len(frames) != len(anomalous):
        raise InputError(f"{display_name(path)}: {len(frames)} frames, but truth for {len(anomalous)}")
    return Video(path.name, frames, anomalous)


def _in_ranges(text: str, count: int) -> np.ndarray:
    """MATLAB's '5:90, 140' as bool (count,): frames 5 to 90, counted from 1, and 140."""
    anomalous = np.zeros(count, dtype=bool)
    for first, last in re.findall(r"(\d+)(?:\s*:\s*(\d+))?", text):
        anomalous[int(first) - 1 : int(last or first)] = True
    return anomalous


def _array(path: Path) -> np.ndarray:
    """What a .npy file holds, or ``volLabel`` of a .mat file."""
    try:
        return np.load(path, allow_pickle=False) if path.suffix == ".npy" else loadmat(path)["volLabel"]
    except Exception as error:  # damaged files make both raise nearly anything
        raise InputError(f"{display_name(path)}: no frame labels ({error})") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """An .avi file in PyAV; other formats, some of which name further files or URLs to read, stay closed."""
    try:
        import av
    except ImportError as error:
        advice = "`pip install 'fsad[video]'`, or put the frames as pictures into a folder of that name"
        raise FsadError(f"{display_name(path)}: videos need PyAV; {advice}") from error
    try:
        with av.open(str(path.absolute()), format="avi") as film:
            yield film
    except (av.FFmpegError, IndexError) as error:  # IndexError: no video stream
        raise InputError(f"{display_name(path)}: damaged, or no .avi video ({error})") from error
