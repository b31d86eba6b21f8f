"""A PTX interpreter: runs what ``nvcc -ptx`` makes of our kernels, on a machine without a GPU.

See ``docs/ptx-interpreter.md``.
"""

from .build import compile_ptx, core, nvcc
from .gpu import Buffer, Counters, Gpu, Program
from .host import HostLibrary

PtxFault: type[RuntimeError] = core().PtxFault

__all__ = ["Buffer", "Counters", "Gpu", "HostLibrary", "Program", "PtxFault", "compile_ptx", "nvcc"]
