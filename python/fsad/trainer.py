"""Episodic training (Algorithm 1), with checkpoints that any interruption leaves whole.

The state of a training is its weights, its optimizer's moments and the number of the next update: episodes
and noise depend on their numbers alone. So a resumed training goes on bit for bit as it would have.
"""

import atexit
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Dataset

from fsad.backbones import usable_device
from fsad.episodes import Episode, Episodes, numbers
from fsad.errors import DivergedError, FsadError, InputError, ModelFileError
from fsad.model_file import read_model, write_model
from fsad.training_log import TrainingLog

CHECKPOINT = "checkpoint.safetensors"
STOPS = (signal.SIGINT, signal.SIGTERM)
FEW = 4  # differences of settings that a message lists


@dataclass(frozen=True)
class Schedule:
    """How long and how fast: one update is a step of AdamW on the mean loss of some episodes."""

    updates: int = 1000  # of the weights, altogether; with 0 they stay untrained
    episodes: int = 1  # per update and process
    rate: float = 1e-3  # AdamW's, after ``warm_up`` updates, from where it falls to 0 as a half cosine
    warm_up: int = 50
    decay: float = 1e-4  # AdamW's weight decay
    clip: float = 1.0  # the gradient's norm is cut to this
    every: int = 50  # updates between checkpoints

    def __post_init__(self) -> None:
        if min(self.episodes, self.every) < 1 or min(self.updates, self.warm_up, self.decay) < 0:
            raise InputError(f"episodes and every must be 1 or more, nothing below 0; got {self}")
        if not (0 < self.rate < math.inf and self.clip > 0):
            raise InputError(f"rate and clip must be above 0, got {self.rate} and {self.clip}")

    def rate_at(self, update: int) -> float:
        if update < self.warm_up:
            return self.rate * (update + 1) / self.warm_up
        share = (update - self.warm_up) / max(1, self.updates - self.warm_up)
        return self.rate / 2 * (1 + math.cos(math.pi * share))


