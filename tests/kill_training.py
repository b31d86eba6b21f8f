"""Kills a short training with SIGKILL at random moments, and resumes it each time.

    python tests/kill_training.py [--kills 20] [--seed 0]

It ends with an error unless every resume works, no file is ever broken, and log and weights become those of
a training that nobody disturbed.
"""

from __future__ import annotations

import argparse
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image

from fsad.model_file import read_model

OPTIONS = (
    *("--shots", "2", "--queries", "1", "--input-size", "16", "--procedural", "3", "--every", "1"),
    *("--set", "steps=2", "--set", 'sparse_coding={"max_atoms":16}', "--set", 'architecture={"width":8}'),
)


def command(folder: Path, updates: int, *more: str) -> list[str]:
    where = ["train", "--output", str(folder), "--updates", str(updates)]
    return [sys.executable, "-m", "fsad", *where, *OPTIONS, *more]


def kill_and_resume(folder: Path, updates: int, kills: int, rng: random.Random) -> None:
    """Start, kill at a random moment after some work, ``kills`` times; then run to the end."""
    checkpoint = folder / "checkpoint.safetensors"
    for _ in range(kills):
        before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
        process = subprocess.Popen(command(folder, updates, *_resume(checkpoint)), stderr=subprocess.PIPE)
        # Starting takes seconds and an update milliseconds: wait for work, then a moment of chance.
        while process.poll() is None and (not checkpoint.exists() or checkpoint.stat().st_mtime_ns == before):
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.2))
        process.kill()
        _, errors = process.communicate()
        if process.returncode != -signal.SIGKILL:
            raise SystemExit(f"not killed, but ended with {process.returncode}: {errors.decode()}")
        check_files(folder)
    subprocess.run(command(folder, updates, *_resume(checkpoint)), check=True, stdout=subprocess.DEVNULL)


def are_alike(one: Path, other: Path) -> bool:
    """Whether two trainings left the same log and the same weights, to the last bit."""
    weights = [read_model(folder / "network.safetensors")[0] for folder in (one, other)]
    logs = [(folder / "log.csv").read_bytes() for folder in (one, other)]
    same_names = weights[0].keys() == weights[1].keys()
    return logs[0] == logs[1] and same_names and all(weights[0][n].equal(weights[1][n]) for n in weights[0])


def check_files(folder: Path) -> None:
    """Every file that has its final name is whole."""
    for path in folder.glob("[!.]*.safetensors"):
        read_model(path)
    for path in folder.glob("[!.]*.png"):
        Image.open(path).verify()


def _resume(checkpoint: Path) -> list[str]:
    return ["--resume"] if checkpoint.exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    updates = 10 * chosen.kills
    with tempfile.TemporaryDirectory() as scratch:
        whole, killed = Path(scratch, "whole"), Path(scratch, "killed")
        subprocess.run(command(whole, updates), check=True, stdout=subprocess.DEVNULL)
        kill_and_resume(killed, updates, chosen.kills, random.Random(chosen.seed))
        if not are_alike(whole, killed):
            raise SystemExit("the killed training went another way than the undisturbed one")
    done = f"killed {chosen.kills} times, resumed {chosen.kills} times"
    print(f"{done}; log and weights as without, {updates} updates")


if __name__ == "__main__":
    main()
