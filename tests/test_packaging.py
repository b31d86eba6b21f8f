"""What a user meets before the first operator runs: import cost, error sentences, installation."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXTENSION = Path(importlib.util.find_spec("fsad_ext").origin).parent


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command with captured text output, in a clean working folder, without PYTHONPATH."""
    base = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=base | environment,
        capture_output=True,
        text=True,
        check=False,
    )


def last_line(result: subprocess.CompletedProcess[str]) -> str:
    assert result.returncode != 0, result.stdout
    return result.stderr.strip().splitlines()[-1]


# ---- import ----


def test_import_is_quick_and_lean(tmp_path: Path) -> None:
    """Beyond torch, `import fsad` costs little and brings no image, model or command packages."""
    code = """
import json, sys, time
import torch, numpy
before = set(sys.modules)
start = time.perf_counter()
import fsad
seconds = time.perf_counter() - start
print(json.dumps([seconds, sorted({name.split(".")[0] for name in set(sys.modules) - before})]))
"""
    runs = [run(sys.executable, "-c", code, cwd=tmp_path) for _ in range(3)]
    measured = [json.loads(result.stdout) for result in runs]
    heavy = {"PIL", "sklearn", "scipy", "typer", "click", "rich", "timm", "safetensors"}
    assert heavy.isdisjoint(measured[0][1])
    assert min(seconds for seconds, _ in measured) < 0.5


# ---- one sentence instead of a linker's message ----


