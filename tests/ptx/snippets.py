"""Small hand-written PTX kernels for the interpreter's own tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .gpu import Counters, Gpu

HEADER = ".version 8.0\n.target sm_80\n.address_size 64\n"
STORE = "mad.wide.u32 %x1, %t, 4, %p0; st.global.u32 [%x1], %r1;"  # %r1 to thread t of arg0
_LOAD = {2: "b16", 4: "b32", 8: "b64"}


def kernel(body: str, buffers: int = 1, declarations: str = "") -> str:
    """A kernel ``test`` whose parameters are ``buffers`` pointers, in %p0, %p1 …, %tid in %t."""
    parameters = ", ".join(f".param .u64 arg{i}" for i in range(buffers))
    loads = "\n".join(f"ld.param.u64 %p{i}, [arg{i}];" for i in range(buffers))
    return f"""{HEADER}.visible .entry test({parameters})
{{
.reg .pred %q<9>;
.reg .b16 %h<9>;
.reg .b32 %t, %r<99>;
.reg .f32 %f<99>;
.reg .b64 %p<9>, %x<29>;
.reg .f64 %d<9>;
{declarations}
{loads}
mov.u32 %t, %tid.x;
{body}
ret;
}}
"""


def launch(
    ptx: str, *arrays: NDArray[Any] | tuple[Any, DTypeLike], threads: int = 32, **options: Any
) -> tuple[list[Any], Counters]:
    """Run ``test``. A (shape, dtype) pair makes a poisoned buffer. Returns the buffers' contents."""
    gpu = Gpu()
    buffers = [
        gpu.empty(*array, name=f"arg{i}") if isinstance(array, tuple) else gpu.array(array, name=f"arg{i}")
        for i, array in enumerate(arrays)
    ]
    grid = options.pop("grid", 1)
    counters = gpu.load(ptx).launch("test", grid, threads, buffers, **options)
    return buffers, counters


def per_thread(
    body: str, *arrays: NDArray[Any], threads: int = 32, declarations: str = "", **options: Any
) -> tuple[NDArray[Any], Counters]:
    """Run ``body``, which leaves a number in %r1, and return it for every thread."""
    ptx = kernel(body + STORE, 1 + len(arrays), declarations)
    results, counters = launch(ptx, ((threads,), np.uint32), *arrays, threads=threads, **options)
    return results[0].numpy(), counters


def evaluate(instruction: str, *inputs: NDArray[Any], out: DTypeLike) -> NDArray[Any]:
    """Apply one instruction, on %a, %b, %c to %o, to each element of the inputs.

    The registers have the inputs' widths; booleans become predicates by a comparison with zero, and a
    boolean result is stored as 0 or 1.
    """
    out = np.dtype(out)
    to_predicate = out.kind == "b"
    lines, registers = [], []
    count = len(inputs[0])
    stored = np.dtype(np.uint32) if to_predicate else out
    buffers: list[Any] = [((count,), stored)]
    for i, (name, values) in enumerate(zip("abc", inputs, strict=False)):
        predicate = values.dtype.kind == "b"
        raw = values.astype(np.uint32) if predicate else values
        buffers.append(raw)
        size = raw.dtype.itemsize
        lines += [
            f"mad.wide.u32 %x{i}, %t, {size}, %p{i + 1};",
            f"ld.global.{_LOAD[size]} %{name}{'_raw' if predicate else ''}, [%x{i}];",
        ]
        registers.append(f".reg .b{size * 8} %{name}{'_raw' if predicate else ''};")
        if predicate:
            registers.append(f".reg .pred %{name};")
            lines.append(f"setp.ne.u32 %{name}, %{name}_raw, 0;")
    registers.append(".reg .pred %o;" if to_predicate else f".reg .b{out.itemsize * 8} %o;")
    lines.append(instruction + ";")
    lines.append(f"mad.wide.u32 %x9, %t, {stored.itemsize}, %p0;")
    if to_predicate:
        lines.append("selp.u32 %r0, 1, 0, %o;")
    lines.append(f"st.global.{_LOAD[stored.itemsize]} [%x9], {'%r0' if to_predicate else '%o'};")
    text = kernel("\n".join(lines), len(buffers), "\n".join(registers))
    results, _ = launch(text, *buffers, threads=count)
    return results[0].numpy().astype(out)
