"""What an evaluation found, as Markdown, CSV and JSON."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import chain, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fsad.evaluate import ALL
from fsad.metrics import confidence_interval
from fsad.model_file import replace_csv, replace_file

MEAN, OURS = "mean", "fsad"
DIFFERENCE = "difference of mean errors, 1e-4"  # of table 4: each network has a unit of its own
SMALL = 5e-4  # three decimals would show less as zero
Row = dict[tuple[str, int, int], float]  # by name of the category, draw and shots


def write_tables(results: Sequence[dict[str, Any]], folder: Path) -> str:
    """results.md, .csv and .json in ``folder``; returns the Markdown.

    One table a metric and number of shots: a row a method and network, a column a category, the mean of each
    data set's, and of all; where sets hold unequal numbers of them also the mean of the sets' means. Mean ±
    standard deviation over draws. Then, for each metric, what fsad is ahead.
    """
    each = product(_metrics(results), numbers_of_shots(results))
    tables = [f"### {metric}, {shots} shots\n\n{table(results, metric, shots)}" for metric, shots in each]
    for metric in _metrics(results):
        if lead := lead_table(results, metric):
            tables.append(f"### {metric}: fsad minus another, paired\n\n{lead}")
    text = "\n\n".join(tables)
    replace_file(folder / "results.md", f"{text}\n".encode())
    replace_file(folder / "results.json", json.dumps(list(results), indent=1).encode())
    names = ["dataset", "category", "method", "network", "shots", "draw", *_metrics(results)]
    replace_csv(folder / "results.csv", names, (result | result["metrics"] for result in results))
    return text


def numbers_of_shots(results: Sequence[dict[str, Any]]) -> list[int]:
    """In order; what saw all normal pictures belongs to each of them."""
    return sorted({result["shots"] for result in results} - {ALL}) or [ALL]


def table(results: Sequence[dict[str, Any]], metric: str, shots: int) -> str:
    """One Markdown table; categories without the metric show "-".

    Where fsad has several networks, also what it gains on each over the first: paired by category and draw,
    with a bootstrap interval over draws.
    """
    rows = _rows([result for result in results if result["shots"] in (shots, ALL)], metric)
    columns = _columns(results)
    lines = [[*who, *(spread(_means(row, column.groups)) for column in columns)] for who, row in rows.items()]
    ours = {network: row for (method, network), row in rows.items() if method == OURS}
    first = next(iter(ours.values()), {})
    for network, row in [*ours.items()][1:] if metric != DIFFERENCE else []:
        gains = {run: row[run] - value for run, value in first.items() if run in row}
        each = (_means(gains, column.groups) for column in columns)
        cells = ("{} ({})".format(*_interval(values, 3)) if values else "-" for values in each)
        lines.append([f"{OURS}, gain", network, *cells])
    lines += _published(columns, metric, shots)
    return _markdown(["method", "network", *(column.title for column in columns)], lines)


def _rows(results: Sequence[dict[str, Any]], metric: str) -> dict[tuple[str, str], Row]:
    """By method and network."""
    rows = defaultdict[tuple[str, str], Row](dict)
    for result in results:
        if metric in result["metrics"]:
            run = _name(result), result["draw"], result["shots"]
            rows[result["method"], result["network"]][run] = result["metrics"][metric]
    return rows


def _means(row: Row, groups: Sequence[Sequence[str]]) -> list[float]:
    """Of each draw, over the groups, each the mean of its categories, that have it."""
    found = []
    for draw in sorted({draw for _, draw, _ in row}):
        own = {name: value for (name, at, _), value in row.items() if at == draw}
        if known := [[own[name] for name in group if name in own] for group in groups if own.keys() & group]:
            found.append(mean(map(mean, known)))
    return found


class _Column(NamedTuple):
    title: str
    name: str  # in published.json
    groups: list[list[str]]  # names of categories: the mean of each group's mean


def _name(result: dict[str, Any]) -> str:
    return f"{result['dataset']}/{result['category']}"


def _columns(results: Sequence[dict[str, Any]]) -> list[_Column]:
    sets: dict[str, list[str]] = defaultdict(list)
    titles = {_name(result): result["category"] for result in results}
    for name in titles:
        sets[name.partition("/")[0]].append(name)
    count = Counter(titles.values())
    columns = []
    for dataset, names in sets.items():
        columns += [
            _Column(titles[name] if count[titles[name]] == 1 else name, name, [[name]]) for name in names
        ]
        if len(names) > 1 and len(sets) > 1:
            columns.append(_Column(f"{dataset} {MEAN}", f"{dataset}/{MEAN}", [names]))
    overall = f"{'+'.join(sets)}/{MEAN}"  # published of one set alone
    columns.append(_Column(MEAN, overall, [[*titles]]))
    if len({len(names) for names in sets.values()}) > 1:
        columns.append(_Column(f"{MEAN} of sets", f"{overall} of sets", [*sets.values()]))
    return columns


def lead_table(results: Sequence[dict[str, Any]], metric: str) -> str:
    """What fsad is ahead of each method on the same network, categories, draws and shots.

    A method on a network that fsad does not use, or on none, is compared with fsad on its first; one that saw
    all normal pictures, with every draw. Mean and bootstrap interval over categories and draws, each with the
    mean of its shots; where sets hold unequal numbers of categories also over sets, each the mean of its
    categories, and draws. Empty if there is nothing to compare.
    """
    rows = _rows(results, metric)
    first = next((network for method, network in rows if method == OURS), "")
    sizes = Counter(name.partition("/")[0] for name in {_name(result) for result in results})
    titles = ["method", "network", "difference", "95 % interval"]
    titles += ["difference of sets", "95 % interval"] if len({*sizes.values()}) > 1 else []
    lines = []
    for (method, network), theirs in rows.items():
        same, leads = (OURS, network) in rows, defaultdict(list)
        for (name, draw, shots), value in rows.get((OURS, network if same else first), {}).items():
            other = theirs.get((name, draw, shots), theirs.get((name, 0, ALL)))
            if other is not None:
                leads[name, draw].append(value - other)
        if method != OURS and len(leads) > 1:
            values = {run: mean(lead) for run, lead in sorted(leads.items())}
            of_sets = defaultdict(list)
            for (name, draw), value in values.items():
                of_sets[name.partition("/")[0], draw].append(value)
            cells = [*_interval([*values.values()], 4), *_interval([*map(mean, of_sets.values())], 4)]
            label = network if same else f"{network}, fsad on {first}"
            lines.append([method, label, *cells][: len(titles)])
    return _markdown(titles, lines) if lines else ""


def _interval(values: Sequence[float], digits: int) -> tuple[str, str]:
    low, high = confidence_interval(values)
    return f"{mean(values):+.{digits}f}", f"{low:+.{digits}f} to {high:+.{digits}f}"


def _markdown(titles: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    head, *lines = (f"| {' | '.join(map(str, cells))} |" for cells in (titles, *rows))
    return "\n".join([head, "|---" * len(titles) + "|", *lines])


def _published(columns: Sequence[_Column], metric: str, shots: int) -> Iterator[list[Any]]:
    """Rows of what others report of these data sets (published.json), with as many digits as they give.

    Whichever view of videos is ours, see ``fsad.datasets.load``: theirs is of the same videos.
    """
    plain = [(_bare(each.name), [[*map(_bare, group)] for group in each.groups]) for each in columns]
    for part in json.loads(resources.files("fsad").joinpath("published.json").read_text(encoding="utf-8")):
        for method, at, name, values in part["rows"]:
            known = dict(zip(part["columns"], values, strict=True))
            for whole, groups in plain:
                if whole not in known and known.keys() >= {*chain(*groups)}:
                    known[whole] = round(mean(mean(known[each] for each in group) for group in groups), 3)
            cells = [known.get(whole, "-") for whole, _ in plain]
            if name == metric and at in (shots, ALL) and {*cells} != {"-"}:
                yield [f"{method}, published", part["source"], *cells]


def _bare(name: str) -> str:
    return re.sub(":[^/]*", "", name)


def _metrics(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["metrics"]))


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "-"
    form = ".2e" if 0 < abs(mean(values)) < SMALL else ".3f"  # errors have any unit, see ``fsad.paper``
    return f"{mean(values):{form}}" + (f" ± {stdev(values):{form}}" if len(values) > 1 else "")
