"""Videos of one camera, as the field's data sets keep them: frames, and which of them are anomalous.

Frames lie in folders of pictures, or in .avi files, which PyAV decodes (extra `video`); none is decoded
before it is asked for. What does not fit together or cannot be decoded raises InputError.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
from scipy.io import loadmat

from fsad.errors import FsadError, InputError
from fsad.images import ImageLike, display_name, list_images, load_image

Frames = Sequence[ImageLike]
TEMPORAL = ("single", "stack", "difference")
MOST_OPEN = 8  # films at a time: each holds a decoder, and memory for its frames
GAP = 2  # from a frame to the one before that motion is told by


class Video(NamedTuple):
    name: str
    frames: Frames
    anomalous: np.ndarray  # bool (frames,)


@dataclass
class VideoCategory:
    """One camera: its training videos, to adapt to their frames, and videos to test on."""

    name: str
    normal: list[Frames]
    test: list[Video]


class Frame(NamedTuple):
    """A frame as a picture, decoded when it is asked for.

    ``temporal`` is what the picture shows: ``"single"``, the frame; ``"stack"``, the grey of it and of two
    frames before as red, green and blue; ``"difference"``, its change since a frame before, around 0.5.
    """

    frames: Frames
    number: int
    temporal: str = "single"

    @property
    def file(self) -> Any:
        """Where it lies: the film, or the frame's own file."""
        return self.frames.path if isinstance(self.frames, FilmFrames) else self.frames[self.number]

    def picture(self) -> ImageLike:
        if self.temporal == "single":
            return self.frames[self.number]
        numbers = (max(0, self.number - back * GAP) for back in (2, 1, 0))  # a film is read forwards
        earlier, before, now = (load_image(self.frames[number]) for number in numbers)
        if self.temporal == "stack":
            return np.stack([each.mean(2) for each in (now, before, earlier)], 2)
        return 0.5 + (now - before) / 2


class FilmFrames(Sequence[Any]):
    """The frames of an .avi file, uint8 (H, W, 3).

    A frame is reached by decoding all before it, which is exact in every file; what was decoded last is kept
    and gone on from, so that to ask for one after the other is cheap. Few films stay open.
    """

    _open: ClassVar[list["FilmFrames"]] = []  # the last that were asked

    def __init__(self, path: Path) -> None:
        self.path = path
        with _opened(path) as film:  # not every header says how many frames there are
            stream = film.streams.video[0]
            self._count = stream.frames or sum(1 for packet in film.demux(stream) if packet.size)
        self._forget()

    def _forget(self) -> None:
        self._recent: dict[int, np.ndarray] = {}
        self._rest, self._next = iter(self), 0  # nothing is opened before it is asked for a frame

    def __reduce__(self) -> tuple[Any, ...]:  # processes that prepare episodes open films of their own
        return FilmFrames, (self.path,)

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
        number = range(len(self))[number]
        FilmFrames._open = [film for film in FilmFrames._open if film is not self] + [self]
        if len(FilmFrames._open) > MOST_OPEN:
            FilmFrames._open.pop(0)._forget()
        if number < self._next and number not in self._recent:
            self._forget()
        try:
            while number not in self._recent:
                self._recent[self._next] = next(self._rest)
                self._recent.pop(self._next - 2 * GAP - 1, None)
                self._next += 1
        except BaseException:
            self._forget()
            raise
        return self._recent[number]


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
    if left := [clip for clip in clips if clip.endswith("_gt") and clip.removesuffix("_gt") not in names]:
        raise _unlabelled(test / left[0])
    if table.is_file():
        lines = re.sub("%.*", "", table.read_text("latin-1"))  # without comments
        ranges = re.findall(r"gt_frame\s*=\s*\[(.*?)\]", lines)
        if len(ranges) != len(names):
            raise InputError(f"{display_name(table)} lists {len(ranges)} videos; {len(names)} are beside it")
        truth = {clip: np.zeros(len(clips[clip]), dtype=bool) for clip in names}
        for clip in names:
            _check_numbers(test / clip, clips[clip])
        for clip, text in zip(names, ranges, strict=True):  # '5:90, 140': frames 5 to 90, from 1 on, and 140
            for found in re.findall(r"(\d+)(?:\s*:\s*(\d+))?", text):
                first, last = int(found[0]), int(found[1] or found[0])
                if not 1 <= first <= last <= len(truth[clip]):
                    wrong = f"{display_name(table)} lists frames {first} to {last} of {clip}"
                    raise InputError(
                        f"{wrong}, which has 1 to {len(truth[clip])}; give it the list of these videos"
                    )
                truth[clip][first - 1 : last] = True
    else:
        masks = {clip: clips.get(f"{clip}_gt", []) for clip in names}
        truth = {clip: np.array([load_image(mask).any() for mask in masks[clip]]) for clip in names}
    videos = [_video(test / clip, clips[clip], truth[clip]) for clip in names]
    return [VideoCategory(name, list(_clips(root / name / "Train").values()), videos)]


