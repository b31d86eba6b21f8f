"""Kernels with a bug in them: each is caught by its rule, and the correct version passes.

``{…}`` in a kernel's text is where the correct version has one line and the wrong version another.
"""

from __future__ import annotations

import numpy as np
import pytest

from . import PtxFault
from .snippets import kernel, launch

U32 = np.uint32
SHARED = ".shared .align 16 .b8 buffer[1024];"
RUNS = range(4)  # seeds: a fault must not depend on the order in which warps run

# Every thread hands its number to the thread 33 further on, in another warp.
EXCHANGE = """
mov.u32 %r1, buffer;
mad.lo.u32 %r2, %t, 4, %r1;
{write}
{barrier}
add.u32 %r3, %t, 33;
rem.u32 %r3, %r3, 64;
mad.lo.u32 %r4, %r3, 4, %r1;
{read}
mad.wide.u32 %x1, %t, 4, %p0;
st.global.u32 [%x1], %r5;
"""
EXCHANGE_RIGHT = {
    "write": "st.shared.u32 [%r2], %t;",
    "barrier": "bar.sync 0;",
    "read": "ld.shared.u32 %r5, [%r4];",
}
EXCHANGE_WRONG = [
    ("race|uninitialised", {"barrier": ""}),  # no __syncthreads
    ("race|uninitialised", {"barrier": "bar.warp.sync 0xffffffff;"}),  # of the warp only
    ("race", {"write": "st.shared.u32 [buffer], %t;"}),  # all to one word
    ("uninitialised", {"write": ""}),
    ("uninitialised", {"read": "ld.shared.u32 %r5, [%r4+256];"}),
    ("out of bounds", {"read": "ld.shared.u32 %r5, [%r4+1024];"}),
    ("out of bounds", {"read": "ld.shared.u32 %r5, [%r4-256];"}),
    ("out of bounds", {"read": "ld.shared.u32 %r5, [0];"}),  # a null pointer
    ("misaligned", {"read": "ld.shared.v2.u32 {{%r5, %r6}}, [%r4];"}),
    ("divergence|uninitialised", {"barrier": "setp.lt.u32 %q1, %t, 5; @%q1 bar.sync 0;"}),
    ("divergence|uninitialised", {"barrier": "setp.lt.u32 %q1, %t, 5; @%q1 bra L; bar.sync 0; L:"}),
    ("deadlock", {"barrier": "setp.lt.u32 %q1, %t, 32; @%q1 bra L; bar.sync 1, 64; L: bar.sync 0;"}),
    ("uninitialised", {"write": "st.shared.u32 [%r2], %r9;"}),  # a register never set
    ("endless", {"barrier": "L: bra L;"}),
]  # fmt: skip


def exchange(wrong: dict[str, str], seed: int) -> None:
    text = EXCHANGE.format(**{**EXCHANGE_RIGHT, **wrong})
    results, _ = launch(
        kernel(text, declarations=SHARED),
        ((64,), U32),
        threads=64,
        seed=seed,
        max_instructions=10_000,
    )
    np.testing.assert_array_equal(results[0].numpy(), (np.arange(64) + 33) % 64)


@pytest.mark.parametrize("seed", RUNS)
def test_exchange(seed):
    exchange({}, seed)


@pytest.mark.parametrize("seed", RUNS)
@pytest.mark.parametrize(("rule", "wrong"), EXCHANGE_WRONG)
def test_exchange_with_a_bug(rule, wrong, seed):
    with pytest.raises(PtxFault, match=rf"^\[({rule})\]"):
        exchange({k: v.replace("{{", "{").replace("}}", "}") for k, v in wrong.items()}, seed)


# A buffer that is written and read again and again: two barriers a round.
ROUNDS = """
mov.u32 %r1, buffer;
mad.lo.u32 %r2, %t, 4, %r1;
xor.b32 %r3, %t, 32;
mad.lo.u32 %r4, %r3, 4, %r1;
mov.u32 %r7, 0;
mov.u32 %r8, 0;
ROUND:
st.shared.u32 [%r2], %r8;
bar.sync 0;
ld.shared.u32 %r5, [%r4];
add.u32 %r7, %r7, %r5;
{before_next_write}
add.u32 %r8, %r8, 1;
setp.lt.u32 %q1, %r8, 3;
@%q1 bra ROUND;
mad.wide.u32 %x1, %t, 4, %p0;
st.global.u32 [%x1], %r7;
"""


