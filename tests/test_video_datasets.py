"""Each data set of videos is read from its look-alike, traps included; what is wrong with one is named."""

import pickle
import re
import shutil
import sys

import lookalikes
import numpy as np
import pytest
from lookalikes import BAD_FRAMES, FRAMES

from fsad import video
from fsad.datasets import (
    fingerprint,
    load,
    read,
    read_picture,
)
from fsad.errors import FsadError, InputError
from fsad.images import load_image
from fsad.video import FilmFrames, Frame

TRUTH = np.zeros(FRAMES, bool)
TRUTH[BAD_FRAMES] = True


def grey(frame) -> int:
    return round(255 * float(load_image(frame).mean()))


@pytest.mark.parametrize(("number", "table"), [(1, True), (2, False)])
def test_ucsd(tmp_path, number, table):
    lookalikes.ucsd(tmp_path, f"UCSDped{number}", table=table)
    (category,) = read(f"ucsd-ped{number}", tmp_path)
    assert category.name == f"UCSDped{number}"
    assert [[grey(frame) for frame in video] for video in category.normal] == [[*range(FRAMES)]] * 2
    first, second = category.test
    assert (first.name, second.name) == ("Test001", "Test002")
    assert [path.name for path in first.frames] == [f"{i + 1:03}.tif" for i in range(FRAMES)]
    np.testing.assert_array_equal(first.anomalous, TRUTH)
    expected = np.isin(np.arange(FRAMES), (0, FRAMES - 1)) if table else TRUTH  # the list goes before masks
    np.testing.assert_array_equal(second.anomalous, expected)
    assert second.anomalous.dtype == bool


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ("6:700", "frames 6 to 700 of Test001, which has 1 to 12"),
        ("2, 300:400", "frames 300 to 400 of Test001"),
        ("0:3", "frames 0 to 3 of"),
        ("13", "frames 13 to 13 of"),
        ("9:3", "frames 9 to 3 of"),
    ],
)
def test_ranges_outside_a_video_are_named(tmp_path, ranges, message):
    lookalikes.ucsd(tmp_path, "UCSDped2")
    table = tmp_path / "UCSDped2" / "Test" / "UCSDped2.m"
    table.write_text(table.read_text().replace("6:7, 8 : 9", ranges))
    with pytest.raises(InputError, match=rf"UCSDped2\.m lists {message}"):
        read("ucsd-ped2", tmp_path)


def test_avenue_as_films(tmp_path):
    pytest.importorskip("av", reason="needs PyAV, the extra video")
    lookalikes.avenue(tmp_path, lookalikes.film)
    (category,) = read("avenue", tmp_path)
    check_avenue(category)
    film = category.normal[1]
    frame = film[3]
    assert (frame.shape, frame.dtype) == ((32, 32, 3), np.uint8)
    for number in (11, 10, 2, 9, -1, 0):  # backwards, too
        assert abs(grey(film[number]) - 10 * (number % FRAMES)) <= 4
    with pytest.raises(IndexError):
        film[FRAMES]
    again = pickle.loads(pickle.dumps(film))
    assert (again.path, grey(again[3])) == (film.path, grey(frame))


def test_a_film_is_decoded_once_to_see_it_in_order(tmp_path, monkeypatch):
    pytest.importorskip("av", reason="needs PyAV, the extra video")
    lookalikes.film(tmp_path / "film.avi", FRAMES)
    film, opened = FilmFrames(tmp_path / "film.avi"), []
    monkeypatch.setattr(
        "fsad.video._opened", lambda path, open=video._opened: opened.append(path) or open(path)
    )
    for number in range(FRAMES):
        Frame(film, number, "stack").picture()
    assert len(opened) == 1


def test_frames_as_pictures(tmp_path):
    lookalikes.ucsd(tmp_path, "UCSDped2")
    (single,) = load(f"ucsd-ped2={tmp_path}")
    assert (single.name, single.dataset, single.videos) == ("UCSDped2", "ucsd-ped2", [FRAMES, FRAMES])
    assert [grey(frame.picture()) for frame in single.normal] == [*range(FRAMES)] * 2
    assert [picture.anomalous for picture in single.test][:FRAMES] == TRUTH.tolist()
    (stack,) = load(f"ucsd-ped2:stack={tmp_path}")
    assert (stack.name, stack.dataset) == ("UCSDped2:stack", "ucsd-ped2:stack")
    for frame, greys in ((1, (1, 0, 0)), (11, (11, 9, 7)), (FRAMES, (0, 0, 0))):  # a video begins anew
        values = 255 * read_picture(stack.normal[frame])
        np.testing.assert_allclose(values, np.broadcast_to(greys, (16, 16, 3)), atol=1e-4)
    (difference,) = load(f"ucsd-ped2:difference={tmp_path}")
    for frame, change in ((1, 1), (9, 2)):
        np.testing.assert_allclose(
            255 * read_picture(difference.test[frame].source), 127.5 + change / 2, atol=1e-4
        )
    prints = [fingerprint(category.normal[5]) for category in (single, stack, difference)]
    assert len({*prints, fingerprint(single.normal[6])}) == 4
    for wrong in (f"ucsd-ped2:sum={tmp_path}", f"mvtec:stack={tmp_path}"):
        with pytest.raises(InputError, match="expected NAME, or for videos NAME:single or NAME:stack"):
            load(wrong)