@pytest.fixture
def extension_copy(tmp_path: Path) -> Path:
    """A folder with a copy of fsad_ext alone, to be broken."""
    shutil.copytree(EXTENSION, tmp_path / "fsad_ext", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def import_extension(folder: Path, *options: str, before: str = "pass") -> str:
    """Import fsad_ext from ``folder`` in a new interpreter that must fail; return its last line."""
    command = f"import sys; sys.path.insert(0, {str(folder)!r}); {before}; import fsad_ext"
    return last_line(run(sys.executable, *options, "-c", command, cwd=folder))


def test_torch_missing(extension_copy: Path) -> None:
    line = import_extension(extension_copy, "-S")  # -S: no site-packages
    assert line.startswith("ImportError: fsad needs PyTorch 2.11 or newer, and none is installed")


def test_torch_too_old(extension_copy: Path) -> None:
    (extension_copy / "torch.py").write_text("__version__ = '2.9.1+cu128'")
    line = import_extension(extension_copy)
    assert "needs PyTorch 2.11 or newer, and 2.9.1+cu128 is installed" in line


def test_operating_system_not_supported(extension_copy: Path) -> None:
    line = import_extension(extension_copy, before="sys.platform = 'darwin'")
    assert line == "ImportError: fsad supports Linux only so far, and this is darwin."


def test_library_not_built(extension_copy: Path) -> None:
    (extension_copy / "fsad_ext" / "libfsad.so").unlink()
    assert "native library has not been built" in import_extension(extension_copy)


def test_library_damaged(extension_copy: Path) -> None:
    (extension_copy / "fsad_ext" / "libfsad.so").write_bytes(b"not a library")
    assert "does not load under torch" in import_extension(extension_copy)


# ---- the library ----


def test_library_depends_on_neither_python_nor_cuda() -> None:
    """One wheel serves every Python 3 and every torch from 2.11 on, with and without CUDA."""
    library = EXTENSION / "libfsad.so"
    dynamic = subprocess.check_output(["readelf", "-d", library], text=True)
    needed = {line.split("[")[1].rstrip("]") for line in dynamic.splitlines() if "(NEEDED)" in line}
    assert {"libtorch.so", "libtorch_cpu.so"} <= needed
    assert not [name for name in needed if "python" in name or "cuda" in name or "c10" in name]
    assert "RPATH" not in dynamic
    assert "RUNPATH" not in dynamic
    undefined = subprocess.check_output(["nm", "-D", "--undefined-only", library], text=True)
    assert not [line for line in undefined.splitlines() if line.split()[-1].startswith(("Py", "_Py"))]


def test_instruction_sets_share_no_code() -> None:
    """No inline function of the AVX2 objects can replace one that runs on every processor.

    The linker keeps one definition of an inline function out of all object files: for a function
    outside the namespace of the instruction set, that might be the AVX2 one.
    """
    objects = list((ROOT / "build/native/CMakeFiles").glob("fsad_cpu_*.dir/csrc/cpu/*.o"))
    assert objects, "no object files: `make test` builds the library in the source tree"
    for path in objects:
        isa = path.relative_to(ROOT / "build/native/CMakeFiles").parts[0][len("fsad_cpu_") : -len(".dir")]
        lines = subprocess.check_output(["nm", "--defined-only", path], text=True).splitlines()
        # Mangled names: not all of them can be demangled. The namespace is its length and its name.
        namespace = f"{len(isa)}{isa}"
        shared = {name for _, kind, name in map(str.split, lines) if kind in "WVu" and namespace not in name}
        assert shared <= {"DW.ref.__gxx_personality_v0"}


# ---- the build ----


def found_torch(python: Path, folder: Path) -> str:
    """What the build finds as torch, run by ``python`` with ``folder`` on its path."""
    code = f"import sys; sys.path[:0] = [{str(folder)!r}, {str(ROOT / '_build')!r}]; "
    code += "import torch_location; print(torch_location.find_torch())"
    result = run(python, "-c", code, cwd=folder, PYTHONNOUSERSITE="1")
    assert result.returncode == 0, result.stderr
    assert "torch" not in result.stderr
    return result.stdout.strip()


@pytest.mark.parametrize(("version", "usable"), [("2.9.1", False), ("2.11.0", True), ("3.0.0a0", True)])
def test_build_takes_torch_of_the_environment(tmp_path: Path, version: str, usable: bool) -> None:
    """A torch that is too old counts as none: the build then asks pip for one."""
    venv.create(tmp_path / "empty", with_pip=False)
    python = tmp_path / "empty" / "bin" / "python"
    assert found_torch(python, tmp_path) == "None"
    (tmp_path / "torch/include/torch/csrc/stable").mkdir(parents=True)
    (tmp_path / "torch/version.py").write_text(f"__version__ = '{version}'\n")
    assert (found_torch(python, tmp_path) != "None") == usable


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, built from the source tree."""
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir", folder, ROOT]
    result = run(*build, cwd=folder)
    assert result.returncode == 0, result.stdout + result.stderr
    (archive,) = folder.glob("fsad-*.tar.gz")
    return archive


def test_sdist_is_complete(sdist: Path) -> None:
    """Everything that git tracks, bar its own settings, is in the archive; nothing built is."""
    with tarfile.open(sdist) as archive:
        packed = {name.partition("/")[2] for name in archive.getnames()}
    tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).split("\n")
    assert {name for name in tracked if name} - packed <= {".gitignore"}
    assert not [name for name in packed if name.endswith((".so", ".pyc"))]


@pytest.mark.slow
def test_sdist_installs_into_an_empty_environment(sdist: Path, tmp_path: Path) -> None:
    """sdist -> wheel -> an environment with torch alone -> the demo, outside the source tree."""
    venv.create(tmp_path / "env", with_pip=True)
    python = tmp_path / "env" / "bin" / "python"
    constraints = ROOT / ".ci" / "constraints.txt"
    pip = [python, "-m", "pip", "--disable-pip-version-check"]
    result = run(*pip, "install", "--constraint", constraints, "torch", cwd=tmp_path)
    assert result.returncode == 0, result.stderr

    # With build isolation, and without CUDA, which the editable build of these tests covers.
    wheel = [*pip, "wheel", "--no-deps", "--no-cache-dir", "--wheel-dir", tmp_path, sdist]
    result = run(*wheel, cwd=tmp_path, FSAD_CUDA="0")
    assert result.returncode == 0, result.stderr
    (built,) = tmp_path.glob("fsad-*.whl")
    assert "-py3-none-linux_" in built.name
    with zipfile.ZipFile(built) as archive:
        names = set(archive.namelist())
    package = ROOT / "python"
    files = {str(path.relative_to(package)) for path in package.glob("fsad/**/*") if path.is_file()}
    files = {name for name in files if "__pycache__" not in name}
    assert "fsad/weights/fsad-small.safetensors" in files and files | {"fsad_ext/libfsad.so"} <= names
    assert not [name for name in names if not name.startswith(("fsad/", "fsad_ext/", "fsad-"))]

    result = run(*pip, "install", "--constraint", constraints, f"{built}[demo]", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    work = tmp_path / "elsewhere"
    work.mkdir()
    result = run(tmp_path / "env" / "bin" / "fsad", "demo", "--draws", "1", cwd=work)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Solar cells" in result.stdout  # the real pictures, not the procedural ones
    assert list(work.rglob("report.html"))
