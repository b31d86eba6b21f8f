"""Every instruction family of the interpreter, against results computed by hand."""

from __future__ import annotations

import numpy as np
import pytest

from .snippets import evaluate, kernel, launch

U32, S32, U64, S64, F32, F64 = np.uint32, np.int32, np.uint64, np.int64, np.float32, np.float64
U16, S16 = np.uint16, np.int16
INF, NAN = float("inf"), float("nan")
TOP = 0x80000000

# (instruction, type of the inputs and result, inputs, results)
INTEGER = [
    ("add.s32 %o, %a, %b", S32, [[1, 2147483647, -5], [2, 1, 5]], [3, -2147483648, 0]),
    ("add.s64 %o, %a, %b", S64, [[1 << 40], [-1]], [(1 << 40) - 1]),
    ("sub.u32 %o, %a, %b", U32, [[3, 0], [5, 1]], [0xFFFFFFFE, 0xFFFFFFFF]),
    ("sub.s16 %o, %a, %b", S16, [[-32768], [1]], [32767]),
    ("mul.lo.s32 %o, %a, %b", S32, [[65536, -3], [65536, 7]], [0, -21]),
    ("mul.hi.u32 %o, %a, %b", U32, [[TOP, 0xFFFFFFFF], [4, 0xFFFFFFFF]], [2, 0xFFFFFFFE]),
    ("mul.hi.s32 %o, %a, %b", S32, [[-1, -(1 << 31)], [1, 4]], [-1, -2]),
    ("mul.hi.s64 %o, %a, %b", S64, [[-1, 1 << 62], [1, 8]], [-1, 2]),
    ("mad.lo.s32 %o, %a, %b, %c", S32, [[7, -2], [6, 5], [-2, 1]], [40, -9]),
    ("mad.lo.u64 %o, %a, %b, %c", U64, [[1 << 33], [1 << 31], [9]], [9]),
    ("div.s32 %o, %a, %b", S32, [[-7, 7, -(1 << 31), 5], [2, -2, -1, 0]], [-3, -3, -(1 << 31), -1]),
    ("div.u64 %o, %a, %b", U64, [[1 << 63], [3]], [3074457345618258602]),
    ("rem.s32 %o, %a, %b", S32, [[-7, 7, -(1 << 31)], [2, -2, -1]], [-1, 1, 0]),
    ("rem.u32 %o, %a, %b", U32, [[17, 5], [5, 17]], [2, 5]),
    ("abs.s32 %o, %a", S32, [[-3, 4]], [3, 4]),
    ("neg.s64 %o, %a", S64, [[-3, 4]], [3, -4]),
    ("min.s32 %o, %a, %b", S32, [[-3, 4], [2, -9]], [-3, -9]),
    ("max.u32 %o, %a, %b", U32, [[TOP, 4], [2, 9]], [TOP, 9]),
    ("sad.s32 %o, %a, %b, %c", S32, [[-3, 9], [4, 4], [1, 1]], [8, 6]),
    ("and.b32 %o, %a, %b", U32, [[0b1100], [0b1010]], [0b1000]),
    ("or.b64 %o, %a, %b", U64, [[1 << 40], [1]], [(1 << 40) + 1]),
    ("xor.b16 %o, %a, %b", U16, [[0xFF00], [0x0FF0]], [0xF0F0]),
    ("not.b32 %o, %a", U32, [[0, TOP]], [0xFFFFFFFF, 0x7FFFFFFF]),
    ("shl.b32 %o, %a, %b", U32, [[1, 1, 3], [31, 32, 1]], [TOP, 0, 6]),
    ("shr.u32 %o, %a, %b", U32, [[TOP, TOP], [31, 40]], [1, 0]),
    ("shr.s32 %o, %a, %b", S32, [[-8, -8, 8], [1, 99, 2]], [-4, -1, 2]),
    ("shf.l.wrap.b32 %o, %a, %b, %c", U32, [[TOP, 1], [1, 2], [1, 33]], [3, 4]),
    ("shf.r.clamp.b32 %o, %a, %b, %c", U32, [[2, 9], [1, 7], [1, 32]], [0x80000001, 7]),
    ("lop3.b32 %o, %a, %b, %c, 0xE8", U32, [[12], [10], [6]], [14]),  # the majority
    ("lop3.b32 %o, %a, %b, %c, 0x96", U32, [[12], [10], [6]], [0]),  # the parity
    ("bfe.u32 %o, %a, %b, %c", U32, [[0xABCD, TOP, 7], [4, 31, 2], [8, 4, 0]], [0xBC, 1, 0]),
    ("bfe.s32 %o, %a, %b, %c", S32, [[0xF0, -2, 5], [4, 0, 40], [4, 32, 3]], [-1, -2, 0]),
    ("bfi.b32 %o, %a, %b, 8, 4", U32, [[0xABC, 0], [0, 0xFFFFFFFF]], [0xC00, 0xFFFFF0FF]),
    ("bfind.u32 %o, %a", U32, [[1, TOP, 0]], [0, 31, 0xFFFFFFFF]),
    ("bfind.shiftamt.u32 %o, %a", U32, [[1, TOP]], [31, 0]),
    ("clz.b32 %o, %a", U32, [[1, TOP, 0]], [31, 0, 32]),
    ("popc.b32 %o, %a", U32, [[0xFF, 0]], [8, 0]),
    ("brev.b32 %o, %a", U32, [[1, 6]], [TOP, 0x60000000]),
    ("prmt.b32 %o, %a, %b, 0x7610", U32, [[0x33221100], [0x77665544]], [0x77661100]),
    ("prmt.b32 %o, %a, %b, 0x000B", U32, [[0x83000011], [0]], [0x111111FF]),
    ("mov.b32 %o, %a", U32, [[7]], [7]),
    ("mov.b64 {%r1, %r2}, %a; mov.b64 %o, {%r2, %r1}", U64, [[(5 << 32) + 9]], [(9 << 32) + 5]),
    ("add.cc.u32 %r1, %a, %b; addc.u32 %o, %b, 0", U32, [[0xFFFFFFFF, 1], [1, 1]], [2, 1]),
    ("sub.cc.u32 %r1, %a, %b; subc.u32 %o, %b, 0", U32, [[0, 5], [1, 1]], [0, 1]),
    ("mad.lo.cc.u32 %r1, %a, %b, 1; madc.hi.u32 %o, %a, %b, 0", U32, [[0xFFFFFFFF], [1]], [1]),
]


