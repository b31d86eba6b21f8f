"""Do the tests of the kernels notice damage? Changes the device code in hundreds of places, one at a time.

    cd tests; ../.venv/bin/python -m ptx.mutants            # all: an hour and a half on two cores
    cd tests; ../.venv/bin/python -m ptx.mutants --only 'ring.cuh Ring::next_stage'

Each mutant is compiled and goes through a short battery of problems (``mutation/battery.py``), held to the
rules of the interpreter and to the bounds of ``test_kernels.py``. What survives must be equivalent, or
beyond the battery and noticed elsewhere, as ``mutation/reasons.py`` says, or it shows a hole in the tests.
Results are kept in ``build/mutants`` until the sources or the battery change; all of them become
``docs/mutants.md``.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.connection import Connection, wait
from pathlib import Path

import torch

from .mutation.battery import Record, notice
from .mutation.compiler import CompileError, digest_of
from .mutation.machine import Machine, Undamaged
from .mutation.operators import Mutant, mutants
from .mutation.reasons import reason_of, unused_reasons
from .mutation.source import device_digest
from .passes import CSRC

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "mutants"
TABLE = HERE.parents[1] / "docs" / "mutants.md"
BATTERY = ("cases.py", "battery.py", "compiler.py", "machine.py")
SECONDS = 600  # for one mutant; to compile and run all takes a tenth of it


class Workplace:
    """The sources at one moment, what is compiled of them, and the results so far."""

    def __init__(self, csrc: Path = CSRC) -> None:
        tests = [HERE / "kernels_host.cpp", *(HERE / "mutation" / name for name in BATTERY)]
        key = digest_of(csrc / "cuda", *csrc.glob("*.h"), *tests)
        self.folder = BUILD / key
        self.csrc = self.folder / "csrc"
        if not self.csrc.exists():  # later changes to the sources are for the next run
            shutil.copytree(csrc, self.folder / "copy", dirs_exist_ok=True)
            (self.folder / "copy").replace(self.csrc)
        self.undamaged = Undamaged(self.csrc, self.folder)
        self.record = Record(self.folder)
        self.mutants = mutants(self.csrc / "cuda")
        self.file = self.folder / "results.json"
        self.results: dict[str, str | None] = json.loads(self.file.read_text()) if self.file.exists() else {}

    def prepare(self) -> None:
        self.undamaged.prepare()
        with tempfile.TemporaryDirectory() as scratch:
            self.record.prepare(Machine(self.undamaged, self.csrc, None, Path(scratch)))

    def examine(self, mutant: Mutant) -> str | None:
        """How the damage was noticed, or None."""
        self.record.load()
        with tempfile.TemporaryDirectory() as scratch:
            csrc = Path(scratch) / "csrc"
            shutil.copytree(self.csrc, csrc)
            path = csrc / "cuda" / mutant.path.name
            path.write_text(mutant.apply(path.read_text()))
            machine = Machine(self.undamaged, csrc, mutant, Path(scratch))
            try:
                return notice(self.record, machine)
            except CompileError as error:
                said = re.search(r"error: (.*)", str(error))
                return f"does not compile: {said[1] if said else error}"

    def keep(self, mutant: Mutant, result: str | None) -> None:
        self.results[mutant.key] = result
        self.file.write_text(json.dumps(self.results, indent=1))


def _child(work: Workplace, mutant: Mutant, answer: Connection) -> None:
    torch.set_num_threads(1)
    answer.send(work.examine(mutant))


class Running:
    """One mutant in a process of its own, which may crash or never end."""

    def __init__(self, work: Workplace, mutant: Mutant) -> None:
        context = multiprocessing.get_context("fork")
        self.mutant, self.began = mutant, time.monotonic()
        self.answer, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_child, args=(work, mutant, theirs))
        self.process.start()
        theirs.close()

    def result(self) -> str | None:
        """What was found; waits for it no longer than the time that is left."""
        try:
            if self.answer.poll(max(0, SECONDS - (time.monotonic() - self.began))):
                return self.answer.recv()
            self.process.kill()
            return "[endless]"
        except EOFError:
            self.process.join()
            if self.process.exitcode > 0:  # an exception, printed by the process
                raise RuntimeError(f"failed to examine {self.mutant.key}") from None
            return f"[crash] signal {-self.process.exitcode}"
        finally:
            self.process.join()


def examine_all(work: Workplace, chosen: list[Mutant], jobs: int) -> None:
    """Fill in the results of the chosen mutants that have none yet."""
    todo = [mutant for mutant in chosen if mutant.key not in work.results]
    running: list[Running] = []
    while todo or running:
        while todo and len(running) < jobs:
            running.append(Running(work, todo.pop(0)))
        ready = wait([one.answer for one in running], timeout=5)
        for one in list(running):
            if one.answer in ready or time.monotonic() - one.began > SECONDS:
                running.remove(one)
                result = one.result()
                work.keep(one.mutant, result)
                seconds = time.monotonic() - one.began
                print(f"{seconds:5.1f} s  {one.mutant.key}\n         {result or 'SURVIVED'}", flush=True)


def verdict(mutant: Mutant, result: str | None) -> str:
    """The last column of the table."""
    return result or reason_of(mutant) or "**SURVIVED**"


def totals(chosen: list[Mutant], work: Workplace) -> str:
    kinds: Counter[str] = Counter()
    for mutant in chosen:
        said = verdict(mutant, work.results[mutant.key])
        kinds[said.split(":")[0] if not said.startswith("[") else said[: said.find("]") + 1]] += 1
    lines = ["| how it was noticed | mutants |", "|---|---:|"]
    lines += [f"| {name} | {count} |" for name, count in kinds.most_common()]
    return "\n".join([*lines, f"| all | {sum(kinds.values())} |"])


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def row(mutant: Mutant) -> str:
    """Its line of the table, but for the last column."""
    where = f"{mutant.path.name} {mutant.scope.rpartition('::')[2]}"
    return f"| {where} | `{cell(mutant.line_text)}` | {cell(mutant.what)} |"


def table(chosen: list[Mutant], work: Workplace) -> str:
    lines = ["| where | source | change | how it was noticed |", "|---|---|---|---|"]
    lines += [f"{row(mutant)} {cell(verdict(mutant, work.results[mutant.key]))} |" for mutant in chosen]
    return "\n".join(lines)


INTRODUCTION = """# Damage that the tests of the kernels notice