class EpisodicTrainer:
    """Trains a loss over episodes; under ``torchrun`` over all of its processes.

    Args:
        loss: a module from an episode to a dictionary with ``"loss"``, numbers to log and ``"sample"``, such
            as ``fsad.episodic.EpisodeLoss``. Parameters that require no gradient stay as they are.
        episodes: where the tasks come from.
        folder: for checkpoint, log and plots; made if it does not exist.
        schedule: how long and how fast.
        settings: JSON-able, whatever else decides what is trained; a checkpoint of other settings is refused.
        device: ``"cpu"``, ``"cuda"``, or ``"auto"`` for a GPU if there is one.
        workers: processes that prepare episodes, 0 for none.
    """

    def __init__(
        self,
        loss: nn.Module,
        episodes: Episodes,
        folder: str | Path,
        schedule: Schedule | None = None,
        *,
        settings: dict[str, Any] | None = None,
        device: str = "cpu",
        workers: int = 0,
    ) -> None:
        self.schedule, self.episodes, self.workers = schedule or Schedule(), episodes, workers
        self.folder, self.checkpoint = Path(folder), Path(folder) / CHECKPOINT
        self.rank, self.world, self.device = _join_processes(device)
        self.loss = loss.to(self.device).train()
        trained = [p for p in loss.parameters() if p.requires_grad]
        if not trained:
            raise InputError("there is nothing to train: no parameter requires a gradient")
        rate, decay = self.schedule.rate, self.schedule.decay
        self.optimizer = torch.optim.AdamW(trained, rate, weight_decay=decay, foreach=False)
        self.update = 0  # the next one
        pace = {name: value for name, value in asdict(self.schedule).items() if name != "every"}
        described = {"schedule": pace, "episodes": episodes.describe(), "world": self.world}
        described |= settings or {}
        self.settings: dict[str, Any] = json.loads(json.dumps(described))  # as a checkpoint gives them back
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)

    def resume(self) -> "EpisodicTrainer":
        """Take up the training that the folder's checkpoint holds.

        Raises:
            InputError: there is none, or its settings differ from these.
            ModelFileError: it is damaged, or its weights do not fit.
        """
        if not self.checkpoint.exists():
            raise InputError(f"{self.folder} holds no {CHECKPOINT} to resume from; train without resuming")
        tensors, saved = read_model(self.checkpoint, "EpisodicTrainer")
        if differences := _differences(saved["settings"], self.settings):
            more = f"; and {len(differences) - FEW} more" if len(differences) > FEW else ""
            listed = "; ".join(differences[:FEW]) + more
            begun = f"the training in {self.folder} was begun with other settings: {listed}"
            raise InputError(f"{begun}; resume it with its own, or begin another in a new folder")
        try:
            self._restore(tensors)
        except (KeyError, RuntimeError, ValueError) as error:
            reason = " ".join(str(error).split())[:300]
            raise ModelFileError(f"{self.checkpoint} holds weights of another network: {reason}") from error
        self.update = saved["update"]
        return self

    def train(self, progress: Callable[[dict[str, float]], object] = lambda row: None) -> "EpisodicTrainer":
        """Train to the end of the schedule; SIGTERM and Ctrl-C save first.

        Args:
            progress: called after each update with the row that is logged.

        Raises:
            InputError: the folder holds a training already, or a picture cannot be read.
            DivergedError: an update is not finite or cannot be computed; a checkpoint is from before.
            FsadError: another process of this training stopped.
            KeyboardInterrupt, SystemExit: after a signal, once the checkpoint is written.

        Whatever else goes wrong within an update, those before it are saved first.
        """
        if self.update == 0 and self.rank == 0 and self.checkpoint.exists():
            advice = "resume it, or begin another in a new folder"
            raise InputError(f"{self.folder} already holds a training: {advice}")
        updates = range(self.update, self.schedule.updates)
        loader: DataLoader[Any] = DataLoader(
            _Drawn(self.episodes),
            batch_size=None,
            sampler=numbers(updates, self.schedule.episodes, self.rank, self.world),
            num_workers=self.workers,
            worker_init_fn=_ignore_signals,
        )
        parallel = DistributedDataParallel(self.loss) if self.world > 1 else self.loss
        log = TrainingLog(self.folder, self.update) if self.rank == 0 else None
        with _signals() as received, ExitStack() as at_the_end, _named_loss_of_workers():
            arriving: Any = iter(loader)
            if self.workers:  # no signal stops them
                at_the_end.callback(arriving._shutdown_workers)
            while self.update < self.schedule.updates:
                with self._saving(log):
                    row, episode, sample = self._differentiate(parallel, arriving)
                self.optimizer.param_groups[0]["lr"] = self.schedule.rate_at(self.update)
                self.optimizer.step()
                self.update += 1
                if log is not None:
                    log.rows.append(row)
                    progress(row)
                with self._saving(log):
                    stop = self._agree(received)
                done = self.update == self.schedule.updates
                if log is not None and (stop or done or self.update % self.schedule.every == 0):
                    log.flush()  # first: a resumed training drops what the checkpoint does not know
                    self.save()
                    log.draw(episode, sample)
                if stop == signal.SIGINT:
                    raise KeyboardInterrupt
                if stop:
                    raise SystemExit(128 + stop)
        return self

    @contextmanager
    def _saving(self, log: TrainingLog | None) -> Iterator[None]:
        """Where an update fails, weights still are those of the last one: whatever comes, they are saved."""
        try:
            yield
        except (DivergedError, torch.linalg.LinAlgError) as error:  # but for these: they lead nowhere
            if log is not None:
                log.flush()
            reason = " ".join(str(error).split()).rstrip(".")
            smaller = "rate or step_size" if self.update > 0 else "step_size"
            advice = f"resuming leads there again: begin in a new folder, perhaps with a smaller {smaller}"
            raise DivergedError(f"training diverged at update {self.update}: {reason}; {advice}") from error
        except Exception as error:
            if log is not None and self.update > 0:
                log.flush()
                self.save()
            of_gloo = type(error) is RuntimeError and "gloo" in str(error)  # which raises no class of its own
            if isinstance(error, distributed.DistError) or of_gloo:
                wrong = f"process {self.rank} lost another one at update {self.update}"
                raise FsadError(f"{wrong}; mend what that one says and resume ({error})") from error
            raise

    def _differentiate(self, parallel: nn.Module, episodes: Iterator[Any]) -> tuple[Any, Episode, Tensor]:
        """Gradients of an update; the row to log, an episode, and its sample."""
        count, on_gpu, sums = self.schedule.episodes, self.device.type == "cuda", dict[str, Tensor]()
        short = on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
        self.optimizer.zero_grad()
        for i in range(count):
            episode = next(episodes)
            if isinstance(episode, InputError | OSError):
                advice = "mend or remove it"
                if self.update > 0:  # without it all further episodes would be others
                    advice = "the updates before it are saved: put a readable one in its place, and resume"
                raise InputError(f"{str(episode).rstrip('.')}; {advice}") from episode
            if isinstance(episode, Exception):
                raise episode
            with ExitStack() as stack:
                if isinstance(parallel, DistributedDataParallel) and i < count - 1:
                    stack.enter_context(parallel.no_sync())  # gradients are exchanged once an update
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, short))
                pictures = [tensor.to(self.device) for tensor in episode[:-1]]
                result = parallel(*pictures, episode.number)
                (result["loss"] / count).backward()
            sample = result.pop("sample")
            for name, value in result.items():
                sums[name] = sums.get(name, 0) + value.detach() / count
        norm = nn.utils.clip_grad_norm_(self.optimizer.param_groups[0]["params"], self.schedule.clip)
        means = torch.stack([value.float() for value in sums.values()])
        if self.world > 1:
            distributed.all_reduce(means)
            means /= self.world
        row = {"update": float(self.update), **dict(zip(sums, means.tolist(), strict=True))}
        row["gradient"] = float(norm)
        if wrong := [name for name, value in row.items() if not math.isfinite(value)]:
            raise DivergedError(f"{', '.join(wrong)} not finite")
        return row, episode, sample

    def _agree(self, received: list[int]) -> int:
        """The signal that any process received, for all to stop at the same update; 0 if there is none."""
        number = torch.tensor(received[-1] if received else 0, device=self.device)
        if self.world > 1:
            distributed.all_reduce(number, distributed.ReduceOp.MAX)
        return int(number)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        tensors = {f"loss.{name}": tensor for name, tensor in self.loss.state_dict().items()}
        for i, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{i}.{name}": value for name, value in state.items()}
        description = {"kind": "EpisodicTrainer", "update": self.update, "settings": self.settings}
        write_model(self.checkpoint, tensors, description)

    def _restore(self, tensors: dict[str, Tensor]) -> None:
        weights = {k.removeprefix("loss."): v for k, v in tensors.items() if k.startswith("loss.")}
        state = self.optimizer.state_dict()
        for i, parameter in enumerate(self.optimizer.param_groups[0]["params"]):
            moments = {name: tensors[f"optimizer.{i}.{name}"] for name in ("step", "exp_avg", "exp_avg_sq")}
            if (shape := moments["exp_avg"].shape) != parameter.shape:
                raise ValueError(f"moment {i} is {tuple(shape)}, not {tuple(parameter.shape)}")
            state["state"][i] = moments
        self.loss.load_state_dict(weights)
        self.optimizer.load_state_dict(state)


