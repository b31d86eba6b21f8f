"""Episodes: drawn from their numbers alone, without overlap, from folders and procedural products."""

from __future__ import annotations

import lookalikes
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from fsad.episodes import (
    CORRUPTIONS,
    Episodes,
    PictureCategory,
    ProceduralCategory,
    categories_of,
    corrupt,
    numbers,
)
from fsad.errors import InputError
from fsad.images import list_images


class Grey:
    """A category whose picture ``number`` has that grey value everywhere but in one corner."""

    def __init__(self, name: str, count: int) -> None:
        self.name, self._count = name, count

    def __len__(self) -> int:
        return self._count

    def picture(self, number: int, size: int) -> np.ndarray:
        picture = np.full((size, size, 3), number, np.uint8)
        picture[: size // 2, : size // 4] += 100
        return picture


def write_pictures(folder, count, size=(20, 24)):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    for i in range(count):
        Image.fromarray(rng.integers(0, 255, (*size, 3), dtype=np.uint8)).save(folder / f"{i:02}.png")


def test_an_episode_depends_on_its_number_alone():
    def make():
        return Episodes([Grey("a", 30), Grey("b", 40)], shots=3, queries=2, size=16, seed=5)

    one, other = make(), make()
    _ = [other[i] for i in range(3)]  # nothing is left of what was drawn before
    for tensor, same in zip(one[7][:5], other[7][:5], strict=True):
        assert (tensor == same).all()
    assert any((one[7].support != one[8].support).flatten())
    again = Episodes([Grey("a", 30), Grey("b", 40)], shots=3, queries=2, size=16, seed=6)
    assert (one[7].support != again[7].support).any()


def test_workers_give_the_same_episodes():
    episodes = Episodes([ProceduralCategory(i) for i in range(3)], shots=2, queries=1, size=16)
    loader = DataLoader(episodes, batch_size=None, sampler=numbers(range(6), 1, 0, 1), num_workers=2)
    for number, episode in enumerate(loader):
        assert episode.number == number
        assert (episode.corrupted == episodes[number].corrupted).all()


def test_support_and_query_do_not_overlap_and_are_turned_alike():
    episodes = Episodes([Grey("a", 8)], shots=5, queries=3, size=16)
    orientations = set()
    for number in range(60):
        support, query, corrupted, *_ = episodes[number]
        assert support.shape == (5, 3, 16, 16) and query.shape == corrupted.shape == (3, 3, 16, 16)
        pictures = torch.cat([support, query])
        greys = (pictures.amin((1, 2, 3)) * 255).round().int().tolist()
        assert sorted(greys) == list(range(8))
        bright = pictures[:, 0] > 0.35
        assert (bright == bright[0]).all()
        orientations.add(bright[0].numpy().tobytes())
    assert len(orientations) == 8
    still = Episodes([Grey("a", 8)], shots=5, queries=3, size=16, augment=False)
    assert len({(still[i].query[0, 0] > 0.35).numpy().tobytes() for i in range(20)}) == 1


def test_foreign_pictures_are_of_other_categories():
    grey, black = Grey("a", 20), Grey("b", 1000)
    black.picture = lambda number, size: np.zeros((size, size, 3), np.uint8)
    episodes = Episodes([grey, black], shots=5, queries=3, size=16)
    for number in range(20):
        episode = episodes[number]
        assert episode.foreign.shape == (3, 3, 16, 16)
        assert (episode.support.max() == 0) != (episode.foreign.max() == 0)
    assert len(Episodes([grey], shots=5, queries=3, size=16)[0].foreign) == 0


def test_each_update_is_dealt_out_among_processes():
    alone = numbers(range(2, 5), 4, 0, 1)
    shared = [numbers(range(2, 5), 2, rank, 2) for rank in (0, 1)]
    assert alone == list(range(8, 20))
    for update in range(3):
        together = [number for dealt in shared for number in dealt[2 * update : 2 * update + 2]]
        assert together == alone[4 * update : 4 * update + 4]


def test_corruptions_change_a_small_place_and_stay_in_range():
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(40, 3, 40, 40, generator=generator)
    for kind in CORRUPTIONS:
        corrupted = corrupt(images, [kind], generator)
        changed = (corrupted != images).any(1).flatten(1).float().mean(1)
        assert corrupted.min() >= 0 and corrupted.max() <= 1
        assert (changed > 0).float().mean() > 0.9
        assert kind == "noise-start" or changed.max() < 0.2
    both = corrupt(images, ["noise", "cut-paste"], torch.Generator().manual_seed(1))
    assert (both == corrupt(images, ["noise", "cut-paste"], torch.Generator().manual_seed(1))).all()


def test_both_layouts_of_folders(tmp_path):
    write_pictures(tmp_path / "bolt" / "train" / "good", 4)
    write_pictures(tmp_path / "bolt" / "test" / "scratch", 3)
    write_pictures(tmp_path / "nut", 5)
    categories = categories_of(tmp_path)
    assert [(c.name, len(c)) for c in categories] == [("bolt", 4), ("nut", 5)]
    picture = categories[1].picture(3, 16)
    assert picture.shape == (16, 16, 3) and picture.dtype == np.uint8
    (tmp_path / "nut" / "03.png").unlink()  # decoded once
    assert (categories[1].picture(3, 16) == picture).all()


def test_data_sets_by_name(tmp_path, monkeypatch):
    lookalikes.mvtec(tmp_path / "mvtec")
    categories = categories_of(f"mvtec={tmp_path / 'mvtec'}")
    assert [(c.name, len(c)) for c in categories] == [("bottle", 3), ("metal_nut", 3)]
    lookalikes.shanghaitech(tmp_path / "videos", lookalikes.pictures_as_video)
    monkeypatch.setattr("fsad.episodes.FRAMES", 10)
    categories = categories_of(f"shanghaitech={tmp_path / 'videos'}")
    assert [(c.name, len(c)) for c in categories] == [("01", 8), ("12", 6), ("13", 6)]  # of 24, 12 and 12
    assert categories[1].picture(4, 16).mean() == 80  # the ninth frame


def test_bad_data_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        categories_of(tmp_path / "nowhere")
    with pytest.raises(InputError, match="no categories"):
        categories_of(tmp_path)
    write_pictures(tmp_path / "bolt", 4)
    with pytest.raises(InputError, match=r"3 \+ 2 different pictures .* bolt \(4\)"):
        Episodes(categories_of(tmp_path), shots=3, queries=2)
    with pytest.raises(InputError, match="no categories"):
        Episodes([])
    with pytest.raises(InputError, match="got 0, 2, 64 and 0"):
        Episodes([Grey("a", 9)], shots=0, queries=2)
    with pytest.raises(InputError, match="of noise, cut-paste, defect, noise-start; got rain"):
        Episodes([Grey("a", 20)], corruptions=["rain"])
    (tmp_path / "bolt" / "02.png").write_bytes(b"not a picture")
    episodes = Episodes(
        [PictureCategory("bolt", list_images(tmp_path / "bolt"))], shots=3, queries=1, size=16
    )
    with pytest.raises(InputError, match=r"02\.png"):
        episodes[0]
