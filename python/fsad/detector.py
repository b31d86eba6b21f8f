"""Few-shot anomaly detection on pictures, in the manners of scikit-learn's outlier detectors."""

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import KW_ONLY, asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin
from torch import Tensor, nn

from fsad import calibration, frames
from fsad.backbones import Backbone, load_backbone, saved_backbone, usable_device
from fsad.calibration import Support, Threshold
from fsad.energy import MAP_KINDS, AdaptiveEnergyModel, augmented
from fsad.errors import DivergedError, InputError, ModelFileError, NotAdaptedError
from fsad.frames import Picture, PictureResult
from fsad.images import load_image
from fsad.model_file import read_model, write_model
from fsad.networks import Autoencoder
from fsad.sparse_coding import SparseCodingLayer

INPUT_SIZE = 256  # side of pictures, where neither the caller nor a training says it


@dataclass(eq=False, repr=False)
class FewShotDetector(OutlierMixin, BaseEstimator):
    """Tells anomalous pictures after a look at a few normal ones; nothing is trained.

    Pictures are paths, bytes of picture files, PIL images, arrays (H, W, 3) or tensors (3, H, W):
    one of them, a list or iterator of them, an array (B, H, W, 3) or tensor (B, 3, H, W), or a
    folder. They are decoded a batch at a time, so any number can be scored.

    Args:
        backbone: a name that ``load_backbone`` knows, or a module (a copy of it is used).
        input_size: pictures are resized to this square; None for that of the backbone's training, or 256.
        sparse_coding: a layer whose settings are taken; None for those that the backbone was trained
            with, or ``DEFAULT_SETTINGS``.
        map_kind: ``"energy"`` or ``"gradient"``, what maps show; scores come from the energy.
        false_alarm: the share of normal pictures that may be called anomalous.
        augment: count flipped and turned forms of the normal pictures as normal.
        roi: mask picture, not 0 where pictures are judged; resized to each of them.
        tile: cut pictures, unresized, into overlapping tiles of this side.
        batch_size: network inputs computed together.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU if there is one.
        seed: draws the groups of pictures held out together, where there are more than 20.
        max_pixels: files of larger pictures are refused before decoding; None for Pillow's limit.
    """

    backbone: str | nn.Module = "efficientnet_lite0"
    _: KW_ONLY
    input_size: int | None = None
    sparse_coding: SparseCodingLayer | None = None
    map_kind: str = "energy"
    false_alarm: float = 0.1
    augment: bool = False
    roi: Any = None
    tile: int | None = None
    batch_size: int = 8
    device: str = "cpu"
    seed: int = 0
    max_pixels: int | None = None

    threshold_: Threshold = field(init=False)  # its value, and how far to trust it
    suspects_: list[tuple[int, str]] = field(init=False)  # index, reason: given to fit, unlike the others
    input_size_: int = field(init=False)
    n_support_: int = field(init=False)  # how many normal pictures the dictionary was made of
    model_: AdaptiveEnergyModel = field(init=False)
    roi_: np.ndarray | None = field(init=False)  # bool (H, W)

    def fit(self, normal: Any, y: None = None) -> "FewShotDetector":
        """Make the dictionary from normal pictures, and a threshold from their held-out scores."""
        self.__dict__.pop("threshold_", None)  # not fitted until all of this has succeeded
        self._build(load_backbone(copy.deepcopy(self.backbone)))
        support = self._encode(normal)
        layer = self.model_.sparse_coding
        scores = calibration.held_out_scores(layer.config(), support, self.seed)
        layer.adapt(*calibration.joined(support))
        self._finish(len(support), calibration.normal_threshold(scores, self.false_alarm))
        self.suspects_ = calibration.suspects(scores)
        return self

    def update(self, normal: Any, *, representative: bool = False) -> "FewShotDetector":
        """Add normal pictures, such as a good part wrongly rejected, to the dictionary.

        A hand-picked picture says nothing about how often normal ones score high, so the threshold
        stays. If the pictures are a fair sample (``representative``), their scores under the
        dictionary before the update join those that the threshold is computed from.
        """
        self._check_fitted()
        support, threshold = self._encode(normal), self.threshold_
        layer = self.model_.sparse_coding
        if representative:
            new = [part.score(layer) for part in support]
            threshold = calibration.with_scores(threshold, new, self.false_alarm)
        layer.extend(*calibration.joined(support))
        self._finish(self.n_support_ + len(support), threshold)
        return self

    def set_threshold(
        self, value: float | None = None, *, false_alarm: float | None = None, bad: Any = None
    ) -> "FewShotDetector":
        """Move the threshold without adapting again, by exactly one of these.

        Args:
            value: the score above which pictures are anomalous.
            false_alarm: a level; the held-out scores of the normal pictures give the value.
            bad: known-bad pictures; the value that best parts them from the normal ones.
        """
        self._check_fitted()
        if sum(given is not None for given in (value, false_alarm, bad)) != 1:
            raise InputError("set_threshold takes exactly one of value, false_alarm and bad")
        scores = self.threshold_.scores
        if value is not None:
            if not math.isfinite(value):
                raise InputError(f"the threshold must be a finite number, got {value}")
            self.threshold_ = Threshold(float(value), "manual", None, scores)
        elif false_alarm is not None:
            self.threshold_ = calibration.normal_threshold(scores, false_alarm)
        else:
            self.threshold_ = calibration.known_bad_threshold(scores, self.anomaly_scores(bad))
        return self

    def anomaly_scores(self, images: Any) -> np.ndarray:
        """(B,) float64, higher is worse: the mean of the top 1 % of a smoothed energy map."""
        return np.array([result.score for result in self._results(images, "raise", None)], np.float64)

    def score_samples(self, images: Any) -> np.ndarray:
        """(B,) float64 in scikit-learn's sign, lower is worse: ``-anomaly_scores``."""
        return -self.anomaly_scores(images)

    def predict(self, images: Any) -> np.ndarray:
        """(B,) int: 1 for normal, -1 for anomalous pictures, whose score is above the threshold."""
        return np.where(self.anomaly_scores(images) > self.threshold_.value, -1, 1)

    def anomaly_maps(self, images: Any) -> np.ndarray:
        """(B, H, W) float32, higher is worse, 0 outside the region of interest.

        H and W are ``input_size_``, or with ``tile`` those of the pictures, which must then be
        alike; ``iter_results`` also gives maps of different sizes.
        """
        maps = [np.asarray(result.anomaly_map) for result in self.iter_results(images)]
        if len({each.shape for each in maps}) > 1:
            raise InputError("these pictures' maps differ in size: take them from iter_results")
        return np.stack(maps) if maps else np.empty((0, *[self.input_size_] * 2), np.float32)

    def iter_results(self, images: Any, on_error: str = "raise") -> Iterator[PictureResult]:
        """Score, decision and map of picture after picture, in order, keeping none.

        An unreadable picture raises InputError; with ``on_error="skip"`` it yields a result with
        ``error`` set, and the rest goes on.
        """
        return self._results(images, on_error, self.map_kind)

    def save(self, path: str | Path) -> None:
        """Write the adapted detector, without the backbone's weights, whole or not at all.

        Raises OSError where that cannot be written.
        """
        self._check_fitted()
        layer, backbone = self.model_.sparse_coding, self.model_.backbone
        tensors = layer.compact()
        if self.roi_ is not None:
            tensors["roi"] = torch.from_numpy(self.roi_)
        elsewhere = ("backbone", "sparse_coding", "roi", "device")
        parameters = {name: v for name, v in self.get_params(deep=False).items() if name not in elsewhere}
        description = {
            "kind": "FewShotDetector",
            "parameters": parameters | {"input_size": self.input_size_},
            "sparse_coding": layer.config(),
            "backbone": {"name": backbone.name, "weights_hash": backbone.weights_hash},
            "threshold": asdict(self.threshold_),
            "suspects": self.suspects_,
            "n_support": self.n_support_,
        }
        write_model(path, tensors, description)

    @classmethod
    def load(
        cls, path: str | Path, backbone: str | nn.Module | None = None, device: str = "cpu"
    ) -> "FewShotDetector":
        """Read what ``save`` wrote; scores and decisions are those of the saved detector.

        A module of your own is not in the file: pass it again as ``backbone``. Raises
        ModelFileError for a damaged or foreign file, and for a backbone with other weights.
        """
        tensors, saved = read_model(path, "FewShotDetector")
        usable_device(device)  # raises in its own words
        try:
            detector = cls(
                saved["backbone"]["name"] if backbone is None else backbone,
                sparse_coding=SparseCodingLayer(**saved["sparse_coding"]),
                roi=tensors["roi"].numpy() if "roi" in tensors else None,
                device=device,
                **saved["parameters"],
            )
            detector._build(saved_backbone(path, saved["backbone"], backbone))
            layer = detector.model_.sparse_coding
            if not all(tensor.isfinite().all() for tensor in tensors.values()):
                raise InputError("its dictionary holds NaN or infinity")
            layer.load_compact({name: tensor.to(detector._device) for name, tensor in tensors.items()})
            threshold = Threshold(**saved["threshold"] | {"scores": tuple(saved["threshold"]["scores"])})
            str(threshold)  # knows only the kinds there are
            if not math.isfinite(threshold.value):
                raise InputError(f"its threshold is {threshold.value}")
            detector.threshold_, detector.n_support_ = threshold, saved["n_support"]
            detector.suspects_ = [tuple(suspect) for suspect in saved["suspects"]]
            return detector
        except ModelFileError:
            raise
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            wrong = f"{path} describes a detector that this fsad cannot rebuild ({error})"
            advice = "was it made by another version? Adapt again, or install that version"
            raise ModelFileError(f"{wrong}; {advice}") from error

    def _build(self, backbone: Backbone) -> None:
        """Check the parameters; make the model, not adapted yet, and read the mask."""
        sides = {"input_size": self.input_size, "tile": self.tile}
        checks = {
            **{name: side is None or (isinstance(side, int) and side > 0) for name, side in sides.items()},
            "batch_size": isinstance(self.batch_size, int) and self.batch_size > 0,
            "map_kind": self.map_kind in MAP_KINDS,
            "false_alarm": 0 < self.false_alarm < 1,
        }
        for name, good in checks.items():
            if not good:
                raise InputError(f"FewShotDetector cannot use {name}={getattr(self, name)!r}")
        if isinstance(backbone.module, Autoencoder):
            wrong = f"{backbone.name} holds MAML-AE, which gives pictures rather than features"
            raise InputError(f"{wrong}; take weights that `fsad train` made without --method maml-ae")
        self.input_size_ = self.input_size or backbone.input_size or INPUT_SIZE
        layer = self.sparse_coding or backbone.layer()
        model = AdaptiveEnergyModel(backbone, SparseCodingLayer(**layer.config()))
        self._device = usable_device(self.device)
        self.model_ = model.eval().requires_grad_(False).to(self._device)
        self.roi_ = None if self.roi is None else load_image(self.roi).max(axis=2) > 0

    def _finish(self, count: int, threshold: Threshold) -> None:
        # Rounded as in a file, so that a saved and loaded detector decides alike.
        layer = self.model_.sparse_coding
        layer.load_compact(layer.compact())
        self.n_support_, self.threshold_ = count, threshold

    def _check_fitted(self) -> None:
        if not hasattr(self, "threshold_"):
            raise NotAdaptedError("this FewShotDetector knows no normal pictures yet: call fit(normal)")

    def _how(self) -> tuple[Any, ...]:
        return self.input_size_, self.tile, self.roi_, self.max_pixels

    def _encode(self, normal: Any) -> list[Support]:
        support = []
        for picture in frames.read_each(normal, "raise", *self._how()):
            assert isinstance(picture, Picture)  # none is skipped
            tiles = augmented(picture.tiles) if self.augment else picture.tiles
            features = self._features([tiles])
            mask = picture.frame.positions((features.shape[2], features.shape[3]))
            if mask is not None and self.augment:
                mask = augmented(mask[:, None])[:, 0]
            support.append(Support(features, mask, picture.frame))
        if not support:
            raise InputError("got no normal pictures; give at least one, better ten")
        return support

    def _features(self, tiles: Sequence[Tensor]) -> Tensor:
        """All tiles, of shapes (T, 3, h, w), through the network, a batch at a time."""
        parts = torch.cat(list(tiles)).split(self.batch_size)
        with torch.no_grad():
            features = torch.cat([self.model_.features(part.to(self._device)) for part in parts])
        if not features.isfinite().all():  # on a GPU the layer could only stop the whole process
            raise DivergedError("the backbone gave NaN or infinity for a picture; check its weights")
        return features

    def _results(self, images: Any, on_error: str, map_kind: str | None) -> Iterator[PictureResult]:
        """As ``iter_results``; without maps if ``map_kind`` is None."""
        self._check_fitted()
        pictures = frames.read_each(images, on_error, *self._how())
        # A tiled picture is large and fills batches by itself.
        while batch := list(islice(pictures, 1 if self.tile else self.batch_size)):
            tiles = [picture.tiles for picture in batch if isinstance(picture, Picture)]
            features = iter(self._features(tiles).split([len(t) for t in tiles]) if tiles else ())
            for picture in batch:
                if isinstance(picture, Picture):
                    picture = self._result(picture, next(features), map_kind)
                yield picture

    def _result(self, picture: Picture, features: Tensor, map_kind: str | None) -> PictureResult:
        mask = picture.frame.positions((features.shape[2], features.shape[3]))
        shown, score = picture.frame.pool(self.model_.sparse_coding(features, mask=mask).energy)
        if map_kind == "gradient":
            tiles = picture.tiles.to(self._device).split(self.batch_size)
            inside = [None] * len(tiles) if mask is None else mask.split(self.batch_size)
            pairs = zip(tiles, inside, strict=True)
            gradients = [self.model_.anomaly_map(part, "gradient", known) for part, known in pairs]
            shown = picture.frame.assemble(torch.cat(gradients))
        anomaly_map = None if map_kind is None else shown.cpu().numpy()
        return PictureResult(picture.source, score, score > self.threshold_.value, anomaly_map, picture.size)
