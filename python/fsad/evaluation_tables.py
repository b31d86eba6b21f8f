"""What an evaluation found, as Markdown, CSV and JSON."""

import json
import re
from collections import defaultdict
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


def write_tables(results: Sequence[dict[str, Any]], folder: Path) -> str:
    """results.md, .csv and .json in ``folder``; returns the Markdown.

    One table a metric and number of shots: a row a method and network, a column a category, and the mean of
    all, and of each data set's among others; mean ± standard deviation over draws. Then, for each metric,
    what fsad is ahead.
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
    """One Markdown table; categories without the metric show "-"."""
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for result in results:
        if result["shots"] in (shots, ALL) and metric in result["metrics"]:
            row = values[result["method"], result["network"]]
            row[_name(result)][result["draw"]] = result["metrics"][metric]
    columns = _columns(results)
    titles = ["method", "network", *(column.title for column in columns)]
    lines = [_line(titles), "|---" * len(titles) + "|"]
    for (method, network), row in values.items():
        cells = (spread(_means([row[name] for name in column.categories])) for column in columns)
        lines.append(_line([method, network, *cells]))
    return "\n".join([*lines, *_published(columns, metric, shots)])


def _means(categories: Sequence[dict[int, float]]) -> list[float]:
    """Of each draw, over the categories that have it."""
    draws = sorted({draw for each in categories for draw in each})
    return [mean(each[draw] for each in categories if draw in each) for draw in draws]


class _Column(NamedTuple):
    title: str
    name: str  # in published.json
    categories: list[str]  # the names of those whose mean it shows


def _name(result: dict[str, Any]) -> str:
    return f"{result['dataset']}/{result['category']}"


def _columns(results: Sequence[dict[str, Any]]) -> list[_Column]:
    sets: dict[str, list[str]] = defaultdict(list)
    for name in dict.fromkeys(map(_name, results)):
        sets[name.partition("/")[0]].append(name)
    columns = []
    for dataset, names in sets.items():
        columns += [_Column(name.partition("/")[2], name, [name]) for name in names]
        if len(names) > 1 and len(sets) > 1:
            columns.append(_Column(f"{dataset} {MEAN}", f"{dataset}/{MEAN}", names))
    overall = f"{'+'.join(sets)}/{MEAN}"  # published of one set alone
    return [*columns, _Column(MEAN, overall, list(chain.from_iterable(sets.values())))]


def lead_table(results: Sequence[dict[str, Any]], metric: str) -> str:
    """What fsad is ahead of each method on the same network, categories, draws and shots.

    Mean and bootstrap interval over categories and draws, each with the mean of its shots. Empty if there is
    nothing to compare.
    """
    runs: dict[tuple[str, str], dict[tuple[str, int, int], float]] = defaultdict(dict)
    for result in results:
        if metric in result["metrics"]:
            run = result["category"], result["draw"], result["shots"]
            runs[result["method"], result["network"]][run] = result["metrics"][metric]
    lines = [_line(["method", "network", "difference", "95 % interval"]), "|---" * 4 + "|"]
    for (method, network), theirs in runs.items():
        ours, leads = runs.get((OURS, network), {}), defaultdict(list)
        for run in ours.keys() & theirs.keys():
            leads[run[:2]].append(ours[run] - theirs[run])
        if method != OURS and len(leads) > 1:
            values = [mean(lead) for _, lead in sorted(leads.items())]
            low, high = confidence_interval(values)
            lines.append(_line([method, network, f"{mean(values):+.4f}", f"{low:+.4f} to {high:+.4f}"]))
    return "\n".join(lines) if len(lines) > 2 else ""


def _line(cells: Sequence[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def _published(columns: Sequence[_Column], metric: str, shots: int) -> Iterator[str]:
    """Rows of what others report of these data sets (published.json), with as many digits as they give.

    Whichever view of videos is ours, see ``fsad.datasets.load``: theirs is of the same videos.
    """
    plain = [_Column(each.title, _bare(each.name), [*map(_bare, each.categories)]) for each in columns]
    for part in json.loads(resources.files("fsad").joinpath("published.json").read_text(encoding="utf-8")):
        for method, at, name, values in part["rows"]:
            known = dict(zip(part["columns"], values, strict=True))
            for _, whole, parts in plain:
                if whole not in known and known.keys() >= set(parts):
                    known[whole] = round(mean(known[each] for each in parts), 3)
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
