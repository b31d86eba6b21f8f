"""The command `fsad`. Tables go to standard output, progress and messages to standard error."""

import signal
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from fsad.errors import FsadError, InputError, display_name

if TYPE_CHECKING:
    import numpy as np

    from fsad.detector import FewShotDetector

UNREADABLE, ANOMALOUS = 3, 4  # exit codes, the second rather than the first; `epilog` has them all

app = typer.Typer(
    help="Finds anomalous pictures after a look at a few normal ones. Start with `fsad demo`.",
    epilog="Exit codes: 0 all pictures scored, 1 failure, 2 wrong usage, 3 some pictures "
    "unreadable, 4 anomalous pictures found (with --fail-on-anomaly).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
out = Console(markup=False, highlight=False)  # file names may look like markup
err = Console(stderr=True, markup=False, highlight=False, soft_wrap=True)


def _opt(help: str, *names: str, **rest: Any) -> Any:
    return typer.Option(*names, help=help, **rest)


Number = int | None
Names = list[str] | None
OUTPUT = "--output", "-o"
LEVEL = "Share of normal pictures that may be called anomalous (default: 0.1, or the model's)."
LIMIT = "Refuse larger files before decoding (default: 89478485, Pillow's limit)."
BACKBONES = "efficientnet_lite0 (default), fsad-small, a file of `fsad train`, small_resnet or timm:NAME."
SIDE = "Side to resize to (default: that of the training of weights by `fsad train`, else 256)."
Normal = _opt("Folder of normal pictures, subfolders included; ten are plenty.")
FalseAlarm = Annotated[float | None, _opt(LEVEL, min=0.0001, max=0.9999)]
Method = Literal["episodic", "maml-ae"]
Trained = Literal["small_resnet", "adapter"]
Device = Annotated[Literal["cpu", "cuda", "auto"], _opt("auto: a GPU if there is one.")]
Seed = Annotated[int, _opt("Seed of everything random.", min=0)]
MaxPixels = Annotated[Number, _opt(LIMIT, min=1)]
Strict = Annotated[bool, _opt("Stop at the first unreadable picture.", "--strict")]


@app.command()
def adapt(
    normal: Annotated[Path, Normal],
    output: Annotated[Path, _opt("The model file to write.", *OUTPUT)],
    add: Annotated[bool, _opt("Add to that model, as it is, more pictures.", "--add")] = False,
    backbone: Annotated[str | None, _opt(BACKBONES)] = None,
    input_size: Annotated[Number, _opt(SIDE, min=16)] = None,
    tile: Annotated[Number, _opt("Or cut into tiles of this side.", min=16)] = None,
    roi: Annotated[Path | None, _opt("Mask picture; what is black there is ignored.")] = None,
    augment: Annotated[bool, _opt("Flipped and turned is normal too.", "--augment")] = False,
    false_alarm: FalseAlarm = None,
    device: Device = "cpu",
    seed: Seed = 0,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
    representative: Annotated[
        bool, _opt("With --add: a fair sample, whose scores count for the threshold.", "--representative")
    ] = False,
) -> None:
    """Adapt to normal pictures and save the model, without the backbone's weights."""
    given = {"backbone": backbone, "input_size": input_size, "tile": tile, "roi": roi, "augment": augment}
    settings = {name: value for name, value in given.items() if value not in (None, False)}
    if add and settings:
        raise typer.BadParameter(f"{', '.join(settings)} cannot change in an existing model (--add)")
    if output.is_dir():
        raise InputError(f"{display_name(output)} is a folder; --output needs the name of a file.")
    if representative and not add:
        raise typer.BadParameter("--representative says something of pictures that --add adds")
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass  # an error now rather than after the work
    except OSError as error:
        raise InputError(f"{display_name(output)} cannot be written: {error.strerror}") from None
    model = output if add else None
    detector = _detector(model, false_alarm, device, max_pixels, seed=seed, **settings)
    learn = partial(detector.update, representative=representative) if add else detector.fit
    skipped = _learn(learn, detector, normal, max_pixels, strict)
    detector.save(output)
    size = output.stat().st_size / 1e6
    err.print(f"Wrote {display_name(output)}, {size:.1f} MB. {detector.threshold_}")
    if skipped:
        raise typer.Exit(UNREADABLE)


@app.command()
def detect(
    images: Annotated[Path, _opt("Folder of pictures to judge, subfolders included.")],
    output: Annotated[Path, _opt("Folder for tables, overlays and report.", *OUTPUT)],
    model: Annotated[Path | None, _opt("Model file made by `fsad adapt`.")] = None,
    normal: Annotated[Path | None, Normal] = None,
    fail_on_anomaly: Annotated[
        bool, _opt("Exit with 4 if any picture is anomalous.", "--fail-on-anomaly")
    ] = False,
    false_alarm: FalseAlarm = None,
    device: Device = "cpu",
    seed: Seed = 0,
    max_pixels: MaxPixels = None,
    strict: Strict = False,
) -> None:
    """Score pictures with a model, or after adapting to --normal, and explain the scores.

    Writes scores.csv, scores.json, overlays and report.html.
    """
    if (model is None) == (normal is None):
        raise typer.BadParameter("give either --model FILE or --normal FOLDER")
    from fsad.images import list_images
    from fsad.report import ResultFolder

    # The overlays of an earlier run, where the output folder lies in the folder of pictures or is it.
    own = output.resolve() / "overlays"
    pictures = [p for p in list_images(images) if own not in p.resolve().parents]
    with ResultFolder(output, images, len(pictures)) as folder:
        detector = _detector(model, false_alarm, device, max_pixels, seed=seed)
        skipped = 0 if normal is None else _learn(detector.fit, detector, normal, max_pixels, strict)
        detector.map_kind = "energy"  # boxes compare the map with the scores' threshold
        with _progress("scoring", len(pictures)) as advance:
            for result in detector.iter_results(pictures, "raise" if strict else "skip"):
                folder.add(detector, result)
                advance()
        folder.publish(detector, display_name(model or normal or ""))
    table = Table("image", "score", "verdict", "regions", title="Most anomalous pictures")
    for row in sorted(folder.rows, key=lambda row: -row["score"])[:10]:
        verdict = "anomalous" if row["anomalous"] else "normal"
        table.add_row(row["image"], f"{row['score']:.4g}", verdict, str(len(row["regions"])))
    out.print(table)
    bad, lost = sum(row["anomalous"] for row in folder.rows), len(folder.unreadable)
    counts = f"{len(folder.rows)} pictures scored, {bad} anomalous, {lost} unreadable."
    page = display_name(output / "report.html")
    out.print(f"{counts} {detector.threshold_}\nReport: {page}", soft_wrap=True)
    for _, reason in folder.unreadable:
        err.print(f"Unreadable: {reason}")
    if fail_on_anomaly and bad:
        raise typer.Exit(ANOMALOUS)
    if skipped or lost:
        raise typer.Exit(UNREADABLE)


@app.command()
def train(
    output: Annotated[Path, _opt("Folder for checkpoints, log, plots and weights.", *OUTPUT)],
    data: Annotated[list[Path] | None, _opt("Folder of folders of normal pictures; can be repeated.")] = None,
    procedural: Annotated[Number, _opt("Procedural products (default: 300 without --data).", min=0)] = None,
    leave_out: Annotated[Names, _opt("Category not to train on; can be repeated.")] = None,
    resume: Annotated[bool, _opt("Go on from the folder's checkpoint.", "--resume")] = False,
    method: Annotated[Method, _opt("maml-ae: the paper's baseline.")] = "episodic",
    backbone: Annotated[Trained, _opt("adapter: a head on ImageNet features.")] = "small_resnet",
    updates: Annotated[int, _opt("Steps of the optimizer; 0: untrained weights.", min=0)] = 1000,
    rate: Annotated[float, _opt("Learning rate.", min=0)] = 1e-3,
    episodes: Annotated[int, _opt("Episodes an update and process.", min=1)] = 1,
    every: Annotated[int, _opt("Updates between checkpoints.", min=1)] = 50,
    shots: Annotated[int, _opt("K, support pictures an episode.", min=1)] = 10,
    queries: Annotated[int, _opt("M, query pictures an episode.", min=1)] = 4,
    input_size: Annotated[int, _opt("Side to resize to.", min=16)] = 64,
    recipe: Annotated[Names, _opt("NAME=VALUE of a Recipe, as JSON; can be repeated.", "--set")] = None,
    device: Device = "cpu",
    workers: Annotated[int, _opt("Processes that prepare episodes.", min=0)] = 0,
    seed: Seed = 0,
) -> None:
    """Learn across products what is normal (Algorithm 1); the weights serve as --backbone.

    Start it with torchrun for more processes or machines.
    """
    from fsad.recipe import NETWORK, Recipe, Schedule, run
    from fsad.trainer import CHECKPOINT

    given = {
        "data": [str(folder) for folder in data or ()],
        "procedural": (0 if data else 300) if procedural is None else procedural,
        "leave_out": leave_out or [],
        "method": method,
        "architecture": {"name": backbone, **({"stride": 4, "seed": seed} if backbone != "adapter" else {})},
        "shots": shots,
        "queries": queries,
        "size": input_size,
        "seed": seed,
    }
    schedule = Schedule(updates=updates, episodes=episodes, rate=rate, every=every)
    what = Recipe.of(given, recipe or [])
    with _progress("training", updates) as advance:

        def show(row: dict[str, float]) -> None:
            advance(int(row["update"]) + 1)
            if not err.is_terminal and (row["update"] + 1) % every == 0:
                err.print(", ".join(f"{name} {value:.4g}" for name, value in row.items()))

        try:
            auroc = run(what, schedule, output, resume=resume, device=device, workers=workers, progress=show)
        except (KeyboardInterrupt, SystemExit):
            if (output / CHECKPOINT).exists():
                err.print("Stopped; the same command with --resume goes on from the checkpoint.")
            raise
    if auroc is not None:
        out.print(f"AUROC of normal against corrupted pictures of other products: {auroc:.3f}")
        out.print(f"Weights: {display_name(output / NETWORK)}", soft_wrap=True)


@app.command()
def evaluate(
    datasets: Annotated[Names, typer.Argument(help="Data sets, as NAME or NAME=ROOT.")] = None,
    root: Annotated[Path | None, _opt("Folder of the data, where one data set is named.")] = None,
    output: Annotated[Path, _opt("Folder for results.", *OUTPUT)] = Path("fsad-evaluation"),
    list_: Annotated[bool, _opt("Show the data sets there are.", "--list")] = False,
    backbone: Annotated[Names, _opt("Network (default: efficientnet_lite0); can be repeated.")] = None,
    method: Annotated[Names, _opt("What to compare (default: all on features); can be repeated.")] = None,
    maml_ae: Annotated[str | None, _opt("Weights of MAML-AE, to compare it too.")] = None,
    shots: Annotated[
        list[int] | None, _opt("Normal pictures to adapt to (default: 10); can be repeated.", min=1)
    ] = None,
    draws: Annotated[int, _opt("Draws of them.", min=1)] = 5,
    input_size: Annotated[int, _opt("Side to resize to.", min=16)] = 256,
    table: Annotated[Number, _opt("A table of the paper: trains what it takes, too.", min=1, max=4)] = None,
    updates: Annotated[int, _opt("Of that training.", min=0)] = 1000,
    device: Device = "cpu",
) -> None:
    """Compare fsad with baselines on data sets of the field: K normal pictures, whole test sets.

    What an interrupted evaluation has finished is not computed again.
    """
    from fsad.backbones import usable_device
    from fsad.datasets import DATASETS, load
    from fsad.evaluate import DEFAULT_METHODS, Protocol, Run, run_evaluation
    from fsad.evaluation_plots import write_plots
    from fsad.evaluation_tables import write_tables
    from fsad.figures import need_matplotlib

    if list_:
        for each in DATASETS.values():
            text = f"{each.name}: {each.title}\n  {each.layout}\n  licence: {each.licence}; {each.source}"
            out.print(text, soft_wrap=True)
        return
    if not datasets:
        raise typer.BadParameter("name one data set or more, or ask for the --list")
    if root is not None:
        if len(datasets) > 1 or "=" in datasets[0]:
            raise typer.BadParameter("--root is for one data set by its name; give several as NAME=ROOT")
        datasets = [f"{datasets[0]}={root}"]
    if table is not None and shots:
        raise typer.BadParameter("--table takes the shots of the paper's table; leave --shots out")
    need_matplotlib()
    loaded = [load(given) for given in datasets]
    named = Counter(found[0].dataset for found in loaded if found)
    if twice := ", ".join(name for name, count in named.items() if count > 1):
        raise InputError(f"several data sets are named {twice}; rename a folder, or evaluate them apart")
    categories = [category for found in loaded for category in found]
    protocol = Protocol(
        methods=method or DEFAULT_METHODS,
        backbones=backbone or ["efficientnet_lite0"],
        maml=maml_ae,
        shots=shots or [10],
        draws=draws,
        size=input_size,
        device=usable_device(device),
    )
    protocols = [protocol]
    if table is None:
        categories = [category for category in categories if category.test]
    else:
        from fsad.paper import add_differences, prepare

        categories, theirs = prepare(table, datasets, categories, output, updates, protocol, err.print)
        protocols = [theirs, replace(protocol, shots=theirs.shots)]
    runs = sum(len(categories) * len(each.runs) for each in protocols)
    with _progress("evaluating", runs) as advance:

        def show(run: Run) -> None:
            advance()
            if not err.is_terminal:
                err.print(f"{run.category}, {run.method}, {run.network}, {run.shots} shots, draw {run.draw}")

        results = [row for each in protocols for row in run_evaluation(categories, each, output, show)]
    if table == 4:
        add_differences(results)
    out.print(write_tables(results, output), soft_wrap=True)
    write_plots(categories, results, output)
    err.print(f"Written to {display_name(output)}: results.md, results.csv, results.json, plots.")


@app.command()
def demo(
    output: Annotated[Path, _opt("Folder for the first draw's report.", *OUTPUT)] = Path("fsad-demo"),
    draws: Annotated[int, _opt("Draws of ten normal pictures.", min=1)] = 5,
) -> None:
    """Compare fsad with three baselines on real solar cells, and write a report.

    Needs the extra `demo`; without it there is `fsad evaluate procedural`.
    """
    from fsad.demo import run_demo

    run_demo(output, draws, out, _progress)


@app.command()
def doctor(as_json: Annotated[bool, _opt("JSON in place of tables.", "--json")] = False) -> None:
    """Print what is installed, compiled and used, and check every kernel."""
    from fsad.doctor import run_doctor

    if not run_doctor(out, as_json):
        raise typer.Exit(1)


def main() -> None:
    """Entry point: runs the command; an error that a user can mend becomes one line and exit code 1."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    # A polite kill lets unfinished files be cleaned up, as Ctrl-C does.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    # Pillow's remarks on the metadata of damaged files, which we name in messages of our own.
    warnings.filterwarnings("ignore", module="PIL")
    try:
        app()
    except (FsadError, OSError, ImportError, MemoryError, RuntimeError) as error:
        if type(error) is RuntimeError and "allocat" not in str(error):
            raise  # a defect of ours; torch says nothing but RuntimeError when memory is short
        text = " ".join(str(error).split()) or type(error).__name__
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{display_name(error.filename)}: {error.strerror}"
        err.print(f"Error: {text}")
        sys.exit(1)


def _detector(
    model: Path | None, level: float | None, device: str, max_pixels: int | None, **settings: Any
) -> "FewShotDetector":
    """A detector from a file, or a new one with the settings."""
    from fsad.detector import FewShotDetector

    if model is None:
        settings |= {"device": device, "max_pixels": max_pixels, "false_alarm": level or 0.1}
        return FewShotDetector(**settings)
    detector = FewShotDetector.load(model, device=device)
    detector.max_pixels = max_pixels
    return detector if level is None else detector.set_threshold(false_alarm=level)


def _learn(
    learn: Callable[[Any], Any], detector: "FewShotDetector", folder: Path, limit: int | None, strict: bool
) -> int:
    """Give the pictures to `learn` (fit or update); returns how many could not be used."""
    from fsad.images import list_images, load_image

    paths, used = list_images(folder), []

    def readable(advance: Callable[[], object]) -> Iterator["np.ndarray"]:
        for path in paths:
            try:
                picture = load_image(path, limit)
                if detector.tile and min(picture.shape[:2]) < detector.tile:
                    smaller = f"smaller than one tile of {detector.tile} pixels"
                    raise InputError(f"{display_name(path)}: {smaller}.")
            except InputError as error:
                if strict:
                    raise
                err.print(f"Left out: {error}")
            else:
                used.append(path)
                yield picture
            advance()

    with _progress("adapting", len(paths)) as advance:
        learn(readable(advance))
    for index, reason in detector.suspects_ if learn == detector.fit else ():
        err.print(f"Unlike the others, is it normal? {display_name(used[index])}: {reason}")
    return len(paths) - len(used)


@contextmanager
def _progress(task: str, total: int) -> Iterator[Callable[..., object]]:
    """A progress bar on standard error, if that is a terminal; gives the function that advances it. By one,
    or to the number that is given."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()
    hidden = not err.is_terminal
    with Progress(*columns, TimeElapsedColumn(), console=err, transient=True, disable=hidden) as bar:
        number = bar.add_task(task, total=total)

        def advance(to: int | None = None) -> None:
            bar.advance(number) if to is None else bar.update(number, completed=to)

        yield advance
