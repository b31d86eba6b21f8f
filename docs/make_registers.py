"""Makes docs/registers.md: registers, spills and static shared memory of the streaming kernels.

Run it as `python docs/make_registers.py`; it needs nvcc. It fails where a tensor-core kernel spills.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path

CSRC = Path(__file__).parents[1] / "csrc"
PAGE = Path(__file__).with_name("registers.md")
ARCHITECTURES = ("sm_80", "sm_86", "sm_90")
SOURCES = ("fused", "fused_dual", "band", "peak_atom")
ELEMENTS = {"float": "float32", "double": "float64", "fsad::Bfloat16": "bfloat16", "fsad::Float16": "float16"}
HEAD = """\
# Registers of the streaming kernels

Made by `python docs/make_registers.py` with {nvcc}; sources {digest}.

What `ptxas -v` says of every kernel that streams tiles (csrc/cuda/skeleton.cuh): registers of a thread, of at
most 255, and, where there are any, bytes spilled (stored + loaded) and static shared memory (the rest is
dynamic: csrc/cuda/tiling.h). Spilled numbers go through memory, so no kernel that uses tensor cores may
spill; "plain" kernels use none. A test holds the digest to the sources, without their comments.

"""


@dataclass(frozen=True, order=True)
class Row:
    kernel: str
    architecture: str
    registers: int
    stored: int  # spilled bytes
    loaded: int
    shared: int

    @property
    def plain(self) -> bool:
        return "plain" in self.kernel

    @property
    def spills(self) -> bool:
        return self.stored + self.loaded > 0


def digest(csrc: Path = CSRC) -> str:
    """Of all sources that shape the kernels, without comments and white space."""
    files = [*(csrc / "cuda").iterdir(), csrc / "istc.h", csrc / "shrinkage.h"]
    code = sorted(re.sub(r"\s+", "", re.sub(r"//[^\n]*", "", file.read_text())) for file in files)
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:16]


def short_name(demangled: str) -> str | None:
    """As in "float32 fused ForwardStep, 32 columns, 3 stages", of an instance of `stream`; or None."""
    number = r", (\d+)"
    match = re.match(
        rf"void fsad::cuda::stream<fsad::cuda::Shape<([\w:]+), \(fsad::cuda::Products\)(\d), "
        rf"(?:true|false){3 * number}>, "
        r"(true|false), fsad::cuda::(\w+)",
        demangled,
    )
    if not match:
        return None
    element, products, _, columns, stages, fused, rule = match.groups()
    path = "plain" if products == "0" else "fused" if fused == "true" else "band"
    if rule == "PeakRule":
        path = path.replace("band", "peak search")
    side = " of atoms" if rule == "BandSums" and "BandSums<true>" in demangled else ""
    tf32 = " as TF32" if (element, products) == ("float", "2") else ""
    return f"{ELEMENTS[element]}{tf32} {path} {rule}{side}, {columns} columns, {stages} stages"


def parse(log: str, architecture: str) -> list[Row]:
    """The rows in what ptxas printed, demangled."""
    rows = []
    for entry in log.split("Compiling entry function ")[1:]:
        name = short_name(entry.split("'")[1])
        if name is None:
            continue

        def number(pattern: str, text: str = entry) -> int:
            found = re.search(pattern, text)
            return int(found[1]) if found else 0

        rows.append(
            Row(
                name,
                architecture,
                number(r"Used (\d+) registers"),
                number(r"(\d+) bytes spill stores"),
                number(r"(\d+) bytes spill loads"),
                number(r"(\d+) bytes smem"),
            )
        )
    return rows


def compile_rows(csrc: Path, source: str, architecture: str) -> list[Row]:
    command = ["nvcc", "-std=c++17", f"-arch={architecture}", f"-I{csrc}", "-Xptxas", "-v", "-cubin"]
    command += ["-o", f"{csrc}/{source}.{architecture}", str(csrc / "cuda" / f"{source}.cu")]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    log = done.stdout + done.stderr
    shown = subprocess.run(["c++filt"], input=log, capture_output=True, text=True, check=True)
    return parse(shown.stdout, architecture)


def table(rows: list[Row]) -> str:
    found = {(row.kernel, row.architecture): row for row in rows}
    lines = [f"| kernel | {' | '.join(ARCHITECTURES)} |", "|---" * (1 + len(ARCHITECTURES)) + "|"]
    for kernel in sorted({row.kernel for row in rows}):
        lines.append(f"| {kernel} | {' | '.join(cell(found[kernel, arch]) for arch in ARCHITECTURES)} |")
    return "\n".join(lines) + "\n"


def cell(row: Row) -> str:
    spilled = f", spilled {row.stored} + {row.loaded}" if row.spills else ""
    return f"{row.registers}{spilled}" + (f", shared {row.shared}" if row.shared else "")


def read_page(page: str) -> tuple[str, list[Row]]:
    """The digest and the rows of a page."""
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    rows = []
    for kernel, *cells in lines[1:]:
        for architecture, text in zip(lines[0][1:], cells, strict=True):
            numbers = re.fullmatch(r"(\d+)(?:, spilled (\d+) \+ (\d+))?(?:, shared (\d+))?", text).groups("0")
            rows.append(Row(kernel, architecture, *map(int, numbers)))
    return re.search(r"sources ([0-9a-f]+)\.", page)[1], rows


def main() -> None:
    version = subprocess.run(["nvcc", "--version"], capture_output=True, text=True, check=True).stdout
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        csrc = Path(folder) / "csrc"
        shutil.copytree(CSRC, csrc)  # it takes minutes, in which the sources may change
        jobs = pool.map(lambda job: compile_rows(csrc, *job), product(SOURCES, ARCHITECTURES))
        rows = [row for job in jobs for row in job]
        sources = digest(csrc)
    head = HEAD.format(nvcc="nvcc " + re.search(r"V([\d.]+)", version)[1], digest=sources)
    PAGE.write_text(head + table(rows))
    spilled = [row for row in rows if row.spills and not row.plain]
    for row in spilled:
        print(f"{row.kernel} spills on {row.architecture}: {row.stored} bytes stored, {row.loaded} loaded")
    sys.exit(bool(spilled))


if __name__ == "__main__":
    main()