@pytest.mark.parametrize(("text", "dtype", "inputs", "expected"), INTEGER, ids=lambda v: str(v)[:34])
def test_integer(text, dtype, inputs, expected):
    arrays = [np.array(values, dtype) for values in inputs]
    np.testing.assert_array_equal(evaluate(text, *arrays, out=dtype), np.array(expected, dtype))


def test_widening_and_narrowing():
    a, b = np.array([-2, 70000], S32), np.array([3, 70000], S32)
    np.testing.assert_array_equal(evaluate("mul.wide.s32 %o, %a, %b", a, b, out=S64), [-6, 4900000000])
    big = np.array([1 << 40, -1], S64)
    np.testing.assert_array_equal(
        evaluate("mad.wide.u32 %o, %a, %a, %b", np.array([1 << 31, 2], U32), big, out=S64),
        [(1 << 62) + (1 << 40), 3],
    )


SMALLEST = float(np.float32(2.0**-149))
FLOAT = [
    ("add.f32 %o, %a, %b", [[1, 16777216, INF], [2, 1, -INF]], [3, 16777216, NAN]),
    ("add.rz.f32 %o, %a, %b", [[16777216, -16777216], [3, -3]], [16777218, -16777218]),
    ("add.rp.f32 %o, %a, %b", [[16777216], [1]], [16777218]),
    ("add.ftz.f32 %o, %a, %b", [[SMALLEST, 1], [SMALLEST, 2]], [0, 3]),
    ("sub.rn.f32 %o, %a, %b", [[1, 5], [2, 3]], [-1, 2]),
    ("mul.f32 %o, %a, %b", [[3, SMALLEST], [-4, 1]], [-12, SMALLEST]),
    ("mul.ftz.f32 %o, %a, %b", [[2.0**-100], [2.0**-40]], [0]),
    ("fma.rn.f32 %o, %a, %b, %c", [[1 + 2**-12], [1 - 2**-12], [-1]], [-(2.0**-24)]),
    ("fma.rm.f32 %o, %a, %b, %c", [[16777217, 1], [1, 1], [0, 0.5]], [16777216, 1.5]),
    ("add.sat.f32 %o, %a, %b", [[0.5, 0.5, NAN], [1, -1, 1]], [1, 0, 0]),
    ("div.rn.f32 %o, %a, %b", [[1, 1, -1], [4, 0, 0]], [0.25, INF, -INF]),
    ("min.f32 %o, %a, %b", [[1, NAN, 0.0, NAN], [2, 3, -0.0, NAN]], [1, 3, -0.0, NAN]),
    ("max.f32 %o, %a, %b", [[1, NAN, -0.0], [2, 3, 0.0]], [2, 3, 0.0]),
    ("neg.f32 %o, %a", [[1, -0.0]], [-1, 0.0]),
    ("abs.f32 %o, %a", [[-1, -INF]], [1, INF]),
    ("copysign.f32 %o, %a, %b", [[-1, 1], [5, -5]], [-5, 5]),
    ("rcp.rn.f32 %o, %a", [[4, 0]], [0.25, INF]),
    ("sqrt.rn.f32 %o, %a", [[9, -1]], [3, NAN]),
    ("mov.f32 %o, 0f3FC00000", [[0]], [1.5]),
]


