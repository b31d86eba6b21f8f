"""The same passes in eager PyTorch (fsad/reference.py), counted operator by operator.

The counts are those of a trace of every operator that autograd runs, SigShrink, which is affine in the number
of steps; tests/test_roofline.py traces again. An array has k·n numbers.
"""

from __future__ import annotations

from .machines import LAUNCH, Machine, Precision
from .passes import BACKWARD, BACKWARD_ATOMS, DOUBLE, DOUBLE_DUAL, FORWARD, Pass

# (a, b) of a·N + b: arrays read and written; matrix products; operators.
COUNTS: dict[Pass, tuple[tuple[int, int], tuple[int, int], tuple[int, int]]] = {
    FORWARD: ((18, -3), (2, 0), (10, -1)),
    BACKWARD: ((26, -3), (2, 0), (13, -1)),
    BACKWARD_ATOMS: ((28, -3), (4, 0), (17, -2)),
    DOUBLE: ((92, -20), (8, -2), (48, -12)),
    DOUBLE_DUAL: ((102, -11), (12, -2), (56, -9)),
}
# Arrays alive at the peak, N = 3: of a forward and a backward, and with a double backward.
PEAK_ARRAYS = (9, 28)


def counts(which: Pass, steps: int) -> tuple[int, int, int]:
    arrays, products, operators = (a * steps + b for a, b in COUNTS[which])
    return arrays, products, operators


def seconds(
    which: Pass, steps: int, shape: tuple[int, int, int], precision: Precision, machine: Machine
) -> float:
    """Products at cuBLAS's full rate, every pointwise pass at full DRAM bandwidth, one launch each."""
    width, atoms, queries = shape
    arrays, products, operators = counts(which, steps)
    rate = machine.fp32 if precision.eager == "fp32" else machine.tensor[precision.eager]
    array = atoms * queries * precision.element_size / machine.dram
    product = max(2 * width * atoms * queries / rate, array)  # each reads or writes one array
    return products * product + (arrays - products) * array + operators * LAUNCH
