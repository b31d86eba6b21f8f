"""Why mutants that survive are equivalent: parts of their keys (``…`` between), and what hides the change."""

from __future__ import annotations

from collections.abc import Iterable

from .operators import Mutant

REASONS: dict[str, str] = {
    "Tf32::multiply … `+=` made `-=`": "all products change their sign, and so do codes: it cancels",
    "Plain::multiply … `+=` made `-=`": "all products change their sign, and so do codes: it cancels",
    "Places::code … result + 1": "all places from the codes on move up by one, and one more is counted",
    "Places::code … `dual` always true": "places of a single pass move up into places that are counted too",
    "Places::tangent … result + 1": "these places move up by one, and one more is counted",
    "Places::tangent … `m + 1` to code": "these places move up by one, and one more is counted",
    "Places::tangent … `every_code` always true": "these places move up, and as many more are counted",
    "Places::count … result + 1": "a place that nobody uses; only memory",
    "Places::count … `dual` always true": "places that nobody uses; only memory",
    "Places::count … `steps + 1` to": "a place that nobody uses; only memory",
    "subtract_dual_products … a turn fewer": (
        "one entry's products are summed apart, and subtracted; only another rounding"
    ),
    "BackwardAtoms::tile … a turn more": "what it computes last is not read",
    "SecondAtoms::tile … a turn more": "what it computes last is not read",
    "BackwardStep::tile … `i >= m` always true": "nothing reads the slopes of steps before m; only time",
    "Ring::start … commit_copies(); … removed": (
        "the first stage's group takes the owned tiles in, and is waited for as soon"
    ),
    "Ring::load_next … `tile_ < last_tile` always true": (
        "copies chunks that nobody reads, zeros or the next split's; only time"
    ),
    "Ring::load_next … `entry.sum` always true": (
        "kernels that take inner products own all chunks, from the first on"
    ),
    "Ring::copy_rows … `valid` always true": "of an address from which nothing is copied",
    "Ring::copy_atoms … copy_unit … `valid` always true": "of an address from which nothing is copied",
    "Ring::copy_atoms … `maps.receptive_field > 1` always true": (
        "for field 1 the general formulas give the same addresses; only time"
    ),
    "Ring::locate … `pass.maps.receptive_field > 1` always true": (
        "for field 1 nothing reads the coordinates; only time"
    ),
    "Skeleton::run … copies_arrive<0>(); …": "groups behind the last tile are empty",
    "Skeleton::add_products … `step >= steps` always false": (
        "beyond the width both factors are zeros; only time"
    ),
    "Skeleton::add_products … / kStepNumbers + 1": "beyond the width both factors are zeros; only time",
    "Skeleton::for_each_pair … a turn more": "what it computes last is not read",
    "Skeleton::split_tile … / Shape::kColumns + 1": "splits share one tile more, which has no rows",
}

# What the battery, for time, does not run. Each was made by hand and the test that is named here failed.
ELSEWHERE: dict[str, str] = {
    "SixteenBit::multiply … multiply_f16": "float16: test_kernels.py, test_passes",
    "copy_unit … *static_cast<uint4*>": "GPUs before sm_80: test_kernels.py, test_sm_75",
}


def reason_of(mutant: Mutant) -> str | None:
    """Why the battery does not notice the change; None if nobody has said so."""
    for kind, reasons in (("equivalent", REASONS), ("noticed elsewhere", ELSEWHERE)):
        for pattern, why in reasons.items():
            if _fits(pattern, mutant):
                return f"{kind}: {why}"
    return None


def unused_reasons(survivors: Iterable[Mutant]) -> list[str]:
    """Patterns that match no survivor."""
    survivors = list(survivors)
    return [
        pattern for pattern in REASONS | ELSEWHERE if not any(_fits(pattern, mutant) for mutant in survivors)
    ]


def _fits(pattern: str, mutant: Mutant) -> bool:
    return all(part.strip() in mutant.key for part in pattern.split("…"))
