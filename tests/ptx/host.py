"""Host code with its launches: ``.cu`` files linked against a runtime that calls the interpreter."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .build import compile_objects, link
from .gpu import Counters, Gpu

FAKE_CUDART = Path(__file__).parent / "fake_cudart.cpp"
_LAUNCH_FAILED = 719  # cudaErrorLaunchFailure


class _Dim(ctypes.Structure):
    _fields_ = [("x", ctypes.c_uint), ("y", ctypes.c_uint), ("z", ctypes.c_uint)]


class HostLibrary:
    """Compiled CUDA sources whose kernel launches run on ``gpu``, with the host code's own geometry.

    ``launches`` keeps the kernel's name and counters of every launch, in order. ``seed`` is passed on
    to each. ``device`` is what host code may ask for: the major number of the compute capability, and the
    bytes of shared memory of a multiprocessor.
    """

    def __init__(
        self,
        gpu: Gpu,
        cuda_sources: Sequence[Path],
        host_sources: Sequence[Path] = (),
        *,
        arch: str = "sm_80",
        include: Sequence[Path] = (),
        seed: int = 0,
        shared_kib: int = 164,
    ) -> None:
        objects, texts = compile_objects(cuda_sources, arch=arch, include=include)
        self._programs = {}
        for text in texts:
            program = gpu.load(text)
            self._programs.update(dict.fromkeys(program.kernels, program))
        library = link(objects, [FAKE_CUDART, *host_sources], include=include)
        self._library = ctypes.CDLL(str(library))
        launcher = ctypes.CFUNCTYPE(
            ctypes.c_int,
            ctypes.c_char_p,
            ctypes.POINTER(_Dim),
            ctypes.POINTER(_Dim),
            ctypes.POINTER(ctypes.c_void_p),
            ctypes.c_size_t,
        )
        self._launcher = launcher(self._launch)  # kept: C holds only its address
        self._error: BaseException | None = None
        self.launches: list[tuple[str, Counters]] = []
        self.seed = seed
        self.device = (int(arch.removeprefix("sm_")) // 10, shared_kib * 1024)

    def call(self, function: str, *args: Any) -> None:
        """Call an ``extern "C"`` function that returns null or an error message."""
        message = self._call(function, *args)
        if self._error:
            error, self._error = self._error, None
            raise error
        if message:
            raise RuntimeError(f"{function}: {message.decode()}")

    def ask(self, function: str, *args: Any) -> str:
        """Call an ``extern "C"`` function that returns a text and launches nothing."""
        return self._call(function, *args).decode()

    def _call(self, function: str, *args: Any) -> Any:
        self._library.ptx_set_launcher(self._launcher)  # another HostLibrary may share the file
        self._library.ptx_set_device(*self.device)
        native = getattr(self._library, function)
        native.restype = ctypes.c_char_p
        return native(*args)

    def _launch(self, name: bytes, grid: Any, block: Any, arguments: Any, shared: int) -> int:
        if self._error:  # of an earlier launch of the same call
            return _LAUNCH_FAILED
        kernel = name.decode()
        try:
            program = self._programs[kernel]
            args = [
                ctypes.string_at(arguments[i], size) for i, size in enumerate(program.parameter_sizes(kernel))
            ]
            counters = program.launch(
                kernel,
                (grid[0].x, grid[0].y, grid[0].z),
                (block[0].x, block[0].y, block[0].z),
                args,
                shared=shared,
                seed=self.seed,
            )
        except BaseException as error:  # cannot pass through C: raised again by call()
            self._error = error
            return _LAUNCH_FAILED
        self.launches.append((program.kernels[kernel], counters))
        return 0
