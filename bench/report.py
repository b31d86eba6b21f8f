"""Measures, section by section, and writes bench/REPORT.md and bench/plots/.

    python bench/report.py                          everything; expect an hour on two cores
    python bench/report.py --only table memory      these sections; the report keeps the others' last results
    python bench/report.py --only                   nothing; the report once more, from the last results
    python bench/report.py --quick                  few rounds and tiny sizes, to see that it runs

Results stay as JSON in build/bench/, with the machine they come from; unless all sections have some there,
the report is written beside them, not over bench/REPORT.md. What ``--quick`` writes means nothing, and goes
to build/bench/quick/ altogether.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter
from types import ModuleType

import lasso
import machine
import memory
import product
import results
import scaling
import sweep
import table
import tiles

SECTIONS: dict[str, ModuleType] = {
    "table": table,
    "memory": memory,
    "scaling": scaling,
    "sweep": sweep,
    "lasso": lasso,
    "tiles": tiles,
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few rounds and tiny sizes")
    parser.add_argument(
        "--only",
        nargs="*",
        choices=SECTIONS,
        metavar="SECTION",
        default=list(SECTIONS),
        help=f"what to measure: {', '.join(SECTIONS)}",
    )
    chosen = parser.parse_args()
    where = results.folder(quick=True) if chosen.quick else results.BENCH
    for name in chosen.only:
        start = perf_counter()
        print(f"{name} ...", flush=True)
        result = SECTIONS[name].measure(chosen.quick)
        results.save(name, result, chosen.quick)
        print(SECTIONS[name].markdown(result, where / "plots"))
        print(f"{name}: {perf_counter() - start:.0f} s")
    missing = [name for name in SECTIONS if results.load(name, chosen.quick) is None]
    if missing:
        where = results.folder(chosen.quick)
        print(f"no results here of {', '.join(missing)}: bench/REPORT.md stays as it is")
    (where / "REPORT.md").write_text(assemble(chosen.quick, where / "plots"))
    print(f"written: {where / 'REPORT.md'}")


def assemble(quick: bool, plots: Path) -> str:
    """The report of all results there are; a machine is described where it differs from the one before."""
    parts = [
        "# What the benches measured\n\nMade by `python bench/report.py`. Every number comes from its "
        "measurements. Compare ratios, not times of different sections; a ratio is the median of the ratios "
        "within a round."
    ]
    before = None
    for name, module in [*SECTIONS.items(), ("product", product)]:
        saved = results.load(name, quick)
        if saved is None:
            continue
        if saved["machine"] != before:
            before = saved["machine"]
            parts.append(machine.markdown(before))
        parts.append(f"## {module.TITLE}\n\n{module.markdown(saved['result'], plots)}")
    return "\n\n".join(parts) + "\n"


if __name__ == "__main__":
    main()
