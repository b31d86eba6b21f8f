"""What it brings that tiles of zeros are skipped: soft shrinkage on the default backbone's features."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fresh
import torch
from measure import Times, interleave
from pictures import SHOTS, default_backbone, default_layer, synthetic
from problem import products

TITLE = "Empty tiles on features of the default backbone"
KINDS = ("disc", "weave")
THRESHOLDS = ((0.05, 0.01), (0.5, 0.1), (0.8, 0.3), (0.9, 0.6), (0.99, 0.95))  # first and last, relative
BLOCK = 64


def measure(quick: bool) -> list[dict[str, Any]]:
    return [fresh.call("tiles:compare", kind, 256 if quick else None, 2 if quick else 7) for kind in KINDS]


@torch.no_grad()
def compare(kind: str, max_atoms: int | None, rounds: int) -> dict[str, Any]:
    """One picture over the dictionary of ten, under each pair of thresholds in turn."""
    backbone = default_backbone()
    support = backbone(synthetic(SHOTS, kind=kind))
    features = backbone(synthetic(1, defective=True, kind=kind, seed=1))
    contenders, densities = {}, []
    for first, last in THRESHOLDS:
        layer = default_layer(
            shrinkage="soft", lambda_max=first, lambda_min=last, max_atoms=max_atoms, backend="native"
        ).adapt(support)
        codes = layer(features, codes=True).codes
        assert codes is not None
        codes = codes[0].flatten(1)
        densities.append({"nonzero": (codes != 0).double().mean().item(), "empty": _empty_blocks(codes)})
        contenders[f"{first} to {last}"] = lambda layer=layer: layer(features)
    atoms, positions = codes.shape
    rows = torch.randn(positions, features.shape[1]), torch.randn(atoms, features.shape[1])
    contenders["floor"] = products(*rows, 2 * len(layer.lambdas))
    return {
        "kind": kind,
        "shape": [features.shape[1], atoms, positions],
        "densities": densities,
        "seconds": interleave(contenders, rounds).seconds,
    }


def markdown(result: list[dict[str, Any]], plots: Path) -> str:
    lines = [
        "Features of fsad's synthetic pictures, all positions of ten of them as atoms. Thresholds are the",
        "first and the last, relative to each query's maximum. Codes are those after the last step; an empty",
        f"block is one of {BLOCK} atoms × {BLOCK} queries without a code, whatever the tiles of the kernels",
        "are. Times are of the whole layer, with whitening and the relative schedule's maximum.",
        "",
        "| pictures | (d, k, n) | thresholds | nonzero | empty blocks | ms | over floor | gain over first |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for entry in result:
        times = Times(entry["seconds"])
        first, *_ = times.seconds
        names = [name for name in times.seconds if name != "floor"]
        for name, density in zip(names, entry["densities"], strict=True):
            lines.append(
                f"| {entry['kind']} | {tuple(entry['shape'])} | {name} | {density['nonzero']:.1%} "
                f"| {density['empty']:.0%} | {1000 * times.median(name):.1f} "
                f"| {times.ratio(name, 'floor'):.2f} | {times.ratio(first, name):.2f} |"
            )
    return "\n".join(lines)


def _empty_blocks(codes: torch.Tensor) -> float:
    """The share of empty blocks of codes (k, n)."""
    used = torch.nn.functional.max_pool2d((codes != 0).float()[None], BLOCK, ceil_mode=True)
    return (used == 0).double().mean().item()