@dataclass
class _Drawn(Dataset[Any]):
    """Episodes, or what is wrong with their pictures: what a worker raises, torch buries in a traceback."""

    episodes: Episodes

    def __getitem__(self, number: int) -> Episode | Exception:
        try:
            return self.episodes[number]
        except (FsadError, OSError) as error:
            return error


@contextmanager
def _named_loss_of_workers() -> Iterator[None]:
    """A killed worker raises, by a signal, wherever the main process is."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        wrong = "a process that prepares episodes was killed, perhaps for want of memory"
        raise FsadError(f"{wrong}; resume with fewer workers") from error


def _ignore_signals(worker: int) -> None:
    """A signal to the whole group is for the main process, which needs its workers to end the update."""
    for number in STOPS:
        signal.signal(number, signal.SIG_IGN)


def _join_processes(name: str) -> tuple[int, int, torch.device]:
    """Rank, number and device of the processes; joins those that ``torchrun`` started."""
    device, rank, world = torch.device(usable_device(name)), 0, 1
    if "WORLD_SIZE" in os.environ:
        if not distributed.is_initialized():
            distributed.init_process_group("gloo" if device.type == "cpu" else "nccl")
            atexit.register(_leave_processes)
        rank, world = distributed.get_rank(), distributed.get_world_size()
    if device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", rank)))
        torch.cuda.set_device(device)
    return rank, world, device


def _leave_processes() -> None:
    """Before the interpreter goes: threads of gloo that still hold a tensor then would abort the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Where two nested dictionaries differ, in words; of lists, which entries."""
    if isinstance(old, list) and isinstance(new, list):
        old, new = ({str(i): each for i, each in enumerate(values)} for values in (old, new))
    if isinstance(old, dict) and isinstance(new, dict):
        found = []
        for key in dict.fromkeys([*old, *new]):
            found += _differences(old.get(key), new.get(key), f"{name}.{key}" if name else key)
        return found
    return [] if old == new else [f"{name} was {old}, is {new}"]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM, so that an update is never left half done; a second one acts at once."""
    received: list[int] = []
    ours = threading.current_thread() is threading.main_thread()  # to which Python delivers signals
    before: dict[int, Any] = {number: signal.getsignal(number) for number in (STOPS if ours else ())}

    def remember(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, remember)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
