"""Training: learning happens, a resumed run is the same run, and nothing is lost or broken."""

from __future__ import annotations

import csv
import os
import random
import signal
import subprocess
import sys
from dataclasses import replace

import kill_training
import numpy as np
import pytest
import torch
from command import fsad as run_fsad
from PIL import Image

import fsad
from fsad.episodes import Episodes, ProceduralCategory
from fsad.episodic import MamlLoss
from fsad.errors import DivergedError, InputError, ModelFileError
from fsad.model_file import read_model
from fsad.networks import Autoencoder, SmallResNet, load_network, save_network
from fsad.recipe import Recipe, run
from fsad.sparse_coding import SparseCodingLayer
from fsad.trainer import EpisodicTrainer, Schedule
from fsad.training_log import TrainingLog

TINY = {"shots": 2, "queries": 2, "size": 16}


def make_loss(width=8, noise=0.01, seed=0, separation=0.0):
    model = fsad.AdaptiveEnergyModel(SmallResNet(width, 4, seed), fsad.SparseCodingLayer(max_atoms=16))
    sampler = fsad.LangevinSampler(steps=2, step_size=5, noise=noise, limits=(0, 1))
    return fsad.EpisodeLoss(model, sampler, reconstruction=10, restraint=0.1, separation=separation)


def make_trainer(folder, loss=None, *, updates=6, episodes=1, every=2, seed=0, **rest):
    tasks = Episodes([ProceduralCategory(i) for i in range(4)], seed=seed, **TINY)
    schedule = Schedule(updates, episodes, rate=1e-3, warm_up=2, every=every)
    return EpisodicTrainer(loss or make_loss(), tasks, folder, schedule, **rest)