@pytest.mark.parametrize(("text", "inputs", "expected"), FLOAT, ids=lambda v: str(v)[:34])
def test_float(text, inputs, expected):
    got = evaluate(text, *(np.array(values, F32) for values in inputs), out=F32)
    np.testing.assert_array_equal(_bits(got), _bits(np.array(expected, F32)))


def _bits(values):
    """Bit patterns, so that -0 differs from 0; all NaNs alike."""
    return np.where(np.isnan(values), U32(0x7FC00000), values.view(U32))


DOUBLE = [
    ("add.f64 %o, %a, %b", [[1, 2.0**53], [2, 1]], [3, 2.0**53]),
    ("fma.rn.f64 %o, %a, %b, %c", [[1 + 2**-30], [1 - 2**-30], [-1]], [-(2.0**-60)]),
    ("div.rn.f64 %o, %a, %b", [[1], [3]], [1 / 3]),
    ("sqrt.rn.f64 %o, %a", [[2]], [2**0.5]),
    ("rcp.rn.f64 %o, %a", [[3]], [1 / 3]),
    ("min.f64 %o, %a, %b", [[3], [-2]], [-2]),
    ("neg.f64 %o, %a", [[3]], [-3]),
    ("mov.f64 %o, 0d3FF8000000000000", [[0]], [1.5]),
]


@pytest.mark.parametrize(("text", "inputs", "expected"), DOUBLE, ids=lambda v: str(v)[:34])
def test_double(text, inputs, expected):
    got = evaluate(text, *(np.array(values, F64) for values in inputs), out=F64)
    np.testing.assert_array_equal(got, np.array(expected, F64))


# f16: 1.0 = 0x3C00, 2.0 = 0x4000, -0.5 = 0xB800, 65504 = 0x7BFF, inf = 0x7C00, 1 + 2^-10 = 0x3C01
# bf16: 1.0 = 0x3F80, 2.0 = 0x4000, 1 + 2^-7 = 0x3F81
HALF = [
    ("add.f16x2 %o, %a, %b", [[0x3C00_4000], [0xB800_3C00]], [0x3800_4200]),
    ("mul.f16x2 %o, %a, %b", [[0x7BFF_3C01], [0x4000_3C01]], [0x7C00_3C02]),
    ("fma.rn.f16x2 %o, %a, %b, %a", [[0x3C00_4000], [0x3C00_3C00]], [0x4000_4400]),
    ("fma.rn.bf16x2 %o, %a, %b, %a", [[0x3F80_3F81], [0x3F80_4000]], [0x4000_4042]),
    ("sub.bf16x2 %o, %a, %b", [[0x4000_3F80], [0x3F80_3F80]], [0x3F80_0000]),
    ("neg.f16x2 %o, %a", [[0x3C00_B800]], [0xBC00_3800]),
    ("max.f16x2 %o, %a, %b", [[0x3C00_B800], [0x4000_3C00]], [0x4000_3C00]),
]


@pytest.mark.parametrize(("text", "inputs", "expected"), HALF, ids=lambda v: str(v)[:34])
def test_half(text, inputs, expected):
    got = evaluate(text, *(np.array(values, U32) for values in inputs), out=U32)
    assert [hex(v) for v in got] == [hex(v) for v in expected]


