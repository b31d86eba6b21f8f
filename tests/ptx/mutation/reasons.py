"""Why mutants that survive are equivalent: patterns of their keys, and what makes the change invisible."""

from __future__ import annotations

import re
from collections.abc import Iterable

from .operators import Mutant

REASONS: dict[str, str] = {}


def reason_of(mutant: Mutant) -> str | None:
    """Why the change cannot show; None if nobody has said so."""
    return next((why for pattern, why in REASONS.items() if re.search(pattern, mutant.key)), None)


def unused_reasons(survivors: Iterable[Mutant]) -> list[str]:
    """Patterns that match no survivor."""
    keys = [mutant.key for mutant in survivors]
    return [pattern for pattern in REASONS if not any(re.search(pattern, key) for key in keys)]
