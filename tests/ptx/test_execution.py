"""How lanes diverge and meet, and how warps exchange; results computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from .snippets import STORE, kernel, launch, per_thread

U32, U64 = np.uint32, np.uint64
LANES = np.arange(32, dtype=U32)
SHARED = ".shared .align 16 .b8 buffer[4096];"


# ---- divergence ----------------------------------------------------------------------------------

DIVERGENCE = [
    (  # if and else
        "setp.lt.u32 %q1, %t, 10; @%q1 bra A; mov.u32 %r1, 7; bra B; A: mov.u32 %r1, 3; B:",
        np.where(LANES < 10, 3, 7),
    ),
    (  # a loop whose trip count is the lane's number, and a shuffle after it
        "mov.u32 %r1, 0; mov.u32 %r2, 0; L: setp.ge.u32 %q1, %r2, %t; @%q1 bra E;"
        "add.u32 %r1, %r1, %r2; add.u32 %r2, %r2, 1; bra L;"
        "E: shfl.sync.down.b32 %r1, %r1, 1, 31, -1;",
        np.append((LANES * (LANES - 1.0) / 2)[1:], 465),
    ),
    (  # a predicated instruction
        "mov.u32 %r1, 5; setp.gt.u32 %q1, %t, 3; @!%q1 mov.u32 %r1, 9;",
        np.where(LANES > 3, 5, 9),
    ),
    (  # a table of targets
        "rem.u32 %r2, %t, 3; T: .branchtargets A, B, C; brx.idx %r2, T;"
        "A: mov.u32 %r1, 10; bra D; B: mov.u32 %r1, 20; bra D; C: mov.u32 %r1, 30; D:",
        10 + 10 * (LANES % 3),
    ),
    (  # nested, and lanes that vote in the inner branch
        "mov.u32 %r1, 0; setp.lt.u32 %q1, %t, 16; @!%q1 bra E; setp.lt.u32 %q2, %t, 4; @!%q2 bra D;"
        "activemask.b32 %r1; D: add.u32 %r1, %r1, 1; E:",
        np.select([LANES < 4, LANES < 16], [16, 1], 0),
    ),
]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("body", "expected"), DIVERGENCE)
def test_divergence(body, expected, seed):
    np.testing.assert_array_equal(per_thread(body, seed=seed)[0], expected)


@pytest.mark.parametrize("seed", range(3))
def test_threads_that_returned_are_not_waited_for(seed):
    body = "setp.ge.u32 %q1, %t, 40; @%q1 bra OUT; bar.sync 0; mov.u32 %r1, 1;" + STORE + "OUT:"
    results, _ = launch(kernel(body), ((40,), U32), threads=96, seed=seed)
    assert (results[0].numpy() == 1).all()


# ---- exchange ------------------------------------------------------------------------------------

EXCHANGE = [
    ("shfl.sync.bfly.b32 %r1, %t, 5, 31, -1;", LANES ^ 5),
    ("shfl.sync.up.b32 %r1, %t, 3, 0, -1;", np.maximum(LANES.astype(int) - 3, LANES * (LANES < 3))),
    ("shfl.sync.down.b32 %r1, %t, 30, 31, -1;", np.where(LANES < 2, LANES + 30, LANES)),
    ("shfl.sync.idx.b32 %r1, %t, 9, 31, -1;", np.full(32, 9)),
    # width 8: clamp 31, segment mask 0x18
    ("shfl.sync.idx.b32 %r1, %t, 2, 0x181f, -1;", LANES // 8 * 8 + 2),
    ("shfl.sync.down.b32 %r1|%q1, %t, 6, 0x181f, -1; selp.u32 %r1, 1, 0, %q1;", LANES % 8 < 2),
    ("setp.lt.u32 %q1, %t, 5; vote.sync.ballot.b32 %r1, %q1, -1;", np.full(32, 31)),
    ("setp.lt.u32 %q1, %t, 5; vote.sync.any.pred %q2, %q1, -1; selp.u32 %r1, 1, 0, %q2;", np.ones(32)),
    ("setp.lt.u32 %q1, %t, 5; vote.sync.all.pred %q2, %q1, -1; selp.u32 %r1, 1, 0, %q2;", np.zeros(32)),
    ("redux.sync.add.s32 %r1, %t, -1;", np.full(32, 496)),
    ("redux.sync.max.u32 %r1, %t, -1;", np.full(32, 31)),
    ("mov.u32 %r1, %laneid;", LANES),
    ("mov.u32 %r1, %lanemask_lt;", (1 << LANES.astype(U64)) - 1),
]  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), EXCHANGE)
def test_exchange_among_lanes(body, expected):
    np.testing.assert_array_equal(per_thread(body)[0], expected.astype(U32))


def test_barrier_reductions():
    body = "setp.lt.u32 %q1, %t, 40; bar.red.popc.u32 %r1, 0, %q1;"
    np.testing.assert_array_equal(per_thread(body, threads=96)[0], 40)
    body = "setp.lt.u32 %q1, %t, 40; bar.red.{}.pred %q2, 0, %q1; selp.u32 %r1, 1, 0, %q2;"
    assert not per_thread(body.format("and"), threads=96)[0].any()
    assert per_thread(body.format("or"), threads=96)[0].all()


@pytest.mark.parametrize("seed", range(4))
def test_producer_and_consumer_warps(seed):
    """Warp 0 fills a buffer and goes on; warp 1 waits for it."""
    body = """
    mov.u32 %r1, 0;
    mov.u32 %r3, buffer;
    setp.ge.u32 %q1, %t, 32;
    @%q1 bra CONSUME;
    mad.lo.u32 %r2, %t, 4, %r3;
    st.shared.u32 [%r2], %t;
    bar.arrive 1, 64;
    bra DONE;
    CONSUME:
    bar.sync 1, 64;
    mad.lo.u32 %r2, %t, 4, %r3;
    ld.shared.u32 %r1, [%r2-128];
    DONE:
    """
    got, _ = per_thread(body, threads=64, declarations=SHARED, seed=seed)
    np.testing.assert_array_equal(got, np.concatenate([0 * LANES, LANES]))
