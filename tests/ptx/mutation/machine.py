"""The passes of a damaged source on the interpreter: ``passes.Kernels`` with kernels compiled on demand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

from .. import build, host, passes
from ..gpu import Counters, Program
from .compiler import MAX_INSTRUCTIONS, host_object, included, pieces_of, ptx_of
from .operators import Mutant


class Undamaged:
    """The sources as they are, compiled: shared by all mutants, in a folder named by their content."""

    def __init__(self, csrc: Path, folder: Path) -> None:
        self.csrc, self.folder = csrc, folder
        self.pieces = pieces_of(csrc / "cuda")
        self.includes = [included(csrc / "cuda", piece.file) for piece in self.pieces]

    def prepare(self) -> None:
        """Compile all that mutants share. Nothing that is there is made again."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for small in (False, True):
            if not self.host(small).exists():
                host_library(self.csrc, self.host(small), small)
        index: dict[str, int] = {}
        for number, piece in enumerate(self.pieces):
            path = self.ptx(number)
            if not path.exists():
                path.write_text(ptx_of(self.csrc, piece))
            index |= dict.fromkeys(re.findall(r"\.entry (\w+)", path.read_text()), number)
        self._index.write_text(json.dumps(index))

    def host(self, small: bool) -> Path:
        return self.folder / ("small.so" if small else "host.so")

    def ptx(self, number: int) -> Path:
        return self.folder / f"{number}.ptx"

    @property
    def _index(self) -> Path:
        return self.folder / "kernels.json"

    def index(self) -> dict[str, int]:
        """Mangled name of a kernel -> number of its piece."""
        return json.loads(self._index.read_text())


def host_library(csrc: Path, target: Path, small: bool) -> None:
    made = target.with_suffix(".o")
    host_object(csrc, made, small)
    build._run([build.CXX, "-std=c++17", "-O1", "-fPIC", "-shared", host.FAKE_CUDART, made, "-o", target])


class _Program(Program):
    """A program whose launches end soon even if the damage made a loop endless."""

    def launch(self, *args: Any, **settings: Any) -> Counters:
        return super().launch(*args, **settings, max_instructions=MAX_INSTRUCTIONS)


class Machine:
    """One source, damaged or not, on the interpreter.

    ``damage`` is none in the source as it is.
    """

    def __init__(self, undamaged: Undamaged, csrc: Path, damage: Mutant | None, scratch: Path) -> None:
        self.undamaged, self.csrc, self.damage, self._scratch = undamaged, csrc, damage, scratch
        self._texts: dict[int, str] = {}
        self._kernels: dict[tuple[int, bool], passes.Kernels] = {}
        self._programs: dict[tuple[int, bool], Programs] = {}
        # A rule's code is in the kernels that are launched for it, and in their plans.
        rule = re.compile(rf"launch<.*\b{damage.scope.partition('::')[0] if damage else ''}\b")
        mentions = [bool(rule.search(piece.instantiations)) for piece in undamaged.pieces]
        self.in_one_rule = damage is not None and any(mentions)
        self._reached = [
            mentions[number] if self.in_one_rule else damage is not None and damage.path.name in files
            for number, files in enumerate(undamaged.includes)
        ]

    def reaches(self, number: int) -> bool:
        """Whether the damage may be in this piece."""
        return self._reached[number]

    def text(self, number: int) -> str:
        """The PTX of a piece."""
        if number not in self._texts:
            if self.reaches(number):
                self._texts[number] = ptx_of(self.csrc, self.undamaged.pieces[number])
            else:
                self._texts[number] = self.undamaged.ptx(number).read_text()
        return self._texts[number]

    def differs(self, number: int) -> bool:
        """Whether the damage changes this piece's machine code."""
        return self.reaches(number) and self.text(number) != self.undamaged.ptx(number).read_text()

    def kernels(self, shared_kib: int, small: bool) -> passes.Kernels:
        """The passes, on a multiprocessor with that much memory; with small limits or the true ones."""
        key = (shared_kib, small)
        if key not in self._kernels:
            library = self.undamaged.host(small)
            if self.damage and self.damage.host:
                library = self._scratch / library.name
                if not library.exists():
                    host_library(self.csrc, library, small)
            with _linked(library):
                self._kernels[key] = passes.Kernels(shared_kib=shared_kib, csrc=self.csrc)
            self._programs[key] = Programs(self, self._kernels[key])
            self._kernels[key].library._programs = self._programs[key]
        return self._kernels[key]

    def programs(self, shared_kib: int, small: bool) -> Programs:
        """The kernels that ``kernels(…)`` has loaded."""
        self.kernels(shared_kib, small)
        return self._programs[shared_kib, small]


@contextmanager
def _linked(library: Path) -> Iterator[None]:
    """``HostLibrary`` takes this library instead of compiling one."""
    with (
        patch.object(host, "compile_objects", lambda *_, **__: ([], [])),
        patch.object(host, "link", lambda *_, **__: library),
    ):
        yield


class Programs(dict[str, Program]):
    """Mangled name of a kernel -> its program, loaded when it is asked for."""

    def __init__(self, machine: Machine, kernels: passes.Kernels) -> None:
        self._machine, self._gpu = machine, kernels.gpu
        self._index = machine.undamaged.index()
        self._loaded: dict[int, Program] = {}
        self.used: set[int] = set()  # numbers of pieces

    def __getitem__(self, kernel: str) -> Program:
        number = self._index[kernel]
        self.used.add(number)
        if number not in self._loaded:
            self._loaded[number] = _Program(self._gpu, self._machine.text(number))
        self[kernel] = self._loaded[number]
        return self._loaded[number]
