"""Judging detectors as the field does: K normal pictures of a category, its whole test set, several draws.

All methods see the same pictures and features, computed once a category, and their maps are pooled to scores
alike. The result of one method on one draw is a file of its own: an interrupted evaluation goes on with what
is missing.
"""

import fcntl
import hashlib
import inspect
import json
import re
import shutil
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any
from uuid import uuid4

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fsad import __version__
from fsad.backbones import Backbone, load_backbone
from fsad.baselines import METHODS, Method
from fsad.datasets import Category, check_masks, fingerprint, read_mask, read_picture
from fsad.energy import augmented
from fsad.errors import InputError
from fsad.figures import write_png
from fsad.frames import score_maps
from fsad.images import display_name, resize
from fsad.metrics import PixelMetrics, frame_auc, image_metrics
from fsad.model_file import replace_file
from fsad.networks import Autoencoder

BATCH = 8
DEFAULT_METHODS = tuple(name for name, kind in METHODS.items() if kind.sees == "features")
ALL_NORMAL = "all normal pictures"
NONE, ALL = "-", 0  # the network and the shots of a method without a network, on all normal pictures
STORED = 3  # the version of what a run's file holds
EXAMPLES, EXAMPLE_SIZE = 6, 128  # maps to look at, and their side; of the first draw


@dataclass(frozen=True)
class Protocol:
    """What is compared; raises InputError where it cannot be."""

    methods: Sequence[str] = DEFAULT_METHODS  # names of ``fsad.baselines.METHODS``
    # Names that ``load_backbone`` knows; "{category}" in one becomes the category's.
    backbones: Sequence[str] = ("efficientnet_lite0",)
    maml: str | None = None  # the weights of MAML-AE, which then is compared too
    shots: Sequence[int] = (10,)  # numbers K of normal pictures
    draws: int = 5  # of K normal pictures each; those of a smaller K are the first of a larger
    size: int = 256  # pictures are resized to this square
    augment: bool = False  # flipped and turned, the normal pictures are normal too, as in the paper
    device: str = "cpu"
    loaded: Mapping[str, Backbone] = field(default_factory=dict)  # in place of what ``load_backbone`` finds

    def __post_init__(self) -> None:
        known = [name for name in METHODS if name != "maml-ae"]  # which has weights of its own
        unknown = sorted(set(self.methods) - set(known))
        if unknown or not self.methods:
            raise InputError(f"unknown methods {unknown}; expected some of {', '.join(known)}")
        if not self.shots or min(self.shots) < 1 or self.draws < 1 or self.size < 16:
            raise InputError(f"expected shots and draws of 1 or more and a size of 16 or more, got {self}")

    @property
    def runs(self) -> list[tuple[str, str, int, int]]:
        """Method, network, shots and draw of each; what sees all normal pictures runs once."""
        once = [method for method in self.methods if METHODS[method].sees == "all pictures"]
        others = [method for method in self.methods if method not in once]
        pairs = [*product(others, self.backbones), *([("maml-ae", self.maml)] if self.maml else [])]
        each = [(*pair, shots, draw) for pair, shots, draw in product(pairs, self.shots, range(self.draws))]
        return each + [(method, NONE, ALL, 0) for method in once]

    @property
    def networks(self) -> list[str]:
        return sorted({network for _, network, *_ in self.runs} - {NONE})


@dataclass(frozen=True)
class Run:
    """One method on one draw of one category."""

    category: str
    method: str
    network: str
    shots: int
    draw: int
    inputs: str  # a digest of pictures and their size, of network, layer and method, and of fsad's version

    @property
    def file(self) -> str:
        """Of the inputs, not of the network's name: one file may be named by several paths."""
        name = self.category.replace(":", "-")
        return f"{name}-{self.method}-{self.shots}-{self.draw}-{self.inputs[:12]}"


def run_evaluation(
    categories: Sequence[Category],
    protocol: Protocol,
    folder: Path,
    progress: Callable[[Run], object] = lambda run: None,
) -> list[dict[str, Any]]:
    """Every run's metrics, from ``folder`` where it has them already; they stay there.

    Raises InputError before any work: see ``check``; or another evaluation works in that folder. And what
    ``load_backbone`` raises.
    """
    check(categories, protocol)
    loaded = load_networks(categories, protocol)
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    found = list[dict[str, Any]]()
    with _alone(folder):
        for category in categories:
            networks = {name: loaded[name, category.name] for name in protocol.networks}
            found += _run_category(category, protocol, networks, folder / "runs", progress)
    return found


