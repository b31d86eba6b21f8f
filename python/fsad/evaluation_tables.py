"""What an evaluation found, as Markdown, CSV and JSON."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fsad.evaluate import ALL
from fsad.metrics import confidence_interval
from fsad.model_file import replace_csv, replace_file

MEAN, OURS = "mean", "fsad"


def write_tables(results: Sequence[dict[str, Any]], folder: Path) -> str:
    """results.md, .csv and .json in ``folder``; returns the Markdown.

    One table a metric and number of shots: a row a method and network, a column a category, and the mean of
    the categories; mean ± standard deviation over draws. Then, for each metric, what fsad is ahead.
    """
    each = product(_metrics(results), numbers_of_shots(results))
    tables = [f"### {metric}, {shots} shots\n\n{table(results, metric, shots)}" for metric, shots in each]
    for metric in _metrics(results):
        if lead := lead_table(results, metric):
            tables.append(f"### {metric}: fsad minus another, paired\n\n{lead}")
    text = "\n\n".join(tables)
    replace_file(folder / "results.md", f"{text}\n".encode())
    replace_file(folder / "results.json", json.dumps(list(results), indent=1).encode())
    names = ["category", "method", "network", "shots", "draw", *_metrics(results)]
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
            row[result["category"]][result["draw"]] = result["metrics"][metric]
    categories = list(dict.fromkeys(result["category"] for result in results))
    lines = [_line(["method", "network", *categories, MEAN]), "|---" * (len(categories) + 3) + "|"]
    for (method, network), row in values.items():
        draws = sorted({draw for each in row.values() for draw in each})
        means = [mean(each[draw] for each in row.values() if draw in each) for draw in draws]
        cells = [spread(list(row[name].values())) for name in categories]
        lines.append(_line([method, network, *cells, spread(means)]))
    return "\n".join([*lines, *_published(results, metric, shots)])


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


def _published(results: Sequence[dict[str, Any]], metric: str, shots: int) -> Iterator[str]:
    """Rows of what others report of these data sets (published.json), with as many digits as they give."""
    columns = list(dict.fromkeys(f"{result['dataset']}/{result['category']}" for result in results))
    overall = "+".join({result["dataset"] for result in results}) + f"/{MEAN}"  # of one set alone
    for part in json.loads(resources.files("fsad").joinpath("published.json").read_text(encoding="utf-8")):
        for method, at, name, values in part["rows"]:
            known = dict(zip(part["columns"], values, strict=True))
            given = [known[column] for column in columns if column in known]
            average = round(mean(given), 3) if len(given) == len(columns) else known.get(overall, "-")
            cells = [*(known.get(column, "-") for column in columns), average]
            if name == metric and at in (shots, ALL) and set(cells) != {"-"}:
                yield _line([f"{method}, published", part["source"], *cells])


def _metrics(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(name for result in results for name in result["metrics"]))


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    if not values:
        return "-"
    return f"{mean(values):.3f}" + (f" ± {stdev(values):.3f}" if len(values) > 1 else "")
