"""ldmatrix and mma.sync: layouts as in the PTX ISA, sums as tensor cores round them."""

from __future__ import annotations

import numpy as np
import pytest

from . import PtxFault
from .snippets import kernel, launch

U16, U32, F32, F64 = np.uint16, np.uint32, np.float32, np.float64
LANE = np.arange(32)
G, T = LANE // 4, LANE % 4


def to_bfloat(x: np.ndarray) -> np.ndarray:
    """bf16 bits of values that bf16 holds exactly."""
    return (x.astype(F32).view(U32) >> 16).astype(U16)


# (shape, type, A's rows and columns by register element, B's rows, registers)
K16_A = [(G + 8 * (i % 4 > 1), 2 * T + (i & 1) + 8 * (i >= 4)) for i in range(8)]
K16_B = [(2 * T + (i & 1) + 8 * (i >= 2), G) for i in range(4)]
K8_HALF_A = [(G + 8 * (i > 1), 2 * T + (i & 1)) for i in range(4)]
K8_HALF_B = [(2 * T + i, G) for i in range(2)]
K8_A = [(G, T), (G + 8, T), (G, T + 4), (G + 8, T + 4)]
K8_B = [(T, G), (T + 4, G)]
C = [(G + 8 * (i >= 2), 2 * T + (i & 1)) for i in range(4)]
SHAPES = {
    ("m16n8k16", "f16"): (16, K16_A, K16_B),
    ("m16n8k16", "bf16"): (16, K16_A, K16_B),
    ("m16n8k8", "f16"): (8, K8_HALF_A, K8_HALF_B),
    ("m16n8k8", "bf16"): (8, K8_HALF_A, K8_HALF_B),
    ("m16n8k8", "tf32"): (8, K8_A, K8_B),
    ("m16n8k4", "tf32"): (4, K8_A[:2], K8_B[:1]),
}


def registers(matrix: np.ndarray, places: list, kind: str) -> np.ndarray:
    """(32, registers) 32-bit registers of a fragment, for each lane."""
    values = np.stack([matrix[rows, columns] for rows, columns in places], 1).astype(F32)
    if kind == "tf32":
        return values.view(U32)
    halves = to_bfloat(values) if kind == "bf16" else values.astype(np.float16).view(U16)
    return np.ascontiguousarray(halves).view(U32)