def _run_category(
    category: Category,
    protocol: Protocol,
    networks: Mapping[str, Backbone],
    folder: Path,
    progress: Callable[[Run], object],
) -> Iterator[dict[str, Any]]:
    """``run_evaluation`` of one category, in the folder of runs."""
    runs = _runs(category, protocol, networks)
    paths = {run: folder / f"{run.file}.json" for run in runs}
    with _emptied(folder / "scratch") as scratch:
        if missing := [run for run in runs if not _is_whole(run, paths[run])]:
            store = _Store(category, protocol, networks, scratch)
            for run in missing:
                result, maps = _judge(run, store)
                if run.draw == 0:
                    write_png(paths[run].with_suffix(".png"), maps)
                stored = {**asdict(run), "file": run.file, **result}
                replace_file(paths[run], json.dumps(stored).encode())
                progress(run)
    for run, path in paths.items():
        stored = json.loads(path.read_bytes()) | {"network": run.network}  # as it is named this time
        yield {"dataset": category.dataset, **stored}


def check(categories: Sequence[Category], protocol: Protocol) -> None:
    """Raises InputError: a category has fewer normal pictures than shots, test pictures of one kind only,
    masks that cannot be right, or data set and name of another; or the size is none that a method takes."""
    for method in dict.fromkeys(run[0] for run in protocol.runs):
        if protocol.size % (sides := METHODS[method].sides):
            raise InputError(f"{method} takes sizes divisible by {sides}; got {protocol.size}")
    counts = Counter((category.dataset, category.name) for category in categories)
    if twice := ", ".join(" ".join(names) for names, count in counts.items() if count > 1):
        raise InputError(f"several categories are named {twice}; rename a folder, or evaluate them apart")
    short = [f"{c.name} ({len(c.normal)})" for c in categories if len(c.normal) < max(protocol.shots)]
    if short:
        raise InputError(f"{max(protocol.shots)} shots are more than there are in {', '.join(short)}")
    alike = [c.name for c in categories if len({picture.anomalous for picture in c.test}) < 2]
    if alike:
        advice = "add some of the other kind, or leave the category out"
        raise InputError(f"test pictures are all normal or all anomalous in {', '.join(alike)}; {advice}")
    for category in categories:
        if category.has_masks:
            check_masks(category, protocol.size)