def test_avenue_as_pictures(tmp_path):
    """Needs no PyAV, even with films beside them."""
    lookalikes.avenue(tmp_path, lookalikes.pictures_as_video)
    (tmp_path / "testing_videos" / "01.avi").write_bytes(b"never opened")
    check_avenue(*read("avenue", tmp_path))


def check_avenue(category) -> None:
    assert (category.name, [*map(len, category.normal)]) == ("avenue", [FRAMES, FRAMES])
    assert [video.name for video in category.test] == ["01", "10"]
    for each in category.test:
        np.testing.assert_array_equal(each.anomalous, TRUTH)
        assert len(each.frames) == FRAMES
        np.testing.assert_allclose([grey(frame) for frame in each.frames], 10 * np.arange(FRAMES), atol=4)
    np.testing.assert_allclose(grey(category.normal[1][3]), 30, atol=4)


def test_shanghaitech_by_scene(tmp_path):
    lookalikes.WRITERS["shanghaitech"](tmp_path)
    categories = read("shanghaitech", tmp_path)
    assert [(c.name, len(c.normal), len(c.test)) for c in categories] == [
        ("01", 2, 1),
        ("12", 1, 1),
        ("13", 1, 0),
    ]
    (tmp_path / "training" / "frames").mkdir()  # beside videos, an empty one says nothing
    (tmp_path / "training" / "frames" / ".DS_Store").touch()
    assert [len(c.normal) for c in read("shanghaitech", tmp_path)] == [2, 1, 1]
    (video,) = categories[0].test
    assert [path.stem for path in video.frames] == [str(i) for i in range(FRAMES)]  # 9 goes before 10
    np.testing.assert_array_equal(video.anomalous, TRUTH)


def test_films_without_pyav(tmp_path, monkeypatch):
    lookalikes.avenue(tmp_path, lookalikes.pictures_as_video)
    (tmp_path / "testing_videos" / "11.avi").touch()
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(FsadError, match=r"11\.avi: videos need PyAV; `pip install 'fsad\[video\]'`"):
        read("avenue", tmp_path)


def test_films_that_cannot_be_decoded(tmp_path):
    pytest.importorskip("av", reason="needs PyAV, the extra video")
    lookalikes.avenue(tmp_path, lookalikes.film)
    path = tmp_path / "training_videos" / "01.avi"
    (category,) = read("avenue", tmp_path)
    whole = path.read_bytes()
    ninth = [match.start() for match in re.finditer(b"00dc", whole[whole.index(b"movi") :])][8]
    ninth += whole.index(b"movi")
    for end, message in ((ninth, "8 frames, of 12 promised"), (ninth + 10, "damaged, or no .avi video")):
        path.write_bytes(whole[:end])
        with pytest.raises(InputError, match=rf"01\.avi: {message}"):
            list(category.normal[0])
        with pytest.raises(InputError, match=rf"01\.avi: {message}"):
            category.normal[0][FRAMES - 1]
    length = whole.index(b"strh") + 8 + 32
    path.write_bytes(whole[:length] + bytes(4) + whole[length + 4 :])  # the number of frames is not said
    check_avenue(*read("avenue", tmp_path))
    path.write_text("ffconcat version 1.0\nfile 10.avi\n")  # FFmpeg would read that file
    with pytest.raises(InputError, match=r"01\.avi: damaged, or no \.avi video"):
        read("avenue", tmp_path)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("ucsd-ped1", "UCSDped1/Test/UCSDped1.m", r"Test001: 12 frames, but truth for 0"),
        ("ucsd-ped2", "UCSDped2/Test/Test002/012.tif", r"Test002: 11 frames, but truth for 12"),
        ("avenue", "ground_truth_demo/testing_label_mask/10_label.mat", r"10_label\.mat does not exist"),
        ("shanghaitech", "testing/test_frame_mask/12_0142.npy", r"12_0142\.npy does not exist"),
        ("shanghaitech", "testing/frames/12_0142/0.jpg", r"12_0142: 11 frames, but truth for 12"),
    ],
)
def test_lost_truth_or_frames_are_named(tmp_path, name, lost, message):
    lookalikes.WRITERS[name](tmp_path)
    (tmp_path / lost).unlink()
    with pytest.raises(InputError, match=message):
        read(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "lost", "message"),
    [
        ("ucsd-ped2", "UCSDped2/Test/Test002", r"Test002_gt are labels without a video"),
        ("avenue", "testing_videos/10", r"10_label\.mat are labels without a video"),
        ("shanghaitech", "testing/frames/12_0142", r"12_0142\.npy are labels without a video"),
    ],
)
def test_a_test_set_in_part_is_refused(tmp_path, name, lost, message):
    lookalikes.WRITERS[name](tmp_path)
    (tmp_path / lost).rename(tmp_path / "elsewhere")
    with pytest.raises(InputError, match=message):
        read(name, tmp_path)