CONVERT = [
    ("cvt.rn.f32.s32 %o, %a", S32, F32, [-3, 16777217], [-3, 16777216]),
    ("cvt.rz.f32.u32 %o, %a", U32, F32, [0xFFFFFFFF], [4294967040.0]),
    ("cvt.rn.f32.s64 %o, %a", S64, F32, [(1 << 40) + 1], [2.0**40]),
    ("cvt.rn.f64.u64 %o, %a", U64, F64, [(1 << 64) - 1], [2.0**64]),
    ("cvt.rzi.s32.f32 %o, %a", F32, S32, [-1.9, 3e9, NAN], [-1, 2147483647, 0]),
    ("cvt.rni.s32.f32 %o, %a", F32, S32, [2.5, 3.5, -2.5], [2, 4, -2]),
    ("cvt.rmi.s64.f64 %o, %a", F64, S64, [-1.5, 2.0**40 + 0.5], [-2, 1 << 40]),
    ("cvt.rpi.f32.f32 %o, %a", F32, F32, [1.25, -1.25], [2, -1]),
    ("cvt.rzi.u32.f32 %o, %a", F32, U32, [-5.0, 7.9], [0, 7]),
    ("cvt.sat.f32.f32 %o, %a", F32, F32, [-1, 0.5, 7, NAN], [0, 0.5, 1, 0]),
    ("cvt.f64.f32 %o, %a", F32, F64, [0.5], [0.5]),
    ("cvt.rn.f32.f64 %o, %a", F64, F32, [1 + 2.0**-24, 1 + 3 * 2.0**-24], [1, 1 + 2.0**-22]),
    ("cvt.rp.f32.f64 %o, %a", F64, F32, [1 + 2.0**-40], [1 + 2.0**-23]),
    ("cvt.s64.s32 %o, %a", S32, S64, [-1, 5], [-1, 5]),
    ("cvt.u64.u32 %o, %a", U32, U64, [0xFFFFFFFF], [0xFFFFFFFF]),
    ("cvt.u32.u64 %o, %a", U64, U32, [(7 << 32) + 9], [9]),
    ("cvt.u16.u32 %o, %a", U32, U16, [0x12345678], [0x5678]),
    ("cvt.s32.s16 %o, %a", S16, S32, [-2], [-2]),
    ("cvt.s32.s8 %o, %a", S32, S32, [0x1FF, 0x7F], [-1, 127]),
    ("cvt.sat.s16.s32 %o, %a", S32, S16, [70000, -70000, 5], [32767, -32768, 5]),
    ("cvt.rn.f16.f32 %o, %a", F32, U16, [1, 65520, 2.0**-24, 1 + 2.0**-11], [0x3C00, 0x7C00, 1, 0x3C00]),
    ("cvt.rz.f16.f32 %o, %a", F32, U16, [65520, -1.0005], [0x7BFF, 0xBC00]),
    ("cvt.f32.f16 %o, %a", U16, F32, [0x3C01, 0xFC00, 1], [1 + 2.0**-10, -INF, 2.0**-24]),
    ("cvt.rn.bf16.f32 %o, %a", F32, U16, [1, 1 + 2.0**-8, 1 + 3 * 2.0**-8], [0x3F80, 0x3F80, 0x3F82]),
    ("cvt.f32.bf16 %o, %a", U16, F32, [0x3F81], [1 + 2.0**-7]),
    ("cvt.rn.f16x2.f32 %o, %a, 0f40000000", F32, U32, [1], [0x3C00_4000]),
    ("cvt.rn.bf16x2.f32 %o, %a, 0f40000000", F32, U32, [1], [0x3F80_4000]),
    ("cvt.rna.tf32.f32 %o, %a", F32, F32, [1 + 2.0**-11, 1 + 2.0**-12, -1 - 2.0**-11],
     [1 + 2.0**-10, 1, -1 - 2.0**-10]),
    ("cvt.rn.tf32.f32 %o, %a", F32, F32, [1 + 2.0**-11, 1 + 3 * 2.0**-11], [1, 1 + 2.0**-9]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "source", "target", "values", "expected"), CONVERT)
def test_convert(text, source, target, values, expected):
    got = evaluate(text, np.array(values, source), out=target)
    np.testing.assert_array_equal(got, np.array(expected, target))


COMPARE = [
    ("setp.lt.s32 %o, %a, %b", S32, [[-1, 1], [1, -1]], [1, 0]),
    ("setp.lt.u32 %o, %a, %b", U32, [[0xFFFFFFFF, 1], [1, 2]], [0, 1]),
    ("setp.ge.s64 %o, %a, %b", S64, [[1 << 40, 5], [1, 6]], [1, 0]),
    ("setp.ne.f32 %o, %a, %b", F32, [[NAN, 1, 1], [1, 1, 2]], [0, 0, 1]),
    ("setp.neu.f32 %o, %a, %b", F32, [[NAN, 1, 1], [1, 1, 2]], [1, 0, 1]),
    ("setp.gtu.f64 %o, %a, %b", F64, [[NAN, 1, 3], [1, 1, 2]], [1, 0, 1]),
    ("setp.nan.f32 %o, %a, %b", F32, [[NAN, 1], [1, 1]], [1, 0]),
    ("setp.gt.f16 %o, %a, %b", U16, [[0x4000, 0xBC00], [0x3C00, 0x3C00]], [1, 0]),
    ("setp.eq.s32 %q1, %a, %b; setp.lt.and.s32 %o, %a, 5, !%q1", S32, [[3, 3, 9], [3, 4, 9]], [0, 1, 0]),
    ("setp.lt.s32 %q1|%o, %a, %b", S32, [[1, 2], [2, 1]], [0, 1]),
    ("setp.lt.s32 %q1, %a, %b; not.pred %o, %q1", S32, [[1, 2], [2, 1]], [0, 1]),
]  # fmt: skip


