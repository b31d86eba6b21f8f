"""Procedural products: reproducible, different from each other, defective exactly where their masks say."""

import numpy as np
import pytest

from fsad.errors import InputError
from fsad.procedural import DEFECTS, FAMILIES, ProceduralTask


def at_64(image: np.ndarray) -> np.ndarray:
    """(256, 256, ...) -> float (64, 64, ...): means of 4×4."""
    return image.astype(float).reshape(64, 4, 64, 4, -1).mean((1, 3))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_defect_changes_the_picture_inside_its_mask_only(family, defect):
    for seed in range(3):
        task = ProceduralTask(seed, 96, family)
        normal, defective = task.normal(seed), task.defective(seed, defect)
        assert normal.image.shape == (96, 96, 3) and normal.image.dtype == np.uint8
        assert not normal.mask.any() and 10 < defective.mask.sum() < 0.08 * 96 * 96
        changed = (normal.image != defective.image).any(axis=2)
        assert not (changed & ~defective.mask).any()
        assert changed[defective.mask].mean() > 0.8
        assert np.abs(normal.image.astype(int) - defective.image)[defective.mask].mean() > 3


@pytest.mark.parametrize("family", FAMILIES)
def test_pictures_depend_on_seed_and_number_alone(family):
    task, again = ProceduralTask(5, 32, family), ProceduralTask(5, 32, family)
    images = [task.normal(number).image for number in range(4)]
    assert (again.normal(3).image == images[3]).all()  # whatever was made before
    for part, same in ((task.defective(2), again.defective(2)), (task.normal(1), again.normal(1))):
        assert (part.image == same.image).all() and (part.mask == same.mask).all()
    assert len({image.tobytes() for image in images}) == 4
    assert all(image.std() > 8 for image in images)  # there is something to see


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_agree(family):
    for number, defect in enumerate(DEFECTS):
        small, large = (ProceduralTask(2, size, family).defective(number, defect) for size in (64, 256))
        pair = small.image.ravel(), at_64(large.image).ravel()
        assert np.corrcoef(*pair)[0, 1] > 0.85
        mask = at_64(large.mask)[:, :, 0]
        # Lines are at least a pixel wide, so that those of the large picture may be finer.
        assert mask[small.mask].mean() > (0.1 if defect in ("scratch", "crack") else 0.5)
        assert mask[~small.mask].mean() < 0.005


@pytest.mark.parametrize("family", ("disc", "nut", "board", "cap"))
def test_defects_lie_on_the_object(family):
    task = ProceduralTask(1, 64, family)
    for number in range(10):
        body = task._paint(number)[2]
        assert 0.1 < body.mean() < 0.7
        assert not (task.defective(number).mask & ~body).any()


@pytest.mark.parametrize("family", FAMILIES)
def test_products_differ_more_than_their_pictures(family):
    means = [
        [ProceduralTask(seed, 32, family).normal(n).image.mean((0, 1)) for n in range(3)] for seed in range(8)
    ]
    within, between = np.std(means, axis=1).mean(), np.std(np.mean(means, axis=1), axis=0).mean()
    assert between > 3 * within


def test_all_families_are_drawn_and_named():
    tasks = [ProceduralTask(seed, 16) for seed in range(60)]
    assert {task.family for task in tasks} == set(FAMILIES)
    assert tasks[17].name == f"procedural-{tasks[17].family}-17"
    assert len({task.normal(0).image.tobytes() for task in tasks}) == 60
    chosen = ProceduralTask(17, 16, tasks[17].family)
    assert (chosen.normal(4).image == tasks[17].normal(4).image).all()


def test_all_defects_are_drawn():
    task, drawn = ProceduralTask(0, 64, "tiles"), set()
    for number in range(24):
        image = task.defective(number).image
        drawn.add(next(d for d in DEFECTS if (task.defective(number, d).image == image).all()))
    assert drawn == set(DEFECTS)


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: ProceduralTask(0, family="cat"), "family='cat'.*a family of .*weave"),
        (lambda: ProceduralTask(0, size=15), "size=15.*size >= 16"),
        (lambda: ProceduralTask(-1), "seed=-1.*seed >= 0"),
        (lambda: ProceduralTask(0).normal(-1), "number=-1.*from 0"),
        (lambda: ProceduralTask(0).defective(0, "rust"), "defect='rust'.*scratch"),
    ],
)
def test_what_cannot_be_made_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