@pytest.mark.parametrize("seed", RUNS)
def test_write_after_read_needs_a_barrier(seed):
    def run(line: str) -> np.ndarray:
        ptx = kernel(ROUNDS.format(before_next_write=line), declarations=SHARED)
        return launch(ptx, ((64,), U32), threads=64, seed=seed)[0][0].numpy()

    assert (run("bar.sync 0;") == 3).all()
    with pytest.raises(PtxFault, match=r"^\[race\] shared byte"):
        run("")


# Lane l reads what lane l ^ 1 wrote: bar.warp.sync is all that is needed, and it is needed.
@pytest.mark.parametrize("seed", RUNS)
def test_lanes_of_a_warp_need_syncwarp(seed):
    body = """
    mov.u32 %r1, buffer;
    mad.lo.u32 %r2, %t, 4, %r1;
    st.shared.u32 [%r2], %t;
    {sync}
    xor.b32 %r3, %r2, 4;
    ld.shared.u32 %r5, [%r3];
    mad.wide.u32 %x1, %t, 4, %p0;
    st.global.u32 [%x1], %r5;
    """
    right = kernel(body.format(sync="bar.warp.sync 0xffffffff;"), declarations=SHARED)
    results, _ = launch(right, ((32,), U32), seed=seed)
    np.testing.assert_array_equal(results[0].numpy(), np.arange(32) ^ 1)
    with pytest.raises(PtxFault, match=r"^\[race\]"):
        launch(kernel(body.format(sync=""), declarations=SHARED), ((32,), U32), seed=seed)


# Thread t copies 16 bytes to shared memory and reads those of thread t ^ 32, in the other warp.
COPY = """
mov.u32 %r1, buffer;
mad.lo.u32 %r2, %t, 16, %r1;
mad.wide.u32 %x1, %t, 16, %p1;
cp.async.cg.shared.global [%r2], [%x1], 16;
{commit}
{wait}
{barrier}
xor.b32 %r3, %t, 32;
mad.lo.u32 %r4, %r3, 16, %r1;
{early}
ld.shared.u32 %r5, [%r4];
mad.wide.u32 %x2, %t, 4, %p0;
st.global.u32 [%x2], %r5;
"""
COPY_RIGHT = {
    "commit": "cp.async.commit_group;",
    "wait": "cp.async.wait_group 0;",
    "barrier": "bar.sync 0;",
    "early": "",
}
COPY_WRONG = [
    ("cp.async", {"wait": ""}),  # no wait
    ("cp.async", {"wait": "cp.async.wait_group 1;"}),  # one group too few
    ("cp.async", {"commit": ""}),  # never committed, so wait_group does not cover it
    ("cp.async|race|uninitialised", {"barrier": ""}),  # landed for the thread that waited, for no other
    ("race", {"early": "st.shared.u32 [%r2], %t;"}),  # overwrites what another thread reads
    ("cp.async", {"wait": "st.shared.u32 [%r2], %t; cp.async.wait_group 0;"}),
    ("cp.async", {"wait": "cp.async.cg.shared.global [%r2], [%x1], 16; cp.async.wait_all;"}),
]


def copy(wrong: dict[str, str], seed: int) -> None:
    ptx = kernel(COPY.format(**{**COPY_RIGHT, **wrong}), 2, SHARED)
    source = np.arange(256, dtype=U32)
    results, _ = launch(ptx, ((64,), U32), source, threads=64, seed=seed)
    np.testing.assert_array_equal(results[0].numpy(), 4 * (np.arange(64) ^ 32))


@pytest.mark.parametrize("seed", RUNS)
def test_copy(seed):
    copy({}, seed)
    copy({"commit": "", "wait": "cp.async.wait_all;"}, seed)


@pytest.mark.parametrize("seed", RUNS)
@pytest.mark.parametrize(("rule", "wrong"), COPY_WRONG)
def test_copy_with_a_bug(rule, wrong, seed):
    with pytest.raises(PtxFault, match=rf"^\[({rule})\]"):
        copy(wrong, seed)


