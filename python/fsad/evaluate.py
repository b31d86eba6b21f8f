"""Judging detectors as the field does: K normal pictures of a category, its whole test set, several draws.

All methods see the same pictures and features, computed once a category, and their maps are pooled to scores
alike. The result of one method on one draw is a file of its own: an interrupted evaluation goes on with what
is missing.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fsad.backbones import Backbone, load_backbone
from fsad.baselines import METHODS, Method
from fsad.datasets import Category, read_mask
from fsad.errors import InputError
from fsad.frames import score_maps
from fsad.images import load_image, resize
from fsad.metrics import PixelMetrics, image_metrics
from fsad.model_file import replace_file

BATCH = 8


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Args:
        methods: names of ``fsad.baselines.METHODS``.
        backbones: names that ``load_backbone`` knows; methods on features run on each.
        maml: the weights of MAML-AE, which then is compared too.
        shots: numbers K of normal pictures.
        draws: of K normal pictures each; those of a smaller K are the first of a larger.
        size: pictures are resized to this square.
    """

    methods: Sequence[str] = ("fsad", "nearest-neighbour", "mahalanobis", "ridge")
    backbones: Sequence[str] = ("efficientnet_lite0",)
    maml: str | None = None
    shots: Sequence[int] = (10,)
    draws: int = 5
    size: int = 256
    device: str = "cpu"

    def __post_init__(self) -> None:
        known = [name for name, kind in METHODS.items() if kind.on_features]
        unknown = sorted(set(self.methods) - set(known))
        if unknown or not self.methods:
            raise InputError(f"unknown methods {unknown}; expected some of {', '.join(known)}")
        if not self.shots or min(self.shots) < 1 or self.draws < 1 or self.size < 16:
            raise InputError(f"expected shots and draws of 1 or more and a size of 16 or more, got {self}")

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Method and network of each row of a table."""
        pairs = [(method, network) for network in self.backbones for method in self.methods]
        return pairs if self.maml is None else [*pairs, ("maml-ae", self.maml)]

    def count(self, categories: Sequence[Category]) -> int:
        """Of runs."""
        return len(categories) * len(self.pairs) * len(self.shots) * self.draws


@dataclass(frozen=True)
class Run:
    """One method on one draw of one category."""

    category: str
    method: str
    network: str
    shots: int
    draw: int
    inputs: str  # a digest of the pictures, their size and the network's weights: others are another run

    @property
    def file(self) -> str:
        key = json.dumps(asdict(self), sort_keys=True)
        return f"{self.category}-{self.method}-{hashlib.sha256(key.encode()).hexdigest()[:12]}.json"


def run_evaluation(
    categories: Sequence[Category],
    protocol: Protocol,
    folder: Path,
    progress: Callable[[Run], object] = lambda run: None,
) -> list[dict[str, Any]]:
    """Every run's metrics, from ``folder`` where it has them already; they stay there.

    Raises:
        InputError: a category has fewer normal pictures than shots, or the name of another.
    """
    twice = [name for name, count in Counter(c.name for c in categories).items() if count > 1]
    if twice:
        raise InputError(
            f"several categories are named {', '.join(twice)}; rename a folder, or evaluate them apart"
        )
    short = [f"{c.name} ({len(c.normal)})" for c in categories if len(c.normal) < max(protocol.shots)]
    if short:
        raise InputError(f"{max(protocol.shots)} shots are more than there are in {', '.join(short)}")
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    weights = {network: load_backbone(network).weights_hash for _, network in protocol.pairs}
    found = []
    for category in categories:
        runs = list(_runs(category, protocol, weights))
        missing = [run for run in runs if not (folder / "runs" / run.file).exists()]
        if missing:
            with tempfile.TemporaryDirectory() as scratch:
                store = _Store(category, protocol, Path(scratch))
                for run in missing:
                    result = {**asdict(run), **_judge(run, category, store)}
                    replace_file(folder / "runs" / run.file, json.dumps(result).encode())
                    progress(run)
        found += [json.loads((folder / "runs" / run.file).read_bytes()) for run in runs]
    return found


def _runs(category: Category, protocol: Protocol, weights: dict[str, str]) -> Iterator[Run]:
    pictures = _digest(category)
    for method, network in protocol.pairs:
        inputs = hashlib.sha256(f"{pictures} {protocol.size} {weights[network]}".encode()).hexdigest()
        for shots in protocol.shots:
            for draw in range(protocol.draws):
                yield Run(category.name, method, network, shots, draw, inputs)


def _digest(category: Category) -> str:
    """Of which pictures there are and what is known of them: of files, path, size and time of change."""
    digest = hashlib.sha256()
    test = [value for picture in category.test for value in picture]
    for value in [*category.normal, len(category.normal), *test]:
        if isinstance(value, np.ndarray):
            digest.update(f"{value.dtype} {value.shape}".encode() + value.tobytes())
        elif isinstance(value, Path):
            stat = value.stat()
            digest.update(f"{value.resolve()} {stat.st_size} {stat.st_mtime_ns};".encode())
        else:
            digest.update(f"{value!r};".encode())
    return digest.hexdigest()


def drawn(category: Category, shots: int, draw: int) -> list[int]:
    """Which normal pictures a draw takes."""
    return np.random.default_rng(draw).permutation(len(category.normal))[:shots].tolist()


class _Store:
    """What the methods see of a category, on disk: pictures, and features of each network."""

    def __init__(self, category: Category, protocol: Protocol, scratch: Path) -> None:
        self.protocol, self._scratch = protocol, scratch
        sources = [*category.normal, *(picture.source for picture in category.test)]
        self.pictures = self._array("pictures", (len(sources), 3, protocol.size, protocol.size))
        for i, source in enumerate(sources):
            self.pictures[i] = resize(load_image(source), protocol.size).transpose(2, 0, 1)
        self._features: dict[str, np.ndarray] = {}
        self._networks: dict[str, Backbone] = {}

    def network(self, name: str) -> Backbone:
        if name not in self._networks:
            network = load_backbone(name).eval().requires_grad_(False)
            self._networks[name] = network.to(self.protocol.device)
        return self._networks[name]

    def features(self, name: str) -> np.ndarray:
        """Of all normal and then all test pictures: (…, c, h, w)."""
        if name not in self._features:
            parts = (self.pictures[i : i + BATCH] for i in range(0, len(self.pictures), BATCH))
            for i, part in enumerate(parts):
                with torch.no_grad():
                    values = self.network(name)(torch.from_numpy(part).to(self.protocol.device)).cpu().numpy()
                if i == 0:
                    shape = (len(self.pictures), *values.shape[1:])
                    self._features[name] = self._array(f"features{len(self._features)}", shape)
                self._features[name][i * BATCH :][: len(values)] = values
        return self._features[name]

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        return np.lib.format.open_memmap(self._scratch / f"{name}.npy", "w+", np.float32, shape)


def _judge(run: Run, category: Category, store: _Store) -> dict[str, Any]:
    kind, protocol = METHODS[run.method], store.protocol
    method = kind.make(store.network(run.network))
    inputs = store.features(run.network) if kind.on_features else store.pictures
    method.fit(torch.from_numpy(inputs[drawn(category, run.shots, run.draw)]).to(protocol.device))
    test = inputs[len(category.normal) :]
    scores: list[float] = []
    pixels = PixelMetrics()
    for start in range(0, len(test), BATCH):
        maps, values = _pooled(method, test[start : start + BATCH], protocol)
        scores += values.tolist()
        if category.has_masks:
            for picture, anomaly_map in zip(category.test[start:], maps, strict=False):
                pixels.add(anomaly_map.numpy(), read_mask(picture.mask, protocol.size))
    anomalous = np.array([picture.anomalous for picture in category.test])
    metrics = image_metrics(anomalous, np.array(scores)) | (pixels.compute() if category.has_masks else {})
    return {"metrics": metrics, "scores": scores, "anomalous": anomalous.tolist()}


@torch.no_grad()
def _pooled(method: Method, inputs: np.ndarray, protocol: Protocol) -> tuple[Tensor, Tensor]:
    values = method.score_map(torch.from_numpy(inputs).to(protocol.device))
    return score_maps(values.cpu(), protocol.size)
