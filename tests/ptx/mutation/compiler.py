"""Compiles damaged kernels by pieces, each when a launch first needs it.

All kernels for all types take half a minute, and most damage shows in the first one that runs. So the
device code is compiled in pieces of one explicit instantiation each, the host code separately and only if
it changed, and what a change cannot reach is compiled once for all mutants.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from .. import build, passes
from .source import Source

TYPES = ("float", "Bfloat16")  # the product has double and Float16 too, by the same code
_TYPE = re.compile(r"\b(float|double|Bfloat16|Float16)\b")
_MACRO = re.compile(r"^#define FSAD_INSTANTIATE\(Element\)((?:[^\n]*\\\n)*[^\n]*)\n", re.M)
_USE = re.compile(r"^FSAD_INSTANTIATE\((\w+)\)\n", re.M)
_DIRECT = re.compile(r"^template (?!<)[^;]*;\n", re.M)
_INCLUDE = re.compile(r'^#include "([^"]+)"', re.M)
# Limits with which small problems have several bands, and several tiles a split.
_SMALL = {"kWantedBlocks": "2", "kMaxCodesBytes": "600 << 10"}
# The largest launch of the battery takes a hundredth of it.
MAX_INSTRUCTIONS = 30_000_000


@dataclass(frozen=True)
class Piece:
    """Explicit instantiations of one ``.cu`` file, compiled together."""

    file: str
    instantiations: str


def explicit(text: str) -> tuple[str, list[tuple[str, str]]]:
    """A ``.cu`` file's text without explicit instantiations, and these with their element type."""
    found: list[tuple[str, str]] = []
    macro = _MACRO.search(text)
    if macro:
        statements = [
            part.strip() + ";" for part in macro[1].replace("\\\n", "\n").split(";") if part.strip()
        ]
        for use in _USE.finditer(text):
            found += [(use[1], re.sub(r"\bElement\b", use[1], one)) for one in statements]
    for one in _DIRECT.finditer(text):
        kind = _TYPE.search(one[0])
        found.append((kind[1] if kind else "", one[0].strip()))
    return _DIRECT.sub("", _USE.sub("", text)), found


def pieces_of(folder: Path) -> list[Piece]:
    """The pieces of all ``.cu`` files: an instance each of the costly kernels, the rest by type."""
    pieces: list[Piece] = []
    for path in sorted(folder.glob("*.cu")):
        _, found = explicit(path.read_text())
        wanted = [(kind, text) for kind, text in found if kind in TYPES]
        pieces += [Piece(path.name, text) for _, text in wanted if "launch<" in text]
        for kind in TYPES:
            rest = [text for kind_, text in wanted if kind_ == kind and "launch<" not in text]
            if rest:
                pieces.append(Piece(path.name, "\n".join(rest)))
    return pieces


def included(folder: Path, name: str) -> set[str]:
    """The file and all of the folder's files that it includes."""
    seen, todo = set(), [name]
    while todo:
        one = todo.pop()
        if one not in seen and (folder / one).exists():
            seen.add(one)
            todo += _INCLUDE.findall((folder / one).read_text())
    return seen


def digest_of(*paths: Path) -> str:
    """Of the contents of files, and of all files below folders; without the comments of C++."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file() and "__pycache__" not in file.parts:
                text = re.sub(r"\s*//.*" if file.suffix != ".py" else r"\Z", "", file.read_text())
                digest.update(f"{file.name}\0{text}\0".encode())
    return digest.hexdigest()[:20]


def _nvcc(folder: Path, *arguments: str | Path) -> None:
    compiler = build.nvcc()
    assert compiler is not None
    command = [compiler, "-std=c++17", f"-I{folder}", f"-I{folder / 'cuda'}", *arguments]
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stdout + done.stderr)


class CompileError(Exception):
    """The damaged source is no program."""


def ptx_of(csrc: Path, piece: Piece) -> str:
    """What nvcc makes of one piece."""
    with tempfile.TemporaryDirectory() as scratch:
        source, target = Path(scratch) / piece.file, Path(scratch) / "out.ptx"
        rest, _ = explicit((csrc / "cuda" / piece.file).read_text())
        source.write_text(_with(rest, piece.instantiations))
        _nvcc(csrc, "-ptx", "-arch=sm_80", source, "-o", target)
        # Without the lines that name the compiler's run.
        return re.sub(r"^//.*\n", "", target.read_text(), flags=re.M)


def host_object(csrc: Path, target: Path, small: bool) -> None:
    """The host code of all passes and of the harness, as one object file. Its kernels are empty.

    ``small`` sets the limits of ``_SMALL``.
    """
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch) / "csrc"
        (copy / "cuda").mkdir(parents=True)
        for path in csrc.glob("*.h"):
            (copy / path.name).write_text(path.read_text())
        for path in (csrc / "cuda").glob("*"):
            (copy / "cuda" / path.name).write_text(_without_kernels(Source(path)))
        if small:
            limits = copy / "cuda" / "tiling.h"
            for name, value in _SMALL.items():
                text, count = re.subn(rf"\b{name} = [^;]*;", f"{name} = {value};", limits.read_text())
                assert count == 1, name
                limits.write_text(text)
        files = []
        for path in sorted((copy / "cuda").glob("*.cu")):
            rest, found = explicit(path.read_text())
            files.append(
                _with(_MACRO.sub("", rest), "\n".join(text for kind, text in found if kind in TYPES))
            )
        exports = re.compile(r"^FSAD_EXPORT\(\w+, (?:fsad::)?(\w+)\)\n", re.M)
        harness = exports.sub(lambda m: m[0] if m[1] in TYPES else "", passes.HARNESS.read_text())
        # nvcc hides what it compiles.
        files.append(harness.replace('extern "C"', 'extern "C" __attribute__((visibility("default")))'))
        source = Path(scratch) / "host.cu"
        source.write_text("\n".join(files))
        code = "arch=compute_80,code=compute_80"
        _nvcc(copy, "-c", "-gencode", code, "-Xcompiler", "-fPIC,-O0", source, "-o", target)


def _without_kernels(source: Source) -> str:
    text = source.text
    for region in reversed(source.regions):
        if "__global__" in source.code[region.start : region.body]:
            text = text[: region.body] + "{}" + text[region.end :]
    return text


def _with(text: str, instantiations: str) -> str:
    """A ``.cu`` file's text with these explicit instantiations at its end."""
    namespace = text.rindex("}  // namespace")
    return f"{text[:namespace]}{instantiations}\n{text[namespace:]}"