Written by `python -m ptx.mutants` (in `tests/`), which makes each of these changes to the device code, one at
a time, compiles it and runs a short battery of problems on the interpreter. Rules stand in brackets, see
[ptx-interpreter.md](ptx-interpreter.md); after the colon stands the problem that showed it. A test holds the
digest of the device code, {digest}, to the sources.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Damage the kernels and see whether the tests notice.")
    parser.add_argument("--only", metavar="PATTERN", default="", help="those whose line of the list matches")
    parser.add_argument("--kind", default="", help="those of one kind, e.g. barriers, waits, bounds")
    parser.add_argument("--list", action="store_true", help="list them and do nothing")
    parser.add_argument("-j", type=int, default=2, dest="jobs", help="processes at a time")
    arguments = parser.parse_args()

    work = Workplace()
    chosen = [
        m for m in work.mutants if re.search(arguments.only, m.key) and re.search(arguments.kind, m.kind)
    ]
    if arguments.list:
        print("\n".join(f"{m.kind}: {m.key}" for m in chosen))
        return 0
    # In a process of its own: autograd allows no fork after its first use.
    preparation = multiprocessing.get_context("fork").Process(target=work.prepare)
    preparation.start()
    preparation.join()
    if preparation.exitcode:
        return 1
    examine_all(work, chosen, arguments.jobs)
    survived = [m for m in chosen if work.results[m.key] is None]
    holes = [m for m in survived if not reason_of(m)]
    stale = unused_reasons(survived) if len(chosen) == len(work.mutants) else []
    print(totals(chosen, work))
    for mutant in holes:
        print(f"SURVIVED  {mutant.key}")
    for key in stale:
        print(f"a reason that fits no survivor: {key}")
    if len(chosen) == len(work.mutants):
        head = INTRODUCTION.format(digest=device_digest(work.csrc / "cuda"))
        TABLE.write_text("\n".join([head, totals(chosen, work), "", table(chosen, work), ""]))
    return 1 if holes or stale else 0


if __name__ == "__main__":
    sys.exit(main())
