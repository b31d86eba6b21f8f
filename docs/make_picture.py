"""Makes docs/example.png, the picture of the README: procedural parts, their defects, and what fsad says.

Run it as `python docs/make_picture.py`; it needs the extra `pretrained`.
"""

from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

import fsad
from fsad.procedural import DEFECTS, ProceduralTask
from fsad.report import find_regions, overlay_image

TASKS = {"disc": 5, "weave": 8}  # family: seed; products whose defects are plain to see
SIDE, GAP, MARGIN = 176, 8, 22


def main() -> None:
    rows = []
    for family, seed in TASKS.items():
        task = ProceduralTask(seed, 256, family)
        detector = fsad.FewShotDetector().fit([task.normal(number).image for number in range(10)])
        parts = [task.normal(10)]
        parts += [task.defective(11 + i, defect) for i, defect in enumerate(DEFECTS[:3])]
        rows.append(
            [(part.image, result) for part, result in zip(parts, _results(detector, parts), strict=True)]
        )
        threshold = detector.threshold_.value
        rows[-1] = [(picture, result, threshold) for picture, result in rows[-1]]
    columns = len(rows[0])
    width = columns * (SIDE + GAP) - GAP
    height = 2 * len(rows) * (SIDE + GAP) + len(rows) * MARGIN - GAP
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = 0
    for row in rows:
        for column, (picture, result, threshold) in enumerate(row):
            left = column * (SIDE + GAP)
            verdict = "anomalous" if result.anomalous else "normal"
            draw.text(
                (left, top + 4), f"{verdict}, {result.score / threshold:.2f} of the threshold", fill="black"
            )
            sheet.paste(Image.fromarray(picture).resize((SIDE, SIDE)), (left, top + MARGIN))
            shown = overlay_image(
                picture / np.float32(255), result.anomaly_map, threshold, _regions(result, threshold)
            )
            sheet.paste(shown.resize((SIDE, SIDE)), (left, top + MARGIN + SIDE + GAP))
        top += MARGIN + 2 * (SIDE + GAP)
    sheet.save(Path(__file__).with_name("example.png"), optimize=True)


def _results(detector: fsad.FewShotDetector, parts: list) -> list:
    return list(detector.iter_results([part.image for part in parts]))


def _regions(result, threshold: float) -> list:
    return find_regions(result.anomaly_map, threshold, result.size) if result.anomalous else []


if __name__ == "__main__":
    main()
