"""The interpreter as a small device API: buffers, programs, launches, counters."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .build import core

Dim = int | tuple[int, ...]


class Buffer:
    """Device memory that holds one array. ``ptr`` is its address."""

    def __init__(self, gpu: Gpu, shape: tuple[int, ...], dtype: DTypeLike, name: str) -> None:
        self.shape, self.dtype, self.name = shape, np.dtype(dtype), name
        self._device = gpu.device
        self.nbytes = int(np.prod(shape, dtype=np.int64)) * self.dtype.itemsize
        self.ptr: int = self._device.allocate(self.nbytes, name)

    def numpy(self) -> NDArray[Any]:
        """A copy of the contents. An element that nothing has written is an error."""
        missing = ~self.written()
        if missing.any():
            first = tuple(int(i) for i in np.argwhere(missing)[0])
            raise RuntimeError(
                f"[uninitialised] {missing.sum()} of {missing.size} elements of '{self.name}' were "
                f"never written; the first is {first}."
            )
        return np.frombuffer(self._device.read(self.ptr), self.dtype).reshape(self.shape).copy()

    def written(self) -> NDArray[np.bool_]:
        """Which elements something has written, in the array's shape."""
        state = np.frombuffer(self._device.state(self.ptr), np.uint8) == 1
        return state.reshape(*self.shape, self.dtype.itemsize).all(-1)

    def free(self) -> None:
        self._device.release(self.ptr)


class Gpu:
    """One device's memory and the programs loaded on it."""

    def __init__(self) -> None:
        self.device = core().Device()

    def array(self, values: NDArray[Any], name: str = "input") -> Buffer:
        """A buffer with a copy of ``values``."""
        values = np.ascontiguousarray(values)
        buffer = Buffer(self, values.shape, values.dtype, name)
        self.device.write(buffer.ptr, values.tobytes())
        return buffer

    def empty(self, shape: Dim, dtype: DTypeLike, name: str = "output") -> Buffer:
        """A buffer of poison: to read an element before it is written is a fault."""
        return Buffer(self, shape if isinstance(shape, tuple) else (shape,), dtype, name)

    def load(self, ptx: str) -> Program:
        return Program(self, ptx)


class Program:
    """The kernels of one PTX text."""

    def __init__(self, gpu: Gpu, ptx: str) -> None:
        self._native = core().Program(gpu.device, ptx)
        self.kernels: dict[str, str] = dict(self._native.kernels())  # mangled -> demangled

    def find(self, name: str) -> str:
        """The mangled name of the one kernel whose demangled (or mangled) name contains ``name``."""
        exact = [k for k, shown in self.kernels.items() if name in (k, shown.partition("(")[0])]
        found = exact or [k for k, shown in self.kernels.items() if name in shown or name in k]
        if len(found) != 1:
            shown = "\n  ".join(self.kernels.values())
            raise KeyError(f"{len(found)} kernels match {name!r}, of these:\n  {shown}")
        return found[0]

    def launch(
        self,
        name: str,
        grid: Dim,
        block: Dim,
        args: Sequence[Buffer | bytes | int | float | np.generic],
        *,
        shared: int = 0,
        seed: int = 0,
        max_instructions: int = 2_000_000_000,
    ) -> Counters:
        """Run a kernel to its end and return what it cost.

        ``args`` are the kernel's parameters in order: a buffer stands for its address, ``bytes`` for a
        structure passed by value, a Python int or float for a parameter of its size. ``seed`` fixes
        the order in which warps and blocks run; any order must do. Raises ``PtxFault`` when the
        kernel breaks a rule, with the instruction, the thread and the reason.
        """
        kernel = self.find(name)
        counters = self._native.launch(
            kernel,
            _dim3(grid),
            _dim3(block),
            shared,
            self._pack(kernel, args),
            seed,
            max_instructions,
        )
        return Counters(counters)

    def parameter_sizes(self, kernel: str) -> list[int]:
        return [size for _, _, size in self._native.parameters(kernel)]

    def _pack(self, kernel: str, args: Sequence[Any]) -> bytes:
        parameters = self._native.parameters(kernel)
        if len(parameters) != len(args):
            raise TypeError(f"{kernel} takes {len(parameters)} parameters, got {len(args)}.")
        packed = b""
        for (name, offset, size), value in zip(parameters, args, strict=True):
            raw = _parameter(value, size)
            if len(raw) != size:
                raise TypeError(f"parameter {name} has {size} bytes, got {len(raw)}.")
            packed = packed.ljust(offset, b"\0") + raw
        return packed


def _dim3(value: Dim) -> list[int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes + [1] * (3 - len(sizes))


def _parameter(value: Any, size: int) -> bytes:
    if isinstance(value, Buffer):
        return struct.pack("<Q", value.ptr)
    if isinstance(value, bytes):
        return value
    if isinstance(value, np.generic):
        return value.tobytes()
    if isinstance(value, float):
        return struct.pack("<d" if size == 8 else "<f", value)
    return int(value).to_bytes(size, "little", signed=value < 0)


@dataclass
class Counters:
    """What a launch cost, instruction by instruction, with sums by kind of instruction.

    ``columns`` has one entry an instruction: issues (warp instructions), lanes (active ones),
    sectors and used_bytes of global memory, wavefronts and ideal_wavefronts of shared memory, kind,
    ptx_line, file and source_line.
    """

    columns: dict[str, Any]

    def total(self, column: str, *kinds: str) -> int:
        """The sum of a column, over all instructions or those of the kinds named."""
        values = self.columns[column]
        if kinds:
            wanted = [core().kinds.index(kind) for kind in kinds]
            values = values[np.isin(self.columns["kind"], wanted)]
        return int(values.sum())

    @property
    def warp_instructions(self) -> int:
        return self.total("issues")

    @property
    def lane_instructions(self) -> int:
        return self.total("lanes")

    @property
    def mma(self) -> int:
        return self.total("issues", "mma")

    @property
    def special(self) -> int:
        """Lane operations of the special-function unit."""
        return self.total("lanes", "special")

    @property
    def barriers(self) -> int:
        return self.total("issues", "barrier")

    @property
    def global_bytes(self) -> int:
        """Bytes of the 32-byte sectors that all global accesses touched, access by access."""
        return 32 * self.total("sectors")

    @property
    def sector_use(self) -> float:
        """The part of those bytes that a lane asked for."""
        return self.total("used_bytes") / max(1, self.global_bytes)

    @property
    def bank_conflicts(self) -> float:
        """Extra passes of shared accesses, relative to the passes needed without conflicts."""
        ideal = self.total("ideal_wavefronts")
        return (self.total("wavefronts") - ideal) / max(1, ideal)

    def by_line(self, column: str) -> dict[tuple[str, int], int]:
        """A column summed over each source line: {(file, line): sum}; needs ``-lineinfo``."""
        sums: dict[tuple[str, int], int] = {}
        files = self.columns["files"]
        for file, line, value in zip(
            self.columns["file"], self.columns["source_line"], self.columns[column], strict=True
        ):
            key = (files.get(int(file), ""), int(line))
            sums[key] = sums.get(key, 0) + int(value)
        return sums
