"""Memory in every space, atomics, and what is counted; results computed by hand."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from .gpu import Gpu
from .snippets import HEADER, STORE, kernel, launch, per_thread

U32 = np.uint32
LANES = np.arange(32, dtype=U32)
SHARED = ".shared .align 16 .b8 buffer[4096];"


@pytest.mark.parametrize("space", ["global", "shared", "local", "generic"])
def test_widths_and_vectors(space):
    """Write 16 bytes a thread in one way, read them in another."""
    declarations = SHARED + ".local .align 16 .b8 depot[64];"
    base = {
        "global": "mad.wide.u32 %x2, %t, 16, %p1;",
        "shared": "mov.u64 %x3, buffer; mad.wide.u32 %x2, %t, 16, %x3;",
        "local": "mov.u64 %x2, depot;",
        "generic": "mov.u64 %x3, buffer; cvta.shared.u64 %x3, %x3; mad.wide.u32 %x2, %t, 16, %x3;",
    }[space]
    dot = "" if space == "generic" else f".{space}"
    body = f"""
    {base}
    mov.u32 %r2, 0x81828384;
    st{dot}.v4.u32 [%x2], {{%t, %r2, %t, %r2}};
    ld{dot}.s8 %r3, [%x2+4];
    ld{dot}.u8 %r4, [%x2+7];
    ld{dot}.s16 %r5, [%x2+6];
    ld{dot}.v2.u16 {{%h1, %h2}}, [%x2+4];
    ld{dot}.v2.b64 {{%x4, %x5}}, [%x2];
    st{dot}.u8 [%x2+8], %r4;
    st{dot}.b16 [%x2+10], %h1;
    ld{dot}.u32 %r6, [%x2+8];
    cvt.u32.u16 %r7, %h2;
    cvt.u32.u64 %r8, %x5;
    shr.u64 %x4, %x4, 32;
    cvt.u32.u64 %r9, %x4;
    mad.wide.u32 %x1, %t, 32, %p0;
    st.global.v4.u32 [%x1], {{%r3, %r4, %r5, %r6}};
    st.global.v4.u32 [%x1+16], {{%r7, %r8, %r9, 1}};
    """
    ptx = kernel(body, 2, declarations)
    results, _ = launch(ptx, ((32, 8), U32), ((32, 4), U32))
    got = results[0].numpy()
    assert [hex(v) for v in got[5]] == [
        "0xffffff84", "0x81", "0xffff8182", "0x83840081", "0x8182", "0x5", "0x81828384", "0x1",
    ]  # fmt: skip


ATOMICS = [
    ("atom.{}.add.u32 %r1, [{}], 2;", 0, 64),
    ("red.{}.max.u32 [{}], %t;", 7, 31),
    ("red.{}.min.s32 [{}], -5;", 7, (1 << 32) - 5),
    ("red.{}.xor.b32 [{}], %t;", 1, 1),
    ("red.{}.inc.u32 [{}], 9;", 0, 2),
    ("atom.{}.cas.b32 %r1, [{}], 7, 3;", 7, 3),
    ("atom.{}.exch.b32 %r1, [{}], 4;", 7, 4),
    ("red.{}.add.f32 [{}], 0f3F800000;", 0, 0x42000000),
]


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("text", "start", "expected"), ATOMICS)
def test_atomics(text, start, expected, space):
    if space == "global":
        results, _ = launch(kernel(text.format(space, "%p0")), np.array([start], U32))
        assert results[0].numpy()[0] == expected
        return
    body = f"""
    setp.eq.u32 %q1, %t, 0;
    mov.u32 %r8, {start};
    @%q1 st.shared.u32 [buffer], %r8;
    bar.sync 0;
    {text.format(space, "buffer")}
    bar.sync 0;
    ld.shared.u32 %r1, [buffer];
    """
    assert (per_thread(body, declarations=SHARED)[0] == expected).all()


def test_every_lane_gets_its_own_ticket():
    got, _ = per_thread("atom.global.add.u32 %r1, [%p1], 1;", np.zeros(1, U32), seed=3)
    assert sorted(got) == LANES.tolist()
    assert (got != LANES).any()  # the order of lanes is nobody's promise


def test_structure_parameters_and_special_registers():
    ptx = f"""{HEADER}
    .visible .entry f(.param .align 8 .b8 s[24], .param .u32 n, .param .f64 x)
    {{
    .reg .b32 %r<9>; .reg .b64 %x<9>; .reg .f64 %d<3>;
    ld.param.u64 %x1, [s];
    ld.param.v2.u32 {{%r1, %r2}}, [s+8];
    ld.param.u32 %r3, [n];
    ld.param.f64 %d1, [x];
    mov.b64 %x4, s;
    ld.param.u16 %r4, [%x4+16];
    mov.u32 %r5, %tid.y;
    mov.u32 %r6, %ctaid.z;
    mov.u32 %r7, %ntid.x;
    mad.lo.u32 %r8, %r6, 2, %r5;
    mad.wide.u32 %x2, %r8, 40, %x1;
    st.global.v2.u32 [%x2], {{%r1, %r2}};
    st.global.v2.u32 [%x2+8], {{%r3, %r4}};
    st.global.v2.u32 [%x2+16], {{%r5, %r6}};
    st.global.u32 [%x2+24], %r7;
    st.global.f64 [%x2+32], %d1;
    ret;
    }}"""
    gpu = Gpu()
    out = gpu.array(np.zeros((4, 10), U32))
    packed = struct.pack("<QiIHxxxxxx", out.ptr, -3, 5, 65535)
    gpu.load(ptx).launch("f", (1, 1, 2), (1, 2), [packed, 11, 0.5])
    got = out.numpy()
    assert got[3].tolist() == [2**32 - 3, 5, 11, 65535, 1, 1, 1, 0, 0, 0x3FE00000]


def test_dynamic_shared_memory_follows_the_static():
    declarations = ".extern .shared .align 16 .b8 dynamic[];"
    head, tail = kernel(
        "mov.u32 %r2, small; mov.u32 %r3, dynamic; sub.u32 %r1, %r3, %r2; st.shared.u32 [%r3+60], %t;",
        1,
        ".shared .align 4 .b8 small[20];",
    ).split(".visible")
    ptx = head + declarations + ".visible" + tail.replace("ret;", STORE + "ret;")
    results, _ = launch(ptx, ((1,), U32), threads=1, shared=64)
    assert results[0].numpy()[0] == 32  # 20, rounded up to the alignment
    with pytest.raises(RuntimeError, match="out of bounds"):
        launch(ptx, ((1,), U32), threads=1, shared=60)


# ---- counters ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "sectors", "used"),
    [
        ("mad.wide.u32 %x2, %t, 4, %p1;", 4, 128),  # contiguous
        ("mad.wide.u32 %x2, %t, 4, %p1; add.u64 %x2, %x2, 4;", 5, 128),  # not aligned
        ("mad.wide.u32 %x2, %t, 8, %p1;", 8, 128),  # every other word
        ("mad.wide.u32 %x2, %t, 32, %p1;", 32, 128),  # a sector each
        ("mov.u64 %x2, %p1;", 1, 4),  # broadcast
    ],
)
def test_sectors(address, sectors, used):
    _, c = per_thread(address + "ld.global.u32 %r1, [%x2];", np.zeros(300, U32))
    assert c.total("sectors", "global_load") == sectors
    assert c.total("used_bytes", "global_load") == used
    assert c.total("sectors", "global_store") == 4
    assert c.global_bytes == 32 * (sectors + 4)


@pytest.mark.parametrize(
    ("stride", "width", "passes", "ideal"),
    [
        (4, 1, 1, 1),
        (8, 1, 2, 1),  # two words a bank
        (128, 1, 32, 1),  # all in one bank
        (132, 1, 1, 1),  # padded
        (0, 1, 1, 1),  # broadcast
        (8, 2, 2, 2),
        (16, 2, 4, 2),
        (16, 4, 4, 4),
        (32, 4, 8, 4),
        (80, 4, 4, 4),
    ],
)
def test_bank_conflicts(stride, width, passes, ideal):
    registers = ", ".join(f"%r{9 + i}" for i in range(width))
    vector = f".v{width}.u32 [%r3], {{{registers}}}" if width > 1 else ".u32 [%r3], %r9"
    moves = "".join(f"mov.u32 %r{9 + i}, 0;" for i in range(width))
    if stride == 0:  # lanes that write one word would race: read it
        moves += "setp.eq.u32 %q1, %t, 0; mov.u32 %r3, buffer; @%q1 st.shared.u32 [%r3], 0;"
        access = "bar.warp.sync -1; ld.shared.u32 %r9, [%r3];"
        kind = "shared_load"
    else:
        access = f"mov.u32 %r2, buffer; mad.lo.u32 %r3, %t, {stride}, %r2; st.shared{vector};"
        kind = "shared_store"
    ptx = kernel(moves + access, 0, ".shared .align 16 .b8 buffer[8192];")
    _, c = launch(ptx)
    assert c.total("wavefronts", kind) == passes
    assert c.total("ideal_wavefronts", kind) == ideal


def test_instruction_counters():
    body = """
    mov.u32 %r2, 0;
    L:
    ex2.approx.f32 %f2, 0f3F800000;
    add.u32 %r2, %r2, 1;
    setp.lt.u32 %q1, %r2, 3;
    @%q1 bra L;
    bar.sync 0;
    """
    _, c = launch(kernel(body, 0), threads=48)
    assert c.warp_instructions == 2 * (1 + 1 + 3 * 4 + 1 + 1)  # with the mov of %t, and ret
    assert c.lane_instructions == 48 * (1 + 1 + 3 * 3 + 2 + 1 + 1)  # the last branch is not taken
    assert c.special == 3 * 48
    assert c.barriers == 2


def test_a_seed_repeats_a_run_and_another_does_not_change_results():
    body = "shfl.sync.bfly.b32 %r1, %t, 1, 31, -1; bar.sync 0;"
    runs = [per_thread(body, threads=256, grid=1, seed=seed) for seed in (5, 5, 6)]
    assert all((run[0] == runs[0][0]).all() for run in runs)
    assert len({run[1].warp_instructions for run in runs}) == 1