def avenue(root: Path) -> list[VideoCategory]:
    """CUHK Avenue; ``volLabel`` holds a mask for each frame."""
    videos, truth = [], root / "ground_truth_demo" / "testing_label_mask"
    clips = _clips(root / "testing_videos")
    _check_labels(truth, "*_label.mat", {f"{clip.lstrip('0')}_label" for clip in clips})
    for clip, frames in clips.items():
        masks = _array(truth / f"{clip.lstrip('0')}_label.mat").ravel()
        videos.append(_video(root / "testing_videos" / clip, frames, np.array([m.any() for m in masks])))
    return [VideoCategory("avenue", list(_clips(root / "training_videos").values()), videos)]


def shanghaitech(root: Path) -> list[VideoCategory]:
    """ShanghaiTech Campus: a category for each scene; scene 13 has no videos to test on."""
    training, testing, labels = root / "training", root / "testing", root / "testing" / "test_frame_mask"
    scenes: dict[str, VideoCategory] = {}
    for clip, frames in sorted(_clips(training / "videos", training / "frames").items()):
        name = clip.split("_")[0]
        scenes.setdefault(name, VideoCategory(name, [], [])).normal.append(frames)
    clips = _clips(testing / "frames")
    _check_labels(labels, "*.npy", set(clips))
    for clip, frames in clips.items():
        name = clip.split("_")[0]
        if name not in scenes:
            missing = f"videos {name}_*.avi, nor folders of their frames"
            raise InputError(f"{display_name(training)} has no {missing}")
        anomalous = _array(labels / f"{clip}.npy").ravel()
        if not np.isin(anomalous, (0, 1)).all():
            raise InputError(f"{display_name(labels / clip)}.npy: expected 0 or 1 for each frame")
        scenes[name].test.append(_video(testing / "frames" / clip, frames, anomalous == 1))
    return list(scenes.values())


def _clips(*places: Path) -> dict[str, Frames]:
    """The videos in one place or more by name: folders of pictures, and .avi files without such a folder.
    Frames may be called 000 ... 999, 1000: shorter names go first."""
    found: dict[str, Frames] = {}
    paths = [path for place in places if place.is_dir() for path in entries(place)]
    for path in sorted(paths, key=lambda path: not path.is_dir()):  # folders go first
        if path.is_dir():
            frames = list_images(path)
            frames.sort(key=lambda frame: (len(frame.name), frame.name))
            found[path.name] = frames
        elif path.suffix.lower() == ".avi" and path.stem not in found:
            found[path.stem] = FilmFrames(path)
    if not found:
        wrong = (
            f"{display_name(places[0])} has no videos *.avi, nor folders of their frames, or does not exist"
        )
        raise InputError(f"{wrong}; put them there")
    return found


def _check_numbers(clip: Path, frames: Frames) -> None:
    """A list names frames by number, from 1 on: one that is lost would shift the labels of all after it."""
    names = [frame.stem for frame in frames if isinstance(frame, Path)]
    for number, name in enumerate(names, 1):
        if name.isdecimal() and int(name) != number:
            raise InputError(f"{display_name(clip)} has no frame {number}, but its list counts all of them")


def _check_labels(folder: Path, pattern: str, expected: set[str]) -> None:
    """That there is a video to each file of labels: a test set in part is another test set."""
    for path in entries(folder) if folder.is_dir() else ():
        if path.match(pattern) and path.stem not in expected:
            raise _unlabelled(path)


def _unlabelled(labels: Path) -> InputError:
    return InputError(f"{display_name(labels)} are labels without a video; add the video, or remove them")


def _video(path: Path, frames: Frames, anomalous: np.ndarray) -> Video:
    if len(frames) != len(anomalous):
        raise InputError(f"{display_name(path)}: {len(frames)} frames, but truth for {len(anomalous)}")
    return Video(path.name, frames, anomalous)


def _array(path: Path) -> np.ndarray:
    """What a .npy file holds, or ``volLabel`` of a .mat file."""
    if not path.is_file():
        raise InputError(
            f"{display_name(path)} does not exist; expected the labels of a video's frames there"
        )
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