@pytest.mark.parametrize(("text", "dtype", "inputs", "expected"), COMPARE, ids=lambda v: str(v)[:40])
def test_compare(text, dtype, inputs, expected):
    got = evaluate(text, *(np.array(values, dtype) for values in inputs), out=bool)
    assert got.tolist() == [bool(v) for v in expected]


# (instruction, function, inputs, relative bound, absolute bound): the bounds of the PTX ISA
GRID = np.linspace(0.01, 3.99, 997).astype(F32)
APPROXIMATE = [
    ("ex2.approx.ftz.f32 %o, %a", np.exp2, GRID * 20 - 60, 2.0**-22, 0),
    ("lg2.approx.f32 %o, %a", np.log2, GRID, 2.0**-22, 2.0**-22),
    ("rcp.approx.ftz.f32 %o, %a", lambda x: 1 / x, GRID, 2.0**-23, 0),
    ("sqrt.approx.f32 %o, %a", np.sqrt, GRID, 2.0**-23, 0),
    ("rsqrt.approx.f32 %o, %a", lambda x: x**-0.5, GRID, 2.0**-22.9, 0),
    ("tanh.approx.f32 %o, %a", np.tanh, GRID, 2.0**-11, 0),
    ("sin.approx.f32 %o, %a", np.sin, GRID, 0, 2.0**-20.5),
    ("cos.approx.f32 %o, %a", np.cos, GRID, 0, 2.0**-20.5),
    ("div.full.f32 %o, 0f3F800000, %a", lambda x: 1 / x, GRID, 2.0**-22, 0),
]


@pytest.mark.parametrize(
    ("text", "function", "inputs", "relative", "absolute"), APPROXIMATE, ids=lambda v: str(v)[:20]
)
def test_approximate(text, function, inputs, relative, absolute):
    """Within the documented error, and not much better: a kernel must live with that."""
    exact = function(inputs.astype(F64))
    error = np.abs(evaluate(text, inputs, out=F32) - exact)
    bound = np.maximum(np.abs(exact) * relative, absolute)
    assert (error <= bound).all()
    assert (error > 0.45 * bound).any()


def test_approximate_corner_cases():
    got = evaluate("ex2.approx.ftz.f32 %o, %a", np.array([0, -INF, INF, SMALLEST], F32), out=F32)
    np.testing.assert_array_equal(got, np.array([1, 0, INF, 1], F32))
    got = evaluate("rcp.approx.f32 %o, %a", np.array([0.0, -0.0, INF], F32), out=F32)
    np.testing.assert_array_equal(got, np.array([INF, -INF, 0], F32))


def test_selp_reads_only_what_it_chooses():
    """%r5 is never written; that matters in the lanes that choose it, and there only once used."""
    body = """
    setp.lt.u32 %q1, %t, {limit};
    selp.b32 %r1, %t, %r5, %q1;
    mad.wide.u32 %x1, %t, 4, %p0;
    st.global.u32 [%x1], %r1;
    """
    results, _ = launch(kernel(body.format(limit=32)), ((32,), U32))
    np.testing.assert_array_equal(results[0].numpy(), np.arange(32))
    with pytest.raises(RuntimeError, match=r"uninitialised.*%r1(?s:.*)lane 31"):
        launch(kernel(body.format(limit=31)), ((32,), U32))


@pytest.mark.parametrize(
    "body",
    [
        "frobnicate.b32 %r1, %r2;",
        "add.f99 %r1, %r2, %r3;",
        "add.sat.s32 %r1, %r2, %r3;",
        "mma.sync.aligned.m8n32k16.x %r1, %r2;",
    ],
)
def test_unknown_instruction_is_named(body):
    with pytest.raises(RuntimeError, match=r"unknown instruction(?s:.*)PTX line 15: " + body[:9]):
        launch(kernel(body))