# Global memory: a buffer of 100 words, 32 threads.
GLOBAL = """
mad.wide.u32 %x1, %t, 4, %p0;
{access}
st.global.u32 [%x1], %t;
"""
GLOBAL_WRONG = [
    ("out of bounds", "ld.global.u32 %r1, [%x1+400];"),
    ("out of bounds", "ld.global.u32 %r1, [%x1-4];"),
    ("out of bounds", "ld.global.u32 %r1, [0];"),
    ("out of bounds", "st.global.u32 [%p0+400], %t;"),
    ("uninitialised", "ld.global.u32 %r1, [%x1];"),
    ("misaligned", "ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%x1+4];"),
    ("misaligned", "st.global.u64 [%x1], %x1;"),
    ("race", "st.global.u32 [%p0+200], %t;"),  # all lanes to one word
    ("race", "st.global.u32 [%p0+200], 0; bar.sync 0; ld.global.u32 %r1, [%p0+200];"),
    ("non-coherent", "st.global.u32 [%x1], 0; ld.global.nc.u32 %r1, [%x1];"),
    ("divergence", "setp.lt.u32 %q1, %t, 9; @%q1 shfl.sync.bfly.b32 %r1, %t, 1, 31, -1;"),
    ("divergence", "setp.lt.u32 %q1, %t, 9; @%q1 shfl.sync.bfly.b32 %r1, %t, 1, 31, 0x1ff;"),
    ("trap", "trap;"),
]


def test_global():
    results, _ = launch(kernel(GLOBAL.format(access="")), ((32,), U32))
    np.testing.assert_array_equal(results[0].numpy(), np.arange(32))


@pytest.mark.parametrize(("rule", "access"), GLOBAL_WRONG)
def test_global_with_a_bug(rule, access):
    with pytest.raises(PtxFault, match=rf"^\[{rule}\]"):
        launch(kernel(GLOBAL.format(access=access)), ((100,), U32), threads=32)


@pytest.mark.parametrize("seed", RUNS)
def test_blocks_that_share_a_word_need_atomics(seed):
    body = "mov.u32 %r1, %ctaid.x; setp.eq.u32 %q1, %t, 0; @%q1 {} [%p0], {};"
    right = kernel(body.format("red.global.add.u32", "%r1"))
    results, _ = launch(right, np.zeros(1, U32), grid=4, seed=seed)
    assert results[0].numpy() == 6
    with pytest.raises(PtxFault, match=r"^\[race\] write of byte 0 of 'arg0'"):
        launch(kernel(body.format("st.global.u32", "%r1")), np.zeros(1, U32), grid=4, seed=seed)


# Each block writes a word; the block that comes last adds them all up.
LAST_BLOCK = """
mov.u32 %r1, %ctaid.x;
mov.u32 %r2, %nctaid.x;
mad.lo.u32 %r3, %r1, 64, %t;
mad.wide.u32 %x1, %r3, 4, %p1;
st.global.u32 [%x1], %r3;
{barrier}
{release}
setp.ne.u32 %q1, %t, 0;
@%q1 bra DONE;
atom.global.add.u32 %r4, [%p2], 1;
add.u32 %r4, %r4, 1;
setp.ne.u32 %q2, %r4, %r2;
@%q2 bra DONE;
{acquire}
mov.u32 %r5, 0;
mov.u32 %r6, 0;
LOOP:
mad.wide.u32 %x2, %r5, 256, %p1;
ld.global.u32 %r7, [%x2+252];
add.u32 %r6, %r6, %r7;
add.u32 %r5, %r5, 1;
setp.lt.u32 %q3, %r5, %r2;
@%q3 bra LOOP;
st.global.u32 [%p0], %r6;
DONE:
"""
LAST_BLOCK_RIGHT = {"barrier": "bar.sync 0;", "release": "membar.gl;", "acquire": "fence.acq_rel.gpu;"}


@pytest.mark.parametrize("seed", RUNS)
def test_last_block_needs_its_fences(seed):
    def run(**wrong: str) -> int:
        ptx = kernel(LAST_BLOCK.format(**{**LAST_BLOCK_RIGHT, **wrong}), 3)
        arrays = ((1,), U32), ((256,), U32), np.zeros(1, U32)
        return int(launch(ptx, *arrays, threads=64, grid=4, seed=seed)[0][0].numpy()[0])

    assert run() == 63 + 127 + 191 + 255
    for missing in ("barrier", "release", "acquire"):
        with pytest.raises(PtxFault, match=r"^\[(race|uninitialised)\]"):
            run(**{missing: ""})


def test_output_that_nothing_wrote_is_an_error():
    results, _ = launch(kernel(GLOBAL.format(access="")), ((33,), U32))
    with pytest.raises(RuntimeError, match=r"1 of 33 elements of 'arg0' were never written.*\(32,\)"):
        results[0].numpy()


def test_message_names_instruction_and_thread():
    with pytest.raises(PtxFault) as caught:
        exchange({"barrier": ""}, seed=1)
    text = str(caught.value)
    assert "ld.shared.u32 %r5, [%r4];" in text or "st.shared.u32 [%r2], %t;" in text
    assert "PTX line" in text
    assert "CTA (0, 0, 0), warp" in text
