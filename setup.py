"""Build script: finds torch and drives CMake, which alone knows how the library is compiled.

The rest of the packaging is in pyproject.toml. Environment variables: FSAD_CUDA and
TORCH_CUDA_ARCH_LIST (see CMakeLists.txt) and MAX_JOBS, an upper bound of parallel compilations.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from torch_location import REQUIREMENT, find_torch  # in _build/, like the build backend

ROOT = Path(__file__).resolve().parent
BYTES_PER_JOB = 4 << 30  # what one nvcc process may need


def tool(name: str) -> str:
    """Return the path of cmake or ninja, from this Python environment or from PATH."""
    path = shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name)
    if path is None:
        sys.exit(f"fsad: {name} was not found: pip install {name}")
    return path


def parallel_jobs() -> int:
    """Return how many jobs cores, memory (or a container's limit of it) and MAX_JOBS allow."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (text := limit.read_text().strip()) != "max":
        memory = min(memory, int(text))
    jobs = min(len(os.sched_getaffinity(0)), memory // BYTES_PER_JOB)
    if "MAX_JOBS" in os.environ:
        jobs = min(jobs, int(os.environ["MAX_JOBS"]))
    return max(1, jobs)


class BuildNative(build_ext):
    """Builds fsad_ext/libfsad.so in build/native, which stays for incremental builds."""

    def get_ext_filename(self, fullname: str) -> str:
        # No Python C-API inside, hence none of CPython's suffixes.
        return os.path.join(*fullname.split(".")) + ".so"

    def build_extension(self, ext: Extension) -> None:
        if not sys.platform.startswith("linux"):
            sys.exit(f"fsad supports Linux only so far, and this is {sys.platform}.")
        torch = find_torch()
        if torch is None:
            sys.exit(f"fsad: the build found no torch: pip install '{REQUIREMENT}'")
        build = ROOT / "build" / "native"
        cmake = tool("cmake")
        configure = [cmake, "-S", str(ROOT), "-B", str(build), "-G", "Ninja"]
        configure += [f"-DCMAKE_MAKE_PROGRAM={tool('ninja')}"]
        configure += [f"-DTORCH_DIR={torch.folder}", f"-DTORCH_VERSION={torch.version}"]
        configure += [f"-DFSAD_VERSION={self.distribution.get_version()}"]
        jobs = parallel_jobs()
        print(f"fsad: {jobs} parallel compilation(s)", flush=True)
        try:
            subprocess.run(configure, check=True)
            subprocess.run([cmake, "--build", str(build), "--parallel", str(jobs)], check=True)
        except subprocess.CalledProcessError as error:
            sys.exit(
                f"fsad: {Path(error.cmd[0]).name} failed, for the reason above. "
                "FSAD_CUDA=0 leaves the CUDA kernels out."
            )
        target = Path(self.get_ext_fullpath(ext.name))
        target.parent.mkdir(parents=True, exist_ok=True)
        self.copy_file(str(build / "libfsad.so"), str(target))


class PlatformWheel(bdist_wheel):
    """One wheel per platform serves every Python 3: the library does not use the Python C-API."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


setup(
    ext_modules=[Extension("fsad_ext.libfsad", sources=[])],
    cmdclass={"build_ext": BuildNative, "bdist_wheel": PlatformWheel},
)
