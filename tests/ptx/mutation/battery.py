"""Runs the problems of ``cases.py`` and says which of them shows a damage."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from ..passes import torch_backward, torch_double_backward
from ..test_kernels import check, copies, forward, inner_products
from .cases import CASES, Case
from .machine import Machine


def run(machine: Machine, case: Case, name: str, history: Tensor | None) -> Tensor | None:
    """One pass of a case: raises if it is wrong. The forward gives the history."""
    kernels = machine.kernels(case.shared_kib, case.small)
    problem, dtype, tensors = case.problem, case.dtype, case.tensors
    if name == "forward":
        residual, saved = kernels.forward(problem, tensors)
        check([residual], problem, dtype, forward)
        if history is not None:  # the backward is tested on the true one
            error = (saved.double() - history.double()).norm()
            assert error <= 20 * torch.finfo(dtype).eps * history.double().norm(), (
                f"history: error {error:.2e}"
            )
        return saved
    if name == "peak_atom":
        got = kernels.peak_atom(problem, tensors)
        if case.atom_values == "ties":
            assert (got == 23).all(), got
            return None
        if case.atom_values == "nan":
            index = tensors["atom_index"]
            assert all(torch.isin(*pair).all() for pair in zip(got, index, strict=True)), got
            return None
        products = inner_products(problem, copies(tensors, torch.float64)).abs()
        chosen = products.gather(-1, got[..., None])[..., 0]
        assert (chosen >= products.amax(-1) * (1 - 1e-5)).all()
        return None
    plain = {"backward": torch_backward, "double_backward": torch_double_backward}[name]
    assert history is not None
    shapes = {"grad_queries": tensors["queries"].shape, "grad_scale": tensors["scale"].shape}
    if name == "double_backward":
        shapes = {"grad_grad": problem.rows} | shapes
    if case.atom_gradient:
        shapes["grad_atoms"] = tensors["atom_map"].shape
    results = kernels._run(name, problem, {**tensors, "history": history}, shapes)
    check(results, problem, dtype, lambda *given: plain(*given)[: len(results)])
    return None


class Record:
    """What the undamaged kernels do with the battery: the pieces that each pass uses, and the histories."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.uses: dict[str, list[int]] = {}

    @property
    def file(self) -> Path:
        return self.folder / "uses.json"

    def load(self) -> None:
        self.uses = json.loads(self.file.read_text())

    def history(self, number: int) -> Tensor | None:
        path = self.folder / f"history-{number}.pt"
        return torch.load(path) if path.exists() else None

    def prepare(self, machine: Machine, say: Callable[[str], None] = print) -> None:
        """Run the battery once; nothing that is there is made again."""
        if self.file.exists():
            return
        kernels: set[str] = set()
        for number, case in enumerate(CASES):
            history = None
            programs = machine.programs(case.shared_kib, case.small)
            for name in case.passes:
                programs.used.clear()
                began = time.monotonic()
                found = run(machine, case, name, history)
                if name == "forward":
                    history = found
                    torch.save(history, self.folder / f"history-{number}.pt")
                self.uses[f"{number} {name}"] = sorted(programs.used)
                say(f"{time.monotonic() - began:6.2f} s  {case.name}, {name}")
            kernels |= programs.keys()
        for kernel in machine.undamaged.index().keys() - kernels:
            say(f"no problem runs {kernel}")
        self.file.write_text(json.dumps(self.uses))


def steps(record: Record, machine: Machine) -> Iterator[tuple[int, Case, str, list[int]]]:
    """The passes of the battery: those first that the damage may be in, then those with few kernels."""
    found = []
    for key, used in record.uses.items():
        number, name = key.split()
        found.append((int(number), CASES[int(number)], name, used))

    def cost(step: tuple[int, Case, str, list[int]]) -> tuple[bool, int]:
        _, case, name, used = step
        return not any(machine.reaches(piece) for piece in used), case.passes.index(name)

    yield from sorted(found, key=cost)


def notice(record: Record, machine: Machine) -> str | None:
    """The first pass of the battery that shows the damage, and how; None if none does."""
    assert machine.damage is not None
    for number, case, name, used in steps(record, machine):
        reached = any(machine.reaches(piece) for piece in used)
        if machine.damage.host:  # plans and sizes may differ where no machine code does
            if machine.in_one_rule and not reached:
                continue
        elif not any(machine.differs(piece) for piece in used):
            continue
        try:
            run(machine, case, name, record.history(number))
        except AssertionError:
            return f"wrong result: {case.name}, {name}"
        except RuntimeError as error:  # PtxFault too
            words = str(error)
            rule = words[words.find("[") : words.find("]") + 1] if "[" in words else words[:60]
            return f"{rule}: {case.name}, {name}"
    return None
