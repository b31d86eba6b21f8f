"""Why mutants that survive are equivalent: parts of their keys (``…`` between), and what hides the change."""

from __future__ import annotations

from collections.abc import Iterable

from .operators import Mutant

REASONS: dict[str, str] = {
    "Ring::start … commit_copies(); … removed": (
        "the first stage's group takes the owned tiles in, and is waited for as soon"
    ),
    "Skeleton::run … copies_arrive<0>(); …": "groups behind the last tile are empty",
    "Ring::load_next … `tile_ < last_tile` always true": (
        "copies chunks that nobody reads, zeros or the next split's; only time"
    ),
    "Ring::copy_atoms … `maps.receptive_field > 1` always true": (
        "for field 1 the general formulas give the same addresses; only time"
    ),
    "Ring::locate … `pass.maps.receptive_field > 1` always true": (
        "for field 1 nothing reads the coordinates; only time"
    ),
    "Skeleton::add_products … `step >= steps` always false": (
        "beyond the width both factors are zeros; only time"
    ),
    "BackwardStep::tile … `i >= m` always true": "nothing reads the slopes of steps before m; only time",
}


def reason_of(mutant: Mutant) -> str | None:
    """Why the change cannot show; None if nobody has said so."""
    return next((why for pattern, why in REASONS.items() if _fits(pattern, mutant)), None)


def unused_reasons(survivors: Iterable[Mutant]) -> list[str]:
    """Patterns that match no survivor."""
    survivors = list(survivors)
    return [pattern for pattern in REASONS if not any(_fits(pattern, mutant) for mutant in survivors)]


def _fits(pattern: str, mutant: Mutant) -> bool:
    return all(part.strip() in mutant.key for part in pattern.split("…"))
