"""fsad: few-shot, fast-adaptive anomaly detection by sparse coding over the features of normal images."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fsad import functional as functional
    from fsad.detector import FewShotDetector as FewShotDetector
    from fsad.energy import AdaptiveEnergyModel as AdaptiveEnergyModel
    from fsad.episodic import EpisodeLoss as EpisodeLoss
    from fsad.episodic import LangevinSampler as LangevinSampler
    from fsad.errors import FsadError as FsadError
    from fsad.sparse_coding import SparseCode as SparseCode
    from fsad.sparse_coding import SparseCodingLayer as SparseCodingLayer
    from fsad.trainer import EpisodicTrainer as EpisodicTrainer

__version__ = "0.1.0"

# Imported on first use: `import fsad` stays quick and pulls in no image or command-line package.
_HOMES = {
    "AdaptiveEnergyModel": "fsad.energy",
    "EpisodeLoss": "fsad.episodic",
    "EpisodicTrainer": "fsad.trainer",
    "FewShotDetector": "fsad.detector",
    "FsadError": "fsad.errors",
    "LangevinSampler": "fsad.episodic",
    "SparseCode": "fsad.sparse_coding",
    "SparseCodingLayer": "fsad.sparse_coding",
}

__all__ = ["__version__", "functional", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in ("functional", *_HOMES):
        import_module("fsad_ext")  # the first to say, in one sentence, that torch or the library is missing
    if name == "functional":
        return import_module("fsad.functional")
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'fsad' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