def multiply(shape: str, kind: str, a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """a @ b + c by one mma.sync."""
    _, a_places, b_places = SHAPES[shape, kind]
    packed = [
        registers(a, a_places, kind),
        registers(b, b_places, kind),
        np.stack([c[rows, columns] for rows, columns in C], 1).astype(F32).view(U32),
    ]
    body, names, next_register = [], [], 10
    for i, fragment in enumerate(packed):
        count = fragment.shape[1]
        regs = [f"%r{next_register + j}" for j in range(count)]
        next_register += count
        body.append(f"mad.wide.u32 %x1, %t, {4 * count}, %p{i + 1};")
        body += [f"ld.global.u32 {reg}, [%x1+{4 * j}];" for j, reg in enumerate(regs)]
        names.append("{" + ", ".join(regs) + "}")
    body.append(
        f"mma.sync.aligned.{shape}.row.col.f32.{kind}.{kind}.f32 {{%r1, %r2, %r3, %r4}}, "
        + ", ".join(names) + ";"
    )  # fmt: skip
    body.append("mad.wide.u32 %x1, %t, 16, %p0; st.global.v4.u32 [%x1], {%r1, %r2, %r3, %r4};")
    results, counters = launch(kernel("\n".join(body), 4), ((32, 4), U32), *packed)
    assert counters.mma == 1
    got = results[0].numpy().view(F32)
    d = np.zeros((16, 8), F32)
    for i, (rows, columns) in enumerate(C):
        d[rows, columns] = got[:, i]
    return d


@pytest.mark.parametrize(("shape", "kind"), SHAPES)
def test_mma_layout(shape, kind):
    """Small integers: every format and sum is exact."""
    k = SHAPES[shape, kind][0]
    rng = np.random.default_rng(0)
    a, b, c = (rng.integers(-9, 10, size) for size in ((16, k), (k, 8), (16, 8)))
    np.testing.assert_array_equal(multiply(shape, kind, a, b, c), a @ b + c)


def one_sum(kind: str, products: list[float], start: float) -> float:
    """start + Σ products, in element (0, 0) of an m16n8k8 or k16."""
    shape, k = ("m16n8k8", 8) if kind == "tf32" else ("m16n8k16", 16)
    a, b, c = np.zeros((16, k)), np.zeros((k, 8)), np.zeros((16, 8))
    a[0, : len(products)] = products
    b[:, 0] = 1
    c[0, 0] = start
    return float(multiply(shape, kind, a, b, c)[0, 0])


@pytest.mark.parametrize("kind", ["bf16", "tf32"])
def test_mma_truncates(kind):
    ulp = 2.0**-23
    assert one_sum(kind, [0.75 * ulp], 1.0) == 1.0  # nearest would round up
    assert one_sum(kind, [-0.75 * ulp], -1.0) == -1.0  # towards zero, not down
    assert one_sum(kind, [0.5 * ulp, 0.5 * ulp], 1.0) == 1 + ulp  # one bit below the last is kept …
    assert one_sum(kind, [0.25 * ulp] * 4, 1.0) == 1.0  # … and no more: each term is cut by itself
    # Terms of the next block meet a sum that is already cut to fp32.
    block = 4 if kind == "tf32" else 8
    gap = [0.0] * (block - 1)
    assert one_sum(kind, [0.5 * ulp, *gap, 0.5 * ulp], 1.0) == 1.0


def test_mma_ignores_what_tf32_does_not_hold():
    assert one_sum("tf32", [1 + 2.0**-11], 0) == 1.0


def test_mma_infinities():
    assert one_sum("bf16", [np.inf, 1], 5) == np.inf
    assert np.isnan(one_sum("bf16", [np.inf, -np.inf], 5))


def test_mma_in_double():
    a, b, c = (np.random.default_rng(1).normal(size=s) for s in ((8, 4), (4, 8), (8, 8)))
    body = """
    mad.wide.u32 %x1, %t, 8, %p1; ld.global.f64 %d1, [%x1];
    mad.wide.u32 %x1, %t, 8, %p2; ld.global.f64 %d2, [%x1];
    mad.wide.u32 %x1, %t, 16, %p3; ld.global.v2.f64 {%d3, %d4}, [%x1];
    mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%d5, %d6}, {%d1}, {%d2}, {%d3, %d4};
    mad.wide.u32 %x1, %t, 16, %p0; st.global.v2.f64 [%x1], {%d5, %d6};
    """
    arrays = a[G, T], b[T, G], np.stack([c[G, 2 * T], c[G, 2 * T + 1]], 1)
    results, _ = launch(kernel(body, 4), ((32, 2), F64), *arrays)
    got = results[0].numpy()
    expected = a @ b + c
    np.testing.assert_allclose(got[:, 0], expected[G, 2 * T], rtol=1e-14)
    np.testing.assert_allclose(got[:, 1], expected[G, 2 * T + 1], rtol=1e-14)


LDMATRIX = """
mov.u32 %r9, tile;
mad.lo.u32 %r8, %t, 16, %r9;
mad.wide.u32 %x1, %t, 16, %p1;
ld.global.v4.u32 {{%r1, %r2, %r3, %r4}}, [%x1];
st.shared.v4.u32 [%r8], {{%r1, %r2, %r3, %r4}};
{sync}
ldmatrix.sync.aligned.m8n8.x{count}{trans}.shared.b16 {{{to}}}, [%r8];
mad.wide.u32 %x1, %t, {bytes}, %p0;
{stores}
"""


def load_matrix(count: int, trans: bool, tile: np.ndarray, sync: str = "bar.warp.sync -1;"):
    """Lane l addresses row l of a (32, 8) tile of 16-bit elements. Returns (32, count, 2)."""
    registers = [f"%r{20 + i}" for i in range(count)]
    text = LDMATRIX.format(
        sync=sync,
        count=count,
        trans=".trans" * trans,
        to=", ".join(registers),
        bytes=4 * count,
        stores="".join(f"st.global.u32 [%x1+{4 * i}], {r};" for i, r in enumerate(registers)),
    )
    ptx = kernel(text, 2, ".shared .align 16 .b8 tile[512];")
    results, counters = launch(ptx, ((32, count), U32), tile.astype(U16))
    return results[0].numpy().view(U16).reshape(32, count, 2), counters


@pytest.mark.parametrize("trans", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, trans):
    tile = np.arange(256).reshape(32, 8)
    got, counters = load_matrix(count, trans, tile)
    for m in range(count):
        matrix = tile[8 * m : 8 * m + 8]
        if trans:
            expected = np.stack([matrix[2 * T, G], matrix[2 * T + 1, G]], 1)
        else:
            expected = np.stack([matrix[G, 2 * T], matrix[G, 2 * T + 1]], 1)
        np.testing.assert_array_equal(got[:, m], expected)
    assert counters.total("wavefronts", "shared_load") == count


def test_ldmatrix_reads_what_other_lanes_wrote():
    with pytest.raises(PtxFault, match=r"^\[race\]"):
        load_matrix(4, False, np.zeros((32, 8)), sync="")
