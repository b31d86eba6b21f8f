"""What an evaluation found, as Markdown, CSV and JSON."""

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from itertools import chain, product
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

from fsad.evaluate import ALL
from fsad.metrics import confidence_interval
from fsad.model_file import replace_csv, replace_file

MEAN, OURS = "mean", "fsad"


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
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        if result["shots"] in (shots, ALL) and metric in result["metrics"]:
            row = values[result["method"], result["network"]]
            row[_name(result)][result["draw"]] = result["metrics"][metric]
    columns = _columns(results)
    titles = ["method", "network", *(column.title for column in columns)]
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for (method, network), row in values.items():
        cells = (spread(_means(row, column.groups)) for column in columns)
        lines.append(_line([method, network, *cells]))
    ours = {network: row for (method, network), row in values.items() if method == OURS}
    first = next(iter(ours.values()), {})
    for network, row in [*ours.items()][1:]:
        gains = {
            name: {
                draw: row[name][draw] - value for draw, value in draws.items() if draw in row.get(name, {})
            }
            for name, draws in first.items()
        }
        cells = (_interval(_means(gains, column.groups)) for column in columns)
        lines.append(_line([f"{OURS}, gain", network, *cells]))
    return "\n".join([*lines, *_published(columns, metric, shots)])


def _means(row: Mapping[str, Mapping[int, float]], groups: Sequence[Sequence[str]]) -> list[float]:
    """Of each draw, over the groups, each the mean of its categories, that have it."""
    found: dict[int, list[float]] = defaultdict(list)
    for group in groups:
        known = [row[name] for name in group if name in row]
        for draw in {draw for each in known for draw in each}:
            found[draw].append(mean(each[draw] for each in known if draw in each))
    return [mean(values) for _, values in sorted(found.items())]


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
    runs: dict[tuple[str, str], dict[tuple[str, int, int], float]] = defaultdict(dict)
    for result in results:
        if metric in result["metrics"]:
            run = _name(result), result["draw"], result["shots"]
            runs[result["method"], result["network"]][run] = result["metrics"][metric]
    first = next((network for method, network in runs if method == OURS), "")
    sizes = Counter(name.partition("/")[0] for name in {_name(result) for result in results})
    titles = ["method", "network", "difference", "95 % interval"]
    titles += ["difference of sets", "95 % interval"] if len({*sizes.values()}) > 1 else []
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for (method, network), theirs in runs.items():
        same, leads = (OURS, network) in runs, defaultdict(list)
        for (name, draw, shots), value in runs.get((OURS, network if same else first), {}).items():
            other = theirs.get((name, draw, shots), theirs.get((name, 0, ALL)))
            if other is not None:
                leads[name, draw].append(value - other)
        if method != OURS and len(leads) > 1:
            label = network if same else f"{network}, fsad on {first}"
            values, of_sets = dict[tuple[str, int], float](), defaultdict(list)
            for (name, draw), lead in sorted(leads.items()):
                values[name, draw] = mean(lead)
                of_sets[name.partition("/")[0], draw].append(values[name, draw])
            columns = [[*values.values()], [mean(each) for each in of_sets.values()]]
            cells = chain.from_iterable(map(_lead, columns[: len(titles) // 2 - 1]))
            lines.append(_line([method, label, *cells]))
    return "\n".join(lines) if len(lines) > 2 else ""


def _lead(values: Sequence[float]) -> tuple[str, str]:
    low, high = confidence_interval(values)
    return f"{mean(values):+.4f}", f"{low:+.4f} to {high:+.4f}"


def _interval(values: Sequence[float]) -> str:
    if not values:
        return "-"
    low, high = confidence_interval(values)
    return f"{mean(values):+.3f} ({low:+.3f} to {high:+.3f})"


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _published(columns: Sequence[_Column], metric: str, shots: int) -> Iterator[str]:
    """Rows of what others report of these data sets (published.json), with as many digits as they give.

    Whichever view of videos is ours, see ``fsad.datasets.load``: theirs is of the same videos.
    """
    plain = [
        _Column(each.title, _bare(each.name), [[*map(_bare, group)] for group in each.groups])
        for each in columns
    ]
    for part in json.loads(resources.files("fsad").joinpath("published.json").read_text(encoding="utf-8")):
        for method, at, name, values in part["rows"]:
            known = dict(zip(part["columns"], values, strict=True))
            for _, whole, groups in plain:
                if whole not in known and known.keys() >= set(chain.from_iterable(groups)):
                    known[whole] = round(mean(mean(known[each] for each in group) for group in groups), 3)
            cells = [known.get(column.name, "-") for column in plain]
            if name == metric and at in (shots, ALL) and set(cells) != {"-"}:
                yield _line([f"{method}, published", part["source"], *cells])


def _bare(name: str) -> str:
    return re.sub(":[^/]*", "", name)


def _metrics(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["metrics"]))


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "-"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
