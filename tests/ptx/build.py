"""Compiles the interpreter's core, and CUDA sources to PTX, into a cache keyed by content."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

CORE = Path(__file__).parent / "core"
CACHE = Path(__file__).parents[2] / "build" / "ptx"
CXX = os.environ.get("CXX", "g++")
# No contraction: a PTX mul and add must stay two roundings. The host's vectors make a warp's loop fast.
FLAGS = [
    *("-std=c++20", "-O3", "-march=native", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"),
    *("-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"),
]


def _run(command: Sequence[str | Path]) -> str:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))} failed:\n{done.stdout}{done.stderr}")
    return done.stdout


def _make(target: Path, command: Callable[[Path], Sequence[str | Path]]) -> Path:
    """Run the command that makes ``target``, unless it is there; a half-made file never is."""
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            made = Path(folder) / target.name
            _run(command(made))
            made.replace(target)
    return target


def _digest(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else part)
        digest.update(b"\0")
    return digest.hexdigest()[:20]


@functools.cache
def core() -> ModuleType:
    """The native module, compiled if its sources, the compiler or the host's processor changed."""
    import pybind11

    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    includes = ["-isystem", pybind11.get_include(), "-isystem", sysconfig.get_paths()["include"]]
    host = _run([CXX, "-march=native", "-Q", "--help=target"]) + _run([CXX, "--version"])
    headers = [path.read_bytes() for path in sorted(CORE.glob("*.h"))]
    common = _digest(host, *FLAGS, pybind11.__version__, suffix, *headers)
    CACHE.mkdir(parents=True, exist_ok=True)

    def compiled(source: Path) -> Path:
        target = CACHE / f"{source.stem}-{_digest(common, source.read_bytes())}.o"
        return _make(target, lambda path: [CXX, *FLAGS, *includes, "-c", source, "-o", path])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, sorted(CORE.glob("*.cpp"))))
    library = CACHE / f"ptx_interpreter-{_digest(*(made.name for made in objects))}{suffix}"
    _make(library, lambda path: [CXX, "-shared", *objects, "-o", path])
    spec = importlib.util.spec_from_file_location("ptx_interpreter", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def nvcc() -> str | None:
    """The CUDA compiler, or None."""
    found = os.environ.get("CUDACXX") or shutil.which("nvcc")
    return found or next(iter(map(str, Path("/usr/local/cuda/bin").glob("nvcc"))), None)


def _cuda_key(compiler: str, source: Path, options: Sequence[str]) -> str:
    """Hash of the preprocessed text: a change in any included header counts."""
    seen = _run([compiler, "-E", *options, source])
    lines = [line for line in seen.splitlines() if not line.startswith("#")]
    return _digest(_run([compiler, "--version"]), *options, *lines)


def _require_nvcc() -> str:
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError("nvcc was not found: put it on PATH, or name it in CUDACXX.")
    CACHE.mkdir(parents=True, exist_ok=True)
    return compiler


def compile_ptx(source: Path | str, arch: str = "sm_80", flags: Sequence[str] = ()) -> str:
    """PTX of a ``.cu`` file, or of CUDA source text, as ``nvcc -ptx`` makes it."""
    compiler = _require_nvcc()
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        if isinstance(source, str):
            text, source = source, Path(folder) / "snippet.cu"
            source.write_text(text)
        options = ["-std=c++17", f"-arch={arch}", "-lineinfo", *flags]
        ptx = CACHE / f"{source.stem}-{arch}-{_cuda_key(compiler, source, options)}.ptx"
        return _make(ptx, lambda path: [compiler, "-ptx", *options, source, "-o", path]).read_text()


def compile_objects(
    sources: Sequence[Path], arch: str, include: Sequence[Path] = ()
) -> tuple[list[Path], list[str]]:
    """Host objects of ``.cu`` files, and the PTX of the same compilation.

    One compilation, because the names of kernels in unnamed namespaces hold a hash that changes from
    one to the next.
    """
    compiler = _require_nvcc()
    virtual = arch.replace("sm_", "compute_")
    options = ["-std=c++17", "-gencode", f"arch={virtual},code={virtual}", "-lineinfo"]
    options += [f"-I{folder}" for folder in include]

    def compiled(source: Path) -> Path:
        folder = CACHE / f"{source.stem}-{arch}-{_cuda_key(compiler, source, options)}"
        if not folder.exists():
            with tempfile.TemporaryDirectory(dir=CACHE) as scratch:
                made = Path(scratch) / "made"
                made.mkdir()
                keep = ["--keep", "--keep-dir", made, "-Xcompiler", "-fPIC"]
                _run([compiler, "-c", *options, *keep, source, "-o", made / "host.o"])
                for path in made.iterdir():
                    if path.suffix not in (".o", ".ptx"):
                        path.unlink()
                made.replace(folder)
        return folder

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        folders = list(pool.map(compiled, sources))
    texts = [next(folder.glob("*.ptx")).read_text() for folder in folders]
    return [folder / "host.o" for folder in folders], texts


def link(objects: Sequence[Path], sources: Sequence[Path], include: Sequence[Path] = ()) -> Path:
    """A shared library of objects and C++ sources."""
    options = ["-std=c++17", "-O1", "-fPIC", "-Wall", *(f"-I{folder}" for folder in include)]
    seen = [_run([CXX, "-E", "-P", *options, source]) for source in sources]
    key = _digest(*options, *seen, *(str(path.parent.name) for path in objects))
    library = CACHE / f"host-{key}.so"
    return _make(library, lambda path: [CXX, *options, "-shared", *sources, *objects, "-o", path])