def test_films_of_which_some_are_frames_already(tmp_path):
    lookalikes.WRITERS["shanghaitech"](tmp_path)
    (tmp_path / "testing" / "test_frame_mask" / "._12_0142.npy").write_text("a resource fork")
    films, frames = (tmp_path / "training" / kind for kind in ("videos", "frames"))
    frames.mkdir()
    (frames / "readme.txt").write_text("no video")
    (films / "01_002").rename(frames / "01_002")
    shutil.copytree(films / "12_001", frames / "12_001")
    for rest in ([], [film.name for film in films.iterdir() if film.name != "12_001"]):
        for name in rest:  # then of all, and the films are gone
            (films / name).rename(frames / name)
        scenes = read("shanghaitech", tmp_path)
        assert [(scene.name, len(scene.normal)) for scene in scenes] == [("01", 2), ("12", 1), ("13", 1)]
    shutil.rmtree(films / "12_001")
    assert len(read("shanghaitech", tmp_path)) == 3


def test_few_films_stay_open(tmp_path):
    pytest.importorskip("av")
    lookalikes.film(tmp_path / "a.avi", FRAMES)
    films = [FilmFrames(tmp_path / "a.avi") for _ in range(12)]
    first = [film[3] for film in films]
    assert len(FilmFrames._open) == 8 and not films[0]._recent and films[-1]._recent
    assert all((film[3] == frame).all() for film, frame in zip(films, first, strict=True))


def test_other_faults_of_video_sets(tmp_path):
    lookalikes.ucsd(tmp_path, "UCSDped1")
    table = tmp_path / "UCSDped1" / "Test" / "UCSDped1.m"
    whole = read("ucsd-ped1", tmp_path)[0].test[0].anomalous
    table.write_text("% TestVideoFile{end+1}.gt_frame = [1:2];\n" + table.read_text())
    assert (read("ucsd-ped1", tmp_path)[0].test[0].anomalous == whole).all()
    table.write_text(table.read_text() + "TestVideoFile{end+1}.gt_frame = [1:2];\n")
    with pytest.raises(InputError, match=r"UCSDped1\.m lists 3 videos; 2 are beside it"):
        read("ucsd-ped1", tmp_path)
    lookalikes.ucsd(tmp_path, "UCSDped2")  # with lists that end before the last frame: all would seem to fit
    ped2 = tmp_path / "UCSDped2" / "Test"
    (ped2 / "UCSDped2.m").write_text("TestVideoFile{end+1}.gt_frame = [6:9];\n" * 2)
    (ped2 / "Test002" / "003.tif").unlink()
    with pytest.raises(InputError, match="Test002 has no frame 3, but its list counts all of them"):
        read("ucsd-ped2", tmp_path)
    lookalikes.WRITERS["shanghaitech"](tmp_path)
    labels = tmp_path / "testing" / "test_frame_mask" / "01_0014.npy"
    whole = np.load(labels)
    np.save(labels, np.where(whole == 1, np.nan, 0))
    with pytest.raises(InputError, match=r"01_0014\.npy: expected 0 or 1 for each frame"):
        read("shanghaitech", tmp_path)
    np.save(labels, whole)
    (tmp_path / "training" / "videos" / "12_001").rename(tmp_path / "training" / "videos" / "11_001")
    with pytest.raises(InputError, match=r"training has no videos 12_\*\.avi"):
        read("shanghaitech", tmp_path)
