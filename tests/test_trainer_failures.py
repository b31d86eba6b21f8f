"""Trainings that fail or are stopped: the error says what to do, and what was learned is kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_training
import numpy as np
import pytest
import torch
from command import fsad as run_fsad
from PIL import Image
from test_trainer import log_of, make_trainer
from torch import nn

from fsad.episodes import Episodes, ProceduralCategory
from fsad.errors import DivergedError, InputError
from fsad.model_file import read_model


class Falling(nn.Module):
    """A loss that is not a number from the fourth episode on."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, support, query, corrupted, defective, foreign, number):
        value = self.weight * (1 if number < 3 else float("nan"))
        return {"loss": value, "sample": query}


def test_a_loss_that_is_no_number_stops_the_training(tmp_path):
    with pytest.raises(
        DivergedError, match=r"at update 3: loss, gradient not finite; resuming leads there again"
    ):
        make_trainer(tmp_path, Falling()).train()
    tensors, saved = read_model(tmp_path / "checkpoint.safetensors")
    assert saved["update"] == 2 and tensors["loss.weight"].isfinite()
    assert len(log_of(tmp_path)) == 3


@pytest.mark.parametrize(("rate", "update"), [("1e6", 1), ("1e-3", 0)])
def test_the_command_says_when_it_diverged(tmp_path, rate, update):
    """Of a rate far too high, and of a fixed step far too large for features that nobody trained."""
    command = kill_training.command(tmp_path / "run", 50, "--rate", rate)
    command[command.index("--every") + 1] = "100"
    step = "1e9" if update == 0 else '"whiten"'
    done = run_fsad(*command[3:], "--set", f'sparse_coding={{"step":{step}}}')
    assert done.returncode == 1
    assert f"Error: training diverged at update {update}: " in done.stderr
    smaller = "rate or step_size" if update else "step_size"
    assert done.stderr.endswith(f"begin in a new folder, perhaps with a smaller {smaller}\n")
    assert len(log_of(tmp_path / "run") if update else []) == update


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    def full(handle):
        raise OSError(28, "No space left on device")

    def fill(row):
        if row["update"] == 2:
            monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(OSError, match="No space left") as raised:
        make_trainer(tmp_path).train(fill)
    assert raised.value.filename == str(tmp_path / "log.csv")
    monkeypatch.undo()
    assert make_trainer(tmp_path).resume().update == 2
    assert not list(tmp_path.glob(".*"))


def test_an_unreadable_picture_loses_nothing(tmp_path):
    class Bad(ProceduralCategory):
        def picture(self, number, size):
            if len(drawn) == 16:  # four episodes of four pictures
                raise InputError("bolt/07.png: damaged")
            drawn.append(number)
            return super().picture(number, size)

    drawn = []
    trainer = make_trainer(tmp_path, every=100)
    trainer.episodes.categories[:] = [Bad(0)]
    with pytest.raises(InputError, match="bolt/07"):
        trainer.train()
    assert read_model(trainer.checkpoint)[1]["update"] == 4


def test_a_folder_named_like_a_library_is_no_lost_process(tmp_path, monkeypatch):
    def unreadable(self, number):
        raise InputError("gloomy/07.png: damaged")

    monkeypatch.setattr(Episodes, "__getitem__", unreadable)
    with pytest.raises(InputError, match="gloomy/07"):
        make_trainer(tmp_path).train()


def write_pictures(root, unreadable):
    """Two products of eight pictures, one of them cut off."""
    for name in ("bolt", "nut"):
        (root / name).mkdir(parents=True)
        for i in range(8):
            pixels = ProceduralCategory(len(name)).picture(i, 16)
            Image.fromarray(np.asarray(pixels)).save(root / name / f"{i}.png")
    path = root / unreadable
    path.write_bytes(path.read_bytes()[:200])


def test_an_unreadable_picture_is_named_by_workers_too(tmp_path):
    write_pictures(tmp_path / "parts", "nut/3.png")
    more = ("--data", str(tmp_path / "parts"), "--workers", "2", "--seed", "0")
    command = kill_training.command(tmp_path / "run", 500, *more)
    command[command.index("--every") + 1] = "500"
    done = run_fsad(*command[3:])
    assert done.returncode == 1
    (line,) = [line for line in done.stderr.splitlines() if "Error" in line]
    damaged = "nut/3.png: damaged or cut off (image file is truncated)"
    assert line.endswith(
        f"{damaged}; the updates before it are saved: put a readable one in its place, and resume"
    )
    assert "Caught" not in done.stderr
    assert read_model(tmp_path / "run" / "checkpoint.safetensors")[1]["update"] == len(
        log_of(tmp_path / "run")
    )


def test_a_worker_that_is_killed_is_no_defect_of_ours(tmp_path):
    command = kill_training.command(tmp_path, 100_000, "--workers", "1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    waited = time.monotonic() + 120
    while not (tmp_path / "checkpoint.safetensors").exists() and time.monotonic() < waited:
        time.sleep(0.1)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for child in map(int, children):
        if b"fsad" in Path(f"/proc/{child}/cmdline").read_bytes():
            os.kill(child, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and "Traceback" not in errors, errors
    assert errors.endswith("was killed, perhaps for want of memory; resume with fewer workers\n")
    assert 0 < read_model(tmp_path / "checkpoint.safetensors")[1]["update"] <= len(log_of(tmp_path))


def test_a_signal_to_the_whole_group_saves_first(tmp_path):
    """As Ctrl-C, ``timeout`` and many a scheduler send it: to the processes that prepare episodes too."""
    command = kill_training.command(tmp_path, 100_000, "--workers", "1")
    process = subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True, text=True)
    waited = time.monotonic() + 120
    while not (tmp_path / "checkpoint.safetensors").exists() and time.monotonic() < waited:
        time.sleep(0.1)  # so that a worker is at work
    os.killpg(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM, errors
    assert errors.endswith("Stopped; the same command with --resume goes on from the checkpoint.\n")
    assert "Traceback" not in errors
    saved = read_model(tmp_path / "checkpoint.safetensors")[1]
    assert saved["update"] == len(log_of(tmp_path)) > 0


SECOND_FAILS = """
import os, sys
sys.path.insert(0, {tests!r})
from test_trainer import make_trainer
from fsad.episodes import ProceduralCategory
from fsad.errors import InputError

class Bad(ProceduralCategory):
    drawn = 0
    def picture(self, number, size):
        Bad.drawn += 1
        if Bad.drawn > 8 and os.environ["RANK"] == "1":  # two episodes of four pictures
            raise InputError("bolt/07.png: damaged")
        return super().picture(number, size)

trainer = make_trainer({folder!r}, updates=9, every=9)
trainer.episodes.categories[:] = [Bad(0)]
trainer.train()
"""


@pytest.mark.slow
def test_what_fails_in_another_process_loses_nothing(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SECOND_FAILS.format(tests=os.path.dirname(__file__), folder=str(tmp_path / "run")))
    start = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone"]
    done = subprocess.run([*start, str(script)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "InputError: bolt/07.png: damaged" in done.stderr
    assert read_model(tmp_path / "run" / "checkpoint.safetensors")[1]["update"] == 2
    assert len(log_of(tmp_path / "run")) == 2