def log_of(folder):
    with open(folder / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def stop_after(updates):
    def progress(row):
        if row["update"] == updates - 1:
            signal.raise_signal(signal.SIGTERM)

    return progress


def test_the_loss_is_that_of_the_paper():
    """Against its terms computed one by one, with the stateless layer and a chain written out."""
    check_loss(separation=0.0)


def test_the_separation_is_of_pairs_of_positions():
    check_loss(separation=0.7)


def check_loss(separation):
    loss = make_loss(noise=0, separation=separation)
    episode = Episodes([ProceduralCategory(i) for i in (0, 1)], **TINY)[0]
    support, query, corrupted, defective, foreign, _ = episode
    result = loss(*episode)

    layer, network = loss.model.sparse_coding, loss.model.backbone

    def energy_map(images):
        return layer(network(images), network(support)).energy

    def energy(images):
        return energy_map(images).mean((1, 2))

    sample = corrupted.clone().requires_grad_()
    for _ in range(2):
        (gradient,) = torch.autograd.grad(energy(sample).sum(), sample, create_graph=True)
        sample = (sample - 2.5 * gradient).clamp(0, 1)
    normal, sampled = energy(query), energy(sample.detach())
    expected = (
        10 * (sample - query).square().mean()
        + (normal.mean() - sampled.mean())
        + 0.1 * (normal.square().mean() + sampled.square().mean())
    )
    # A position is 4×4 pixels, and takes part where one of them was changed.
    changed = torch.zeros(2, 4, 4)
    for picture, y, x in ((defective - query).abs().amax(1) > 0.05).nonzero().tolist():
        changed[picture, y // 4, x // 4] = 1
    assert 0 < changed.mean() < 1
    for negative, weight in ((defective, changed), (foreign, torch.ones_like(changed))):
        above = ((energy_map(negative) + 1e-4) / (energy_map(query) + 1e-4)).square()
        expected = expected + separation * ((1 + torch.e / above).log() * weight).sum() / weight.sum()
    torch.testing.assert_close(result["loss"], expected)
    weights = list(network.parameters())
    for own, other in zip(
        torch.autograd.grad(result["loss"], weights), torch.autograd.grad(expected, weights), strict=True
    ):
        torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss.scores(support, query), normal.detach())


def test_both_methods_learn(tmp_path):
    """The mean loss of the last updates is below that of the first, over the same few episodes."""
    for name, loss in (("episodic", make_loss()), ("maml", MamlLoss(Autoencoder(8), steps=2))):
        rows = []
        trainer = make_trainer(tmp_path / name, loss, updates=60, every=60)
        trainer.train(rows.append)
        values = [row["loss"] for row in rows]
        assert np.mean(values[-20:]) < np.mean(values[:20]) - 0.05 * abs(np.mean(values[:20]))


def test_maml_adapts_by_gradient_steps():
    loss = MamlLoss(Autoencoder(8), steps=2, rate=0.5)
    episode = Episodes([ProceduralCategory(0)], **TINY)[0]
    support, query = episode[:2]
    clone = Autoencoder(8)
    optimizer = torch.optim.SGD(clone.parameters(), lr=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        (clone(support) - support).square().mean().backward()
        optimizer.step()
    expected = (clone(query) - query).square().mean(1).detach()
    torch.testing.assert_close(loss.score_map(loss.adapt(support), query), expected)
    torch.testing.assert_close(loss(*episode)["loss"].detach(), expected.mean())


def test_a_resumed_training_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = make_trainer(tmp_path / "whole").train()
    with pytest.raises(SystemExit) as stopped:
        make_trainer(tmp_path / "parts").train(stop_after(3))  # between two checkpoints
    assert stopped.value.code == 128 + signal.SIGTERM
    assert read_model(tmp_path / "parts" / "checkpoint.safetensors")[1]["update"] == 3
    with open(tmp_path / "parts" / "log.csv", "a") as file:
        file.write("4,1,1,1,1,1,1,1,1,1\n")  # what a killed process logged after its last checkpoint
    resumed = make_trainer(tmp_path / "parts", make_loss(seed=9)).resume()
    assert resumed.update == 3
    resumed.train()
    assert log_of(tmp_path / "whole") == log_of(tmp_path / "parts")
    assert len(log_of(tmp_path / "whole")) == 6
    for own, other in zip(whole.loss.parameters(), resumed.loss.parameters(), strict=True):
        assert (own == other).all()
    for name in ("curves.png", "samples.png"):
        Image.open(tmp_path / "parts" / name).verify()


def test_ctrl_c_saves_first(tmp_path):
    def press(row):
        if row["update"] == 0:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        make_trainer(tmp_path, every=100).train(press)
    assert make_trainer(tmp_path).resume().update == 1


def test_what_is_frozen_stays(tmp_path):
    loss = make_loss()
    first = loss.model.backbone.layers[0].weight.requires_grad_(False)
    before = first.clone()
    make_trainer(tmp_path, loss, updates=2).train()
    assert (first == before).all()
    with pytest.raises(InputError, match="nothing to train"):
        make_trainer(tmp_path / "frozen", make_loss().requires_grad_(False))


def test_an_adapter_starts_as_the_identity_and_is_all_that_is_saved(tmp_path):
    recipe = Recipe.of({"architecture": {"name": "adapter", "hidden": 8}, **TINY}, ["size=32", "steps=1"])
    loss, path = recipe.loss(), tmp_path / "head.safetensors"
    images = torch.rand(2, 3, 32, 32)
    network = loss.model.backbone
    assert (network(images) == network.backbone(images)).all()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    tasks = Episodes([ProceduralCategory(0)], shots=2, queries=2, size=32)
    EpisodicTrainer(loss, tasks, tmp_path, Schedule(2, warm_up=0)).train()
    moved = {name for name, tensor in network.state_dict().items() if (tensor != before[name]).any()}
    assert moved == {"head.0.weight", "head.0.bias", "head.2.weight"}
    save_network(path, network, recipe.architecture, sparse_coding=None)
    assert read_model(path)[0].keys() == moved
    again, _ = load_network(path)
    torch.testing.assert_close(again(images), network(images).detach())


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    make_trainer(tmp_path, updates=2).train()
    with pytest.raises(InputError, match="already holds a training"):
        make_trainer(tmp_path, updates=2).train()
    with pytest.raises(InputError, match=r"schedule.updates was 2, is 6"):
        make_trainer(tmp_path).resume()
    with pytest.raises(InputError, match=r"episodes.seed was 0, is 1"):
        make_trainer(tmp_path, updates=2, seed=1).resume()
    turned = make_trainer(tmp_path, updates=2)
    names = [category.name for category in turned.episodes.categories]
    episodes = replace(turned.episodes, categories=turned.episodes.categories[::-1])
    wrong = rf"episodes.categories.0.0 was {names[0]}, is {names[-1]}; .*; resume it with its own"
    with pytest.raises(InputError, match=wrong):
        EpisodicTrainer(turned.loss, episodes, tmp_path, turned.schedule).resume()
    with pytest.raises(ModelFileError, match="another network"):
        make_trainer(tmp_path, make_loss(width=16), updates=2).resume()
    with pytest.raises(InputError, match="no checkpoint"):
        make_trainer(tmp_path / "other").resume()
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ModelFileError, match=r"not a complete fsad model.*; copy or make it again$"):
        make_trainer(tmp_path, updates=2).resume()


TWO_PROCESSES = """
import sys
sys.path.insert(0, {tests!r})
from test_trainer import make_trainer
make_trainer({folder!r}, updates=3, episodes=1, every=3).train()
"""


@pytest.mark.slow
def test_two_processes_make_the_updates_of_one(tmp_path):
    """Two with one episode each against one with two; weights alike up to the order of sums."""
    script = tmp_path / "script.py"
    script.write_text(TWO_PROCESSES.format(tests=os.path.dirname(__file__), folder=str(tmp_path / "two")))
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nproc-per-node=2",
        "--standalone",
        str(script),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # what torchrun sets where nothing is set
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert run.returncode == 0, run.stderr
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as torchrun has it: more of them would add up convolutions in another order
    try:
        alone = make_trainer(tmp_path / "one", updates=3, episodes=2, every=3).train()
    finally:
        torch.set_num_threads(threads)
    tensors, _ = read_model(tmp_path / "two" / "checkpoint.safetensors")
    start = dict(make_loss().named_parameters())
    for name, own in alone.loss.named_parameters():
        moved = (own - start[name]).norm()
        assert (own - tensors[f"loss.{name}"]).norm() <= 1e-3 * moved + 1e-7, name
    for one, two in zip(log_of(tmp_path / "one"), log_of(tmp_path / "two"), strict=True):
        assert float(one["loss"]) == pytest.approx(float(two["loss"]), rel=1e-4)


@pytest.mark.slow
def test_the_command_trains_and_its_weights_detect(tmp_path, monkeypatch):
    done = run_fsad(*kill_training.command(tmp_path / "run", 3)[3:])
    assert done.returncode == 0, done.stderr
    assert "AUROC of normal against corrupted pictures of other products: 0." in done.stdout
    weights = tmp_path / "run" / "network.safetensors"
    _, saved = load_network(weights)
    assert saved["architecture"] == {"name": "small_resnet", "stride": 4, "width": 8, "seed": 0}
    assert saved["training"]["episodes"]["shots"] == 2
    monkeypatch.chdir(tmp_path)
    detector = fsad.FewShotDetector("run/network.safetensors", input_size=32)
    detector.fit([ProceduralCategory(0).picture(i, 32) for i in range(3)])
    assert detector.model_.sparse_coding.max_atoms == 16  # as it was trained
    detector.save(tmp_path / "part.fsad")
    monkeypatch.chdir("/")  # the model is used elsewhere
    again = fsad.FewShotDetector.load(tmp_path / "part.fsad")
    picture = ProceduralCategory(0).picture(9, 32)
    assert again.anomaly_scores(picture) == detector.anomaly_scores(picture)
    again = run_fsad(*kill_training.command(tmp_path / "run", 3)[3:])
    assert again.returncode == 1 and "already holds a training" in again.stderr


@pytest.mark.slow
def test_a_killed_training_resumes(tmp_path):
    """``kill_training.py`` does it more often; here twice."""
    subprocess.run(kill_training.command(tmp_path / "whole", 40), check=True, capture_output=True)
    kill_training.kill_and_resume(tmp_path / "killed", 40, kills=2, rng=random.Random(0))
    assert kill_training.are_alike(tmp_path / "killed", tmp_path / "whole")


def test_the_setting_of_the_paper_trains_at_a_temperature(tmp_path):
    """η = 1 without whitening, which features of their usual size make diverge at once."""
    paper = SparseCodingLayer.paper(lambda_max=0.001, lambda_min=0.0002).config()
    settings = {**TINY, "procedural": 2, "sparse_coding": paper, "separation": 0, "step_size": 2500.0}
    weights = ["contrast=1e6", "restraint=1e12"]
    with pytest.raises(DivergedError, match=r"diverged at update 0: .* step=1\.0 is too large"):
        run(Recipe.of(settings, weights), Schedule(2), tmp_path / "hot")
    recipe, rows = Recipe.of(settings, [*weights, 'architecture={"temperature":0.002}']), []
    run(recipe, Schedule(4, warm_up=0), tmp_path / "cold", progress=rows.append)
    assert rows[-1]["gradient"] > 0
    network, _ = load_network(tmp_path / "cold" / "network.safetensors")
    assert (
        float(network.scale.exp()) == pytest.approx(0.002, rel=0.01) and float(network.scale.exp()) != 0.002
    )


def test_the_rate_warms_up_and_falls_and_the_gradient_is_clipped(tmp_path):
    schedule = Schedule(updates=10, rate=0.1, warm_up=4)
    rates = [schedule.rate_at(update) for update in range(10)]
    assert rates[:5] == pytest.approx([0.025, 0.05, 0.075, 0.1, 0.1])
    assert rates[7] == pytest.approx(0.05) and rates == rates[:4] + sorted(rates[4:], reverse=True)

    class Slope(torch.nn.Module):
        """A loss whose gradient has the norm 500."""

        def __init__(self):
            super().__init__()
            self.weight, self.seen = torch.nn.Parameter(torch.tensor([3.0, 4.0])), []

        def forward(self, support, query, *rest):
            self.seen.append(self.weight.detach().clone())
            return {"loss": 50 * self.weight.square().sum(), "sample": query}

    tasks = Episodes([ProceduralCategory(0)], **TINY)
    loss, schedule = Slope(), Schedule(updates=3, rate=0.1, warm_up=2, decay=0, clip=0.25)
    trainer = EpisodicTrainer(loss, tasks, tmp_path, schedule).train()
    assert [float(row["gradient"]) > 450 for row in log_of(tmp_path)] == [True] * 3  # logged as it was
    assert loss.weight.grad.norm() == pytest.approx(0.25, abs=1e-4)
    # AdamW's first steps are of the rate's length in each weight.
    first, second, third = loss.seen
    assert (first - second).tolist() == pytest.approx([0.05, 0.05], abs=1e-3)
    assert (second - third).tolist() == pytest.approx([0.1, 0.1], abs=2e-3)
    assert trainer.optimizer.param_groups[0]["lr"] == pytest.approx(schedule.rate_at(2))


@pytest.mark.parametrize("damage", [b"update,loss\n0,1\n1", b"update,loss\n0,abc\n", b"epoch,loss\n0,1\n"])
def test_a_damaged_log_is_named(tmp_path, damage):
    (tmp_path / "log.csv").write_bytes(damage)
    with pytest.raises(InputError, match=r"log\.csv is damaged.*remove it to go on"):
        TrainingLog(tmp_path, 2)
