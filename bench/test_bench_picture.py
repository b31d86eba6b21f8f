"""A 256×256 picture from end to end, on the detector's default configuration.

    pytest bench/test_bench_picture.py --benchmark-only

Adapting to ten pictures, with and without the threshold; energy map, gradient map and score of one picture.
"""

from __future__ import annotations

import pytest
import torch
from measure import OpenTable, Run, header, interleave
from pictures import BACKBONE_OF, SHOTS, default_backbone, default_layer, stages, synthetic
from problem import PRODUCTS, products

ROUNDS = 5
OTHERS = ("eager", "compiled", "floor", "backbone alone")
# Which of the operators' works a stage is; adapting and fitting do more than code.
WORK_OF = {"energy map": "forward", "gradient map": "backward", "detect": "forward"}


@pytest.fixture(scope="module")
def table(open_table: OpenTable) -> list[str]:
    title = "default configuration at 256 px: native time, and times of the others as multiples of it"
    return open_table(title, f"{'stage':>13} {header(OTHERS)}")


@pytest.fixture(scope="module")
def contenders() -> dict[str, dict[str, Run]]:
    """Stage by stage, of the detector on either backend and with a compiled reference."""
    normal, picture = synthetic(SHOTS), synthetic(1, defective=True, seed=1)
    try:
        backbone = default_backbone()
    except ModuleNotFoundError as missing:
        pytest.skip(str(missing))
    return {
        "native": stages(backbone, default_layer(backend="native"), normal, picture),
        "eager": stages(backbone, default_layer(backend="reference"), normal, picture),
        "compiled": stages(backbone, default_layer(backend="reference"), normal, picture, compiled=True),
    }


@pytest.mark.parametrize("stage", BACKBONE_OF)
def test_picture(benchmark, table: list[str], contenders: dict[str, dict[str, Run]], stage: str) -> None:
    made = {name: runs[stage] for name, runs in contenders.items() if stage in runs}
    made["backbone alone"] = contenders["native"][BACKBONE_OF[stage]]
    if stage in WORK_OF:
        made["floor"] = floor(PRODUCTS[WORK_OF[stage]])
    times = interleave(made, ROUNDS)
    table.append(f"{stage:>13} {times.row(OTHERS)}")
    benchmark.group = stage
    benchmark.pedantic(made["native"], rounds=ROUNDS, warmup_rounds=1)


def floor(products_a_step: int) -> Run:
    layer = default_layer()
    width, positions = 152, 32 * 32  # channels and grid of the default backbone
    rows = torch.randn(positions, width), torch.randn(layer.max_atoms or SHOTS * positions, width)
    return products(*rows, products_a_step * len(layer.lambdas))
