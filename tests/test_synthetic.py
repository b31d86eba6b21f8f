"""Procedural parts: reproducible, and defective exactly where their masks say."""

import numpy as np
import pytest

from fsad.errors import InputError
from fsad.synthetic import DEFECTS, KINDS, make_part, make_parts


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_the_defect_changes_the_picture_inside_its_mask_only(kind, defect):
    for seed in range(8):
        normal, defective = (make_part(kind, d, size=96, seed=seed) for d in (None, defect))
        assert normal.image.shape == (96, 96, 3) and normal.image.dtype == np.uint8
        assert not normal.mask.any() and 10 < defective.mask.sum() < 0.02 * 96 * 96
        changed = (normal.image != defective.image).any(axis=2)
        assert not (changed & ~defective.mask).any()
        assert changed[defective.mask].mean() > 0.7


@pytest.mark.parametrize("kind", KINDS)
def test_parts_depend_on_their_seed_alone(kind):
    one, same, other = (make_part(kind, seed=s).image for s in (1, 1, 2))
    assert (one == same).all() and (one != other).any()
    parts = make_parts(4, kind, defective=True, size=64, seed=3)
    assert len({part.image.tobytes() for part in parts}) == 4
    assert all(part.mask.any() for part in parts)
    assert one.std() > 20  # there is something to see


@pytest.mark.parametrize("wrong", [{"kind": "cat"}, {"defect": "rust"}, {"size": 3}])
def test_unknown_wishes_are_refused(wrong):
    with pytest.raises(InputError, match="expected a kind"):
        make_part(**wrong)