def load_networks(categories: Sequence[Category], protocol: Protocol) -> dict[tuple[str, str], Backbone]:
    """Of each name and category. Raises what ``load_backbone`` does, and InputError for the other kind."""
    found, loaded = dict[str, Backbone](), dict[tuple[str, str], Backbone]()
    for name, category in product(protocol.networks, categories):
        file = name.replace("{category}", category.name)
        if file not in found:
            network = protocol.loaded.get(file) or load_backbone(file)
            if network.input_size not in (None, protocol.size):
                trained = f"{file} was trained on pictures of {network.input_size} px"
                advice = f"give --input-size {network.input_size} to judge it"
                warnings.warn(f"{trained}, these have {protocol.size}; {advice}", stacklevel=2)
            found[file] = network.eval().requires_grad_(False)
        network = loaded[name, category.name] = found[file]
        is_maml = isinstance(network.module, Autoencoder)
        if is_maml and name in protocol.backbones:
            wrong = f"{file} holds MAML-AE, which gives pictures rather than features"
            raise InputError(f"{wrong}; give it as --maml-ae, and another as --backbone")
        if name == protocol.maml and not is_maml:
            needed = "weights of `fsad train --method maml-ae`"
            raise InputError(f"{file} does not hold MAML-AE; expected {needed}")
    return loaded


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """As the only evaluation in the folder; the lock of a killed one is gone with it."""
    with open(folder / "runs" / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            wrong = f"another evaluation is writing to {display_name(folder)}"
            raise InputError(f"{wrong}; wait for it, or give another folder") from error
        yield


@contextmanager
def _emptied(folder: Path) -> Iterator[Path]:
    """Without what an evaluation that was killed left there, and gone afterwards."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def _is_whole(run: Run, path: Path) -> bool:
    """Whether the file, and the maps beside that of a first draw, are there and can be read."""
    try:
        stored = json.loads(path.read_bytes())
        if not stored["metrics"].keys() or len(stored["scores"]) != len(stored["anomalous"]):
            return False
        if run.draw == 0:
            with Image.open(path.with_suffix(".png")) as maps:
                maps.load()
    except Exception:  # missing; and damaged files make both raise nearly anything
        return False
    return True


def _method_identity(method: Method) -> str:
    """Settings and source of a method: a changed one under the old name is another."""
    modules = dict.fromkeys(each.__module__ for each in type(method).__mro__ if each.__module__ != "builtins")
    try:
        sources = "".join(inspect.getsource(sys.modules[module]) for module in modules)
    except (OSError, TypeError):  # typed into an interpreter: never taken for what it was before
        sources = uuid4().hex
    return f"{type(method)} {getattr(method, '__dict__', method)} {sources}"


def _runs(category: Category, protocol: Protocol, networks: Mapping[str, Backbone]) -> list[Run]:
    digest = hashlib.sha256(f"{len(category.normal)} {category.videos}".encode())
    for source in category.normal:
        digest.update(fingerprint(source))
    for picture in category.test:
        digest.update(fingerprint(picture.source) + fingerprint(picture.mask) + bytes([picture.anomalous]))
    seen = f"{__version__} {STORED} {digest.hexdigest()} {protocol.size} {protocol.augment}"
    identities, inputs = {NONE: ""}, {}
    for name, network in networks.items():
        # The same weights in other layers, or with another sparse coding, are another network; under another
        # name they are not, unless they were handed in: then they may run any code.
        coding = json.dumps(network.layer().config(), sort_keys=True)
        identities[name] = f"{name * (name in protocol.loaded)}{network.weights_hash} {network} {coding}"
    for method, name in dict.fromkeys(run[:2] for run in protocol.runs):
        kind = METHODS[method]
        about = f"{seen} {kind.sees} {identities[name]} {_method_identity(kind.make(networks.get(name)))}"
        lasting = re.sub(" at 0x[0-9a-f]+", "", about)  # addresses in memory are others each time
        inputs[method, name] = hashlib.sha256(lasting.encode()).hexdigest()
    return [Run(category.name, *run, inputs[run[:2]]) for run in protocol.runs]


def drawn(category: Category, shots: int, draw: int) -> list[int]:
    """Which normal pictures a draw takes."""
    return np.random.default_rng(draw).permutation(len(category.normal))[:shots].tolist()


def examples(category: Category) -> list[int]:
    """The numbers of the test pictures whose maps are kept: anomalous ones, evenly spread."""
    anomalous = [i for i, picture in enumerate(category.test) if picture.anomalous]
    return anomalous[:: -(-len(anomalous) // EXAMPLES) or 1]


class _Store:
    """What the methods see of a category, on disk, by network: features, and as NONE the pictures. First of
    the normal pictures that some draw takes, then, from ``_tests`` on, of all test pictures."""

    def __init__(
        self, category: Category, protocol: Protocol, networks: Mapping[str, Backbone], scratch: Path
    ) -> None:
        self.category, self.protocol, self.networks, self._scratch = category, protocol, networks, scratch
        draws, most = range(protocol.draws), max(protocol.shots)
        self._normal = sorted({number for draw in draws for number in drawn(category, most, draw)})
        self._forms = 8 if protocol.augment else 1
        self._tests = len(self._normal) * self._forms  # where they begin
        self._values: dict[str, np.ndarray] = {}
        start, count = perf_counter(), len(self._normal) + len(category.test)
        pictures = self._array(NONE, (self._tests + len(category.test), 3, protocol.size, protocol.size))
        for i, number in enumerate(self._normal):
            one = self._read(category.normal[number])
            pictures[i * self._forms :][: self._forms] = augmented(one) if protocol.augment else one
        for i, each in enumerate(category.test, self._tests):
            pictures[i] = self._read(each.source)[0]
        self._seconds = {NONE: (perf_counter() - start) / count}  # a picture

    def inputs(self, run: Run) -> tuple[Tensor, np.ndarray, float]:
        """What a method adapts to, what it scores, and how many seconds of a picture these took."""
        sees = METHODS[run.method].sees
        seen = run.network if sees == "features" else NONE
        if seen not in self._values:
            self._compute_features(seen)
        values = self._values[seen]
        if sees == "all pictures":
            if ALL_NORMAL not in self._values:
                one = self._read(self.category.normal[0])
                every = self._array(ALL_NORMAL, (len(self.category.normal), *one.shape[1:]))
                for i, source in enumerate(self.category.normal):
                    every[i] = self._read(source)[0]
            support = torch.from_numpy(self._values[ALL_NORMAL])
        else:
            places = [self._normal.index(i) * self._forms for i in drawn(self.category, run.shots, run.draw)]
            support = torch.from_numpy(values[[i + form for i in places for form in range(self._forms)]])
        return support, values[self._tests :], self._seconds[seen]

    def _read(self, source: Any) -> Tensor:
        picture = resize(read_picture(source), self.protocol.size)
        return torch.from_numpy(picture).permute(2, 0, 1)[None]

    def _compute_features(self, name: str) -> None:
        """Of all pictures: (…, c, h, w)."""
        start, pictures, device = perf_counter(), self._values[NONE], self.protocol.device
        network = self.networks[name].to(device)
        for first in range(0, len(pictures), BATCH):
            with torch.no_grad():
                part = network(torch.from_numpy(pictures[first : first + BATCH]).to(device)).cpu().numpy()
            if first == 0:
                features = self._array(name, (len(pictures), *part.shape[1:]))
            features[first : first + BATCH] = part
        self._seconds[name] = self._seconds[NONE] + (perf_counter() - start) / len(pictures)

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        path = self._scratch / f"{len(self._values)}.npy"
        self._values[name] = np.lib.format.open_memmap(path, "w+", np.float32, shape)
        return self._values[name]


def _judge(run: Run, store: _Store) -> tuple[dict[str, Any], np.ndarray]:
    """What a run's file holds, and the pixels of the maps of ``examples``, one below the other.

    A score is that of the most anomalous pixels, an error the mean of all positions, as in eq. 8.
    """
    category, size, device = store.category, store.protocol.size, store.protocol.device
    network = None if run.network == NONE else store.networks[run.network].to(device)
    method = METHODS[run.method].make(network)
    support, test, cost = store.inputs(run)
    start = perf_counter()
    method.fit(support.to(device))
    seconds = {"adapt": perf_counter() - start + len(support) * cost, "picture": cost}
    shown = examples(category)
    scores, errors, kept, pixels = list[float](), list[float](), [], PixelMetrics()
    for first in range(0, len(test), BATCH):
        start = perf_counter()
        with torch.no_grad():
            energies = method.score_map(torch.from_numpy(test[first : first + BATCH]).to(device))
            maps, values = score_maps(energies.cpu(), size)
        seconds["picture"] += (perf_counter() - start) / len(test)
        scores += values.tolist()
        errors += energies.flatten(1).mean(1).tolist()
        kept += [maps[i - first].numpy() for i in shown if first <= i < first + len(maps)]
        if category.has_masks:
            for picture, anomaly_map in zip(category.test[first:], maps, strict=False):
                pixels.add(anomaly_map.numpy(), read_mask(picture.mask, size))
    anomalous = np.array([picture.anomalous for picture in category.test])
    found: dict[str, Any] = {"metrics": image_metrics(anomalous, np.array(scores)), "seconds": seconds}
    if category.videos:
        ends = np.cumsum(category.videos)[:-1]
        videos = list(zip(np.split(anomalous, ends), np.split(np.array(scores), ends), strict=True))
        found["metrics"]["frame AUC"] = frame_auc(videos, normalise=False)
        found["metrics"]["frame AUC, normalised by video"] = frame_auc(videos, normalise=True)
    if category.has_masks:
        found["metrics"] |= pixels.compute()
        found["PRO curve"] = pixels.pro_curve().tolist()
    found["difference of errors"] = np.mean(errors, where=anomalous) - np.mean(errors, where=~anomalous)
    return found | {"scores": scores, "anomalous": anomalous.tolist()}, _pixels(kept)


def _pixels(maps: Sequence[np.ndarray]) -> np.ndarray:
    """Maps (h, w) as grey levels, from the smallest value of all to the largest."""
    column = np.concatenate([resize(each, EXAMPLE_SIZE) for each in maps])
    low, high = column.min(), column.max()
    return (255 * (column - low) / max(high - low, np.finfo(np.float32).tiny)).round().astype(np.uint8)
