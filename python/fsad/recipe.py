"""From the options of ``fsad train`` to a trained network: what is learned, from what, and how."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_origin

import torch
from sklearn.metrics import roc_auc_score

from fsad import networks
from fsad.energy import AdaptiveEnergyModel
from fsad.episodes import Category, Episodes, ProceduralCategory, categories_of, place_of
from fsad.episodic import TERMS, EpisodeLoss, LangevinSampler, MamlLoss
from fsad.errors import FsadError, InputError
from fsad.procedural import HELD_OUT
from fsad.sparse_coding import SparseCodingLayer
from fsad.trainer import EpisodicTrainer, Schedule

NETWORK = "network.safetensors"
METHODS = ("episodic", "maml-ae")
KINDS: dict[Any, str] = {
    int: "a whole number",
    float: "a finite number",
    bool: "true or false",
    str: "a string",
    Sequence[str]: "a list of strings",
    dict[str, Any]: "a mapping",
}


@dataclass(frozen=True)
class Recipe:
    """All that decides which weights come out; JSON-able by ``asdict``.

    Raises InputError for values of another type; ``loss`` and ``episodes`` for those that cannot be used.
    """

    data: Sequence[str] = ()  # folders of categories, or data sets, see ``categories_of``
    procedural: int = 0  # so many tasks of ``fsad.procedural`` beside them
    leave_out: Sequence[str] = ()  # names of categories that are not trained on
    method: str = "episodic"  # Algorithm 1, or "maml-ae", the paper's baseline
    # Of ``fsad.networks.build``, and settings of the ``SparseCodingLayer`` that differ from its defaults.
    architecture: dict[str, Any] = field(default_factory=lambda: {"name": "small_resnet", "stride": 4})
    sparse_coding: dict[str, Any] = field(default_factory=lambda: {"ridge": 1.0, "max_atoms": 512})
    steps: int = 5  # of the ``LangevinSampler``, as is noise
    step_size: float = 0.01  # β, in units of the number of values in a picture, since the energy is a mean
    noise: float = 0.005
    reconstruction: float = 100.0  # weights of the losses, see ``EpisodeLoss``
    contrast: float = 5.0
    restraint: float = 30.0
    separation: float = 1.0
    shots: int = 10  # from here on, see ``Episodes``
    queries: int = 4
    size: int = 64
    corruptions: Sequence[str] = ("noise",)
    defects: Sequence[str] = ("defect", "cut-paste")
    augment: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for each in fields(self):
            if not _is(value := getattr(self, each.name), each.type):
                raise InputError(f"a training's {each.name} must be {KINDS[each.type]}, got {value!r}")

    @classmethod
    def of(cls, settings: dict[str, Any], changes: Sequence[str]) -> "Recipe":
        """A recipe of settings, changed by ``name=value`` with values in JSON; a mapping is merged."""
        settings = asdict(cls()) | settings
        for change in changes:
            name, _, text = change.partition("=")
            if name not in settings:
                known = ", ".join(settings)
                raise InputError(f"{name!r} is no setting of a training; expected one of {known}")
            try:
                value = json.loads(text)
            except ValueError:
                raise InputError(f"{change!r}: the value is not JSON (strings need double quotes)") from None
            before = settings[name]
            merged = isinstance(before, dict) and isinstance(value, dict)
            settings[name] = before | value if merged else value
        return cls(**settings)

    def loss(self) -> EpisodeLoss | MamlLoss:
        """The module to train, of untrained weights."""
        if self.method == "maml-ae":
            return MamlLoss(_made(networks.Autoencoder, "seed", {"seed": self.seed}))
        if self.method != "episodic":
            raise InputError(f"method must be one of {METHODS}, got {self.method!r}")
        layer = _made(SparseCodingLayer, "sparse_coding", self.sparse_coding)
        network = _made(networks.build, "architecture", self.architecture)
        sampler = LangevinSampler(self.steps, self.step_size * 3 * self.size**2, self.noise, (0.0, 1.0))
        weights = {name: getattr(self, name) for name in TERMS}
        return EpisodeLoss(AdaptiveEnergyModel(network, layer), sampler, **weights)

    def episodes(self) -> Episodes:
        """Of all categories but those left out, and procedural tasks."""
        kept, left_out = self._split()
        if unknown := set(self.leave_out) - {category.name for category in left_out}:
            raise InputError(f"no category is named {', '.join(sorted(unknown))}, so it cannot be left out")
        return self._episodes([*kept, *map(ProceduralCategory, range(self.procedural))], self.seed)

    def held_out_episodes(self) -> Episodes:
        """Of the categories left out that are large enough, or of procedural tasks if none is.

        Corrupted by patches of noise whatever is trained on, so that recipes can be compared.
        """
        fresh = [ProceduralCategory(HELD_OUT + i) for i in range(100)]
        large = [category for category in self._split()[1] if len(category) >= self.shots + self.queries]
        drawn = self._episodes(large or fresh, self.seed + 1)
        return replace(drawn, corruptions=("noise",))

    def _split(self) -> tuple[list[Category], list[Category]]:
        """The categories to train on, and those left out."""
        places = [
            (view, folder.resolve() if folder else name) for name, view, folder in map(place_of, self.data)
        ]
        if twice := [str(place[1]) for i, place in enumerate(places) if place in places[:i]]:
            raise InputError(f"{', '.join(twice)} is given twice; its products would count as others' too")
        every: list[Category] = [category for root in self.data for category in categories_of(root)]
        kept = [category for category in every if category.name not in self.leave_out]
        return kept, [category for category in every if category.name in self.leave_out]

    def _episodes(self, categories: Sequence[Category], seed: int) -> Episodes:
        names = ("shots", "queries", "size", "corruptions", "defects", "augment")
        return Episodes(categories, seed=seed, **{name: getattr(self, name) for name in names})


def _is(value: Any, kind: Any) -> bool:
    if kind == Sequence[str]:
        return isinstance(value, list | tuple) and all(type(each) is str for each in value)
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is (get_origin(kind) or kind)  # exactly: True would pass for an int


def _made(maker: Callable[..., Any], name: str, settings: dict[str, Any]) -> Any:
    """Of settings whose types only the maker knows."""
    try:
        return maker(**settings)
    except FsadError:
        raise
    except (TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"a training cannot use {name}={json.dumps(settings)}: {reason}") from error


def run(
    recipe: Recipe,
    schedule: Schedule,
    folder: Path,
    *,
    resume: bool = False,
    device: str = "cpu",
    workers: int = 0,
    progress: Callable[[dict[str, float]], object] = lambda row: None,
) -> float | None:
    """Train, write ``folder``/network.safetensors, and return the AUROC of ``held_out_auroc``.

    None in the other processes under ``torchrun``: the first one does it.
    """
    loss, held_out = recipe.loss(), recipe.held_out_episodes()  # an error now rather than after the training
    settings = {name: value for name, value in asdict(recipe).items() if name not in ("data", "leave_out")}
    where: dict[str, Any] = {"settings": settings, "device": device, "workers": workers}
    trainer = EpisodicTrainer(loss, recipe.episodes(), folder, schedule, **where)
    if resume:
        trainer.resume()
    trainer.train(progress)
    if trainer.rank != 0:
        return None
    if isinstance(loss, MamlLoss):
        module, architecture, layer = loss.autoencoder, {"name": "autoencoder"}, None
    else:
        module, architecture = loss.model.backbone, recipe.architecture
        layer = loss.model.sparse_coding.config()
    about = {"sparse_coding": layer, "training": trainer.settings}
    networks.save_network(folder / NETWORK, module, architecture, **about)
    return held_out_auroc(loss, held_out)


def held_out_auroc(loss: EpisodeLoss | MamlLoss, episodes: Episodes, count: int = 50) -> float:
    """AUROC of the energies of normal queries against corrupted ones, within an episode, on average."""
    device, total = next(loss.parameters()).device, 0.0
    for number in range(count):
        support, query, corrupted, *_ = episodes[number]
        scores = loss.scores(support.to(device), torch.cat([query, corrupted]).to(device))
        total += roc_auc_score([0] * len(query) + [1] * len(corrupted), scores.cpu())
    return total / count
