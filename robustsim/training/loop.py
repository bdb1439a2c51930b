"""The loop: any task, on one device or many, resumable to the bit."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from robustsim.encoders.encoder import Encoder
from robustsim.errors import MissingDependencyError, ObjectiveError, OutputError, TrainingError
from robustsim.training.log import SKIPPED, Log
from robustsim.training.recipe_files import Recipe
from robustsim.training.schedule import averaging, learning_rate
from robustsim.training.state import Checkpoint, find_checkpoints, finite, read_checkpoint, write_checkpoint
from robustsim.training.stream import mix

# Steps between lines of the log.
_LOG_EVERY = 10


class Task(Protocol):
    """What is trained, and on what; :class:`~robustsim.training.adversarial.Adversarial` is one."""

    unit: str
    samples: int
    total: int
    device: torch.device
    module: Any

    def batches(self, spans: Iterator[range]) -> Iterator[Any]:
        """A batch for each range of positions."""

    def terms(self, module: Any, through: Any, batch: Any, step: int) -> dict[str, Tensor]:
        """The named terms whose sum is minimised."""

    def state(self, step: int) -> dict[str, float]:
        """What changes along the training, for the log."""

    def validate(self, rank: int, world: int) -> tuple[dict[str, float], int]:
        """Sums over this process's share of what is judged, and how many that are."""

    def encoder(self, weights: dict[str, Tensor]) -> Encoder:
        """The result with these weights, by the names of the module."""


class Stopped(Exception):  # noqa: N818 - no error
    """A signal asked the run to end; its state is saved.

    Attributes:
        step: updates done.
        signal: its number.
    """

    def __init__(self, step: int, number: int) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name} after step {step}; the same command goes on")
        self.step, self.signal = step, number


class Processes:
    """The processes that share a run, through accelerate: one, or those that ``accelerate launch`` has started.

    Attributes:
        accelerator: accelerate's own.
        device: this process's.
        rank: this process's number.
        world: how many there are.
    """

    def __init__(self, *, cpu: bool = False) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
        except ImportError as error:
            raise MissingDependencyError('training needs accelerate: pip install "robustsim[training]"') from error
        none = not (torch.cuda.is_available() or torch.backends.mps.is_available())
        # Precision is set by the recipe, in the loop: accelerate's is the same for a whole process's life.
        self.accelerator = Accelerator(
            cpu=cpu or none,
            mixed_precision="no",
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                InitProcessGroupKwargs(timeout=timedelta(hours=2)),
            ],
        )
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether weights are spread over the processes (FSDP)."""
        return getattr(self.accelerator.state, "fsdp_plugin", None) is not None

    def sum(self, values: list[float]) -> list[float]:
        """Numbers added up over all processes, in float64 where the device has it."""
        if self.world == 1:
            return values
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        total: Tensor = self.accelerator.reduce(torch.tensor(values, dtype=kind, device=self.device), "sum")
        return [float(value) for value in total]

    def gather(self, items: list[str]) -> list[str]:
        """Everybody's lines."""
        if self.world == 1:
            return items
        from accelerate.utils import gather_object

        return list(gather_object(items))

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()


class Loop:
    """A run of a task.

    Args:
        task: what is trained.
        recipe: how.
        output: the run's folder.
        processes: who shares it.
        skipped: messages on what could not be read; the task adds to it.
        tensorboard: write event files.
        progress: show a bar.
    """

    def __init__(
        self,
        task: Task,
        recipe: Recipe,
        output: Path,
        processes: Processes,
        *,
        skipped: "dict[str, None]",
        tensorboard: bool = True,
        progress: bool = True,
    ) -> None:
        self.task, self.recipe, self.output, self.processes = task, recipe, output, processes
        self._skipped, self._tensorboard, self._progress = skipped, tensorboard, progress
        share = processes.world * recipe.accumulate
        if recipe.batch_size % share:
            raise OutputError(
                f"batch_size {recipe.batch_size} cannot be shared by {processes.world} processes in {recipe.accumulate} "
                "parts each: change batch_size or accumulate"
            )
        self._part = recipe.batch_size // share
        self._trained = [(name, one) for name, one in task.module.named_parameters() if one.requires_grad]
        optimizer = _optimizer(recipe, [one for _, one in self._trained])
        if recipe.compile:
            task.module.student.compile()
        self._module, self._optimizer = processes.accelerator.prepare(task.module, optimizer)
        if processes.sharded:  # which puts other parameters in the place of ours
            self._trained = [(name, one) for name, one in self._module.named_parameters() if one.requires_grad]
        self._through = self._module if processes.sharded else task.module
        self._average = [one.detach().clone() for _, one in self._trained] if recipe.ema is not None else None
        self._seconds = 0.0
        self._signal: int | None = None

    def run(self) -> None:
        """Train to the end.

        Raises:
            Stopped: SIGTERM or SIGINT; the state is saved.
            TrainingError: a loss or a weight that is not finite; the last good checkpoint is kept.
            OutputError: the state cannot be written.
        """
        start = self._resume()
        log = Log(
            self.output,
            start,
            self.task.total,
            self.recipe.batch_size,
            self.task.unit,
            active=self.processes.is_main,
            tensorboard=self._tensorboard,
            progress=self._progress,
        )
        devices = [self.processes.device] if self.processes.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices), self._signals():
                self._train(start, log)
        finally:
            log.close()

    # -- steps

    def _train(self, start: int, log: Log) -> None:
        recipe, total = self.recipe, self.task.total
        batches = self.task.batches(self._spans(start))
        began, saved = time.monotonic() - self._seconds, time.monotonic()
        sums: dict[str, Tensor] = {}
        count, since = 0, time.monotonic()
        try:
            for step in range(start, total):
                terms = self._step(batches, step)
                for name, value in terms.items():
                    sums[name] = sums[name] + value if name in sums else value
                count += 1
                log.advance()
                done = step + 1
                if done % _LOG_EVERY == 0 or done == total or self.processes.device.type == "cpu":
                    self._check(sums, done)
                if done % _LOG_EVERY == 0 or done == total:
                    now = time.monotonic()
                    means = self._means(sums, count)
                    rate = {f"{self.task.unit}s_per_second": count * recipe.batch_size / (now - since)}
                    log.write(
                        "train",
                        done,
                        {**means, **self.task.state(step), "lr": self._rate(step), **rate, "seconds": now - began},
                    )
                    log.show({"loss": means["loss"]})
                    sums, count, since = {}, 0, now
                stopping = self._asked_to_stop()
                due = time.monotonic() - saved > 60 * recipe.checkpoints.minutes
                every = recipe.checkpoints.every
                if done == total or stopping or self._agreed(due) or (every and done % every == 0):
                    self._seconds = time.monotonic() - began
                    self._save(done)
                    saved = time.monotonic()
                if stopping:
                    raise Stopped(done, stopping)
                often = recipe.validation.every
                if done == total or (often and done % often == 0):
                    self._validate(done, log)
        finally:
            batches.close()  # type: ignore[attr-defined]

    def _step(self, batches: Iterator[Any], step: int) -> dict[str, Tensor]:
        recipe, processes = self.recipe, self.processes
        for group in self._optimizer.param_groups:
            group["lr"] = self._rate(step)
        torch.manual_seed(mix(recipe.seed, step, processes.rank, 4))  # of dropout
        self._module.train()
        _freeze_batch_norms(self._module)
        self._optimizer.zero_grad()
        seen: dict[str, Tensor] = {}
        for part in range(recipe.accumulate):
            batch = next(batches)
            last = part == recipe.accumulate - 1
            with nullcontext() if last else processes.accelerator.no_sync(self._module):
                with self._precision():
                    try:
                        terms = self.task.terms(self._module, self._through, batch, step)
                    except ObjectiveError as error:
                        raise self._spoilt(step, f"in the inner attack: {error}") from error
                    loss = torch.stack(list(terms.values())).sum() / recipe.accumulate
                processes.accelerator.backward(loss)
            for name, value in {**terms, "loss": loss * recipe.accumulate}.items():
                value = value.detach().float() / recipe.accumulate
                seen[name] = seen[name] + value if name in seen else value
        if recipe.optimizer.clip_norm is not None:
            weights = [one for _, one in self._trained]
            seen["gradient_norm"] = processes.accelerator.clip_grad_norm_(weights, recipe.optimizer.clip_norm).detach()
        self._optimizer.step()
        if self._average is not None:
            keep = averaging(step, recipe.ema or 0.0)
            with torch.no_grad():
                for mean, (_, weight) in zip(self._average, self._trained, strict=True):
                    mean.lerp_(weight.detach(), 1 - keep)
        return seen

    def _spans(self, start: int) -> Iterator[range]:
        """Positions of this process's parts of each batch, one after the other."""
        recipe, world = self.recipe, self.processes.world
        for step in range(start, self.task.total):
            for part in range(recipe.accumulate):
                first = step * recipe.batch_size + (part * world + self.processes.rank) * self._part
                yield range(first, first + self._part)

    def _rate(self, step: int) -> float:
        recipe = self.recipe.optimizer
        return learning_rate(
            step, self.task.total, lr=recipe.lr, warmup_steps=recipe.warmup_steps, schedule=recipe.schedule
        )

    def _precision(self) -> Any:
        if self.recipe.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.processes.device.type, torch.bfloat16)

    def _means(self, sums: dict[str, Tensor], count: int) -> dict[str, float]:
        names = list(sums)
        world = self.processes.world
        totals = self.processes.sum([float(sums[name]) for name in names])
        return {name: value / count / world for name, value in zip(names, totals, strict=True)}

    def _check(self, sums: dict[str, Tensor], done: int) -> None:
        bad = [name for name, value in sums.items() if not bool(torch.isfinite(value))]
        if bad and bad != ["gradient_norm"]:
            raise self._spoilt(done - 1, f"{bad[0]} is not finite")

    def _spoilt(self, step: int, what: str) -> TrainingError:
        kept = find_checkpoints(self.output)
        where = f"the last good state is {os.fspath(kept[-1])!r}" if kept else "no checkpoint was written yet"
        return TrainingError(
            f"step {step + 1}: {what}. The training stopped; {where}. Lower optimizer.lr, set optimizer.clip_norm or "
            "let the radius grow (attack.warmup), in a new output folder"
        )

    # -- state

    def _weights(self) -> dict[str, Tensor]:
        """What is trained, whole, on the first process."""
        if not self.processes.sharded:
            return {name: one.detach() for name, one in self._trained}
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole: Any = get_model_state_dict(self._module, options=options)
        return dict(whole)

    def _memory(self) -> dict[str, Tensor]:
        """What the optimiser remembers, by parameter."""
        optimizer: Any = getattr(self._optimizer, "optimizer", self._optimizer)
        if not self.processes.sharded:
            return {
                f"{name}/{key}": torch.as_tensor(value)
                for name, one in self._trained
                for key, value in optimizer.state.get(one, {}).items()
                if value is not None
            }
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: Any = get_optimizer_state_dict(self._module, optimizer, options=options)["state"]
        return {f"{name}/{key}": torch.as_tensor(value) for name, kept in state.items() for key, value in kept.items()}

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the place of the weights, where there is one."""
        if self._average is None:
            yield
            return
        weights = [one.detach().clone() for _, one in self._trained]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(weights)

    def result(self) -> dict[str, Tensor]:
        """The trained weights by the names of the task's module: the average where there is one."""
        with self.averaged():
            return {name: value.clone() for name, value in self._weights().items()}

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for value, (_, weight) in zip(values, self._trained, strict=True):
                weight.copy_(value)

    def _save(self, done: int) -> None:
        """Write a checkpoint, if everything in it is finite."""
        tensors = {f"model/{name}": value for name, value in self._weights().items()}
        if not finite(tensors):
            raise self._spoilt(done - 1, "a weight is not finite")
        tensors |= {f"optimizer/{name}": value for name, value in self._memory().items()}
        if self._average is not None:
            with self.averaged():
                tensors |= {f"average/{name}": value.clone() for name, value in self._weights().items()}
        for line in self.processes.gather(list(self._skipped)):
            self._skipped[line] = None
        if self.processes.is_main:
            notes = {"seconds": self._seconds, "skipped": list(self._skipped)}
            write_checkpoint(self.output, Checkpoint(done, tensors, notes), self.recipe.checkpoints.keep)
            (self.output / SKIPPED).write_text("".join(f"{line}\n" for line in self._skipped), encoding="utf-8")
        self.processes.wait()

    def _resume(self) -> int:
        """Load the newest checkpoint; the step to go on with."""
        kept = find_checkpoints(self.output)
        if not kept:
            return 0
        state = read_checkpoint(kept[-1])
        self._seconds = float(state.notes["seconds"])
        self._skipped.update(dict.fromkeys(state.notes["skipped"]))
        self._load(state.part("model/"), state.part("optimizer/"))
        if self._average is not None:
            weights = [one.detach().clone() for _, one in self._trained]
            self._load(state.part("average/"), {})
            self._average = [one.detach().clone() for _, one in self._trained]
            self._put(weights)
        return state.step

    def _load(self, weights: dict[str, Tensor], memory: dict[str, Tensor]) -> None:
        optimizer: Any = getattr(self._optimizer, "optimizer", self._optimizer)
        kept: dict[str, dict[str, Tensor]] = {}
        for key, value in memory.items():
            name, _, entry = key.rpartition("/")
            kept.setdefault(name, {})[entry] = value
        if self.processes.sharded:
            from torch.distributed.checkpoint import state_dict as tools

            options = tools.StateDictOptions(full_state_dict=True, strict=False)
            tools.set_model_state_dict(self._module, dict[str, Any](weights), options=options)
            if kept:
                groups = [
                    {**{k: v for k, v in group.items() if k != "params"}, "params": [name for name, _ in self._trained]}
                    for group in optimizer.param_groups
                ]
                state: Any = {"state": kept, "param_groups": groups}
                tools.set_optimizer_state_dict(self._module, optimizer, state, options=options)
            return
        with torch.no_grad():
            for name, one in self._trained:
                if name not in weights or weights[name].shape != one.shape:
                    raise OutputError(
                        f"the checkpoints in {os.fspath(self.output)!r} are of another encoder ({name} differs): choose "
                        "another output folder, or begin anew with restart (--restart)"
                    )
                one.copy_(weights[name])
                if name in kept:
                    optimizer.state[one] = {
                        key: value if key == "step" else value.to(one.device) for key, value in kept[name].items()
                    }

    def _validate(self, done: int, log: Log) -> None:
        with self.averaged(), self._precision():
            sums, count = self.task.validate(self.processes.rank, self.processes.world)
        names = sorted(sums)
        if self.processes.world > 1:
            # A process without an image of its own has no names either.
            names = sorted(set(self.processes.gather(names)))
        totals = self.processes.sum([float(count), *(sums.get(name, 0.0) for name in names)])
        if totals[0]:
            means = {name: value / totals[0] for name, value in zip(names, totals[1:], strict=True)}
            log.write("validation", done, means)
            log.say(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in means.items()))

    # -- asking and agreeing

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGTERM and the first SIGINT end the run after the step; only the main thread hears of them."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def note(number: int, frame: object) -> None:
            self._signal = number
            if number == signal.SIGINT:  # who presses it twice means it
                signal.signal(signal.SIGINT, before[signal.SIGINT])

        before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                with suppress(TypeError):  # a handler that was not set from Python
                    signal.signal(number, handler)

    def _asked_to_stop(self) -> int:
        """The signal that one of the processes was sent, or 0."""
        mine = float(self._signal or 0)
        return int(mine if self.processes.world == 1 else max(self._everyones(mine)))

    def _agreed(self, due: bool) -> bool:
        """The first process's clock decides for all."""
        return due if self.processes.world == 1 else bool(self._everyones(float(due))[0])

    def _everyones(self, value: float) -> list[float]:
        gathered: Tensor = self.processes.accelerator.gather(torch.tensor([value], device=self.processes.device))
        return [float(one) for one in gathered]


def _optimizer(recipe: Recipe, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    chosen = recipe.optimizer
    if chosen.name == "sgd":
        return torch.optim.SGD(weights, lr=chosen.lr, momentum=chosen.momentum, weight_decay=chosen.weight_decay)
    kind = torch.optim.AdamW if chosen.name == "adamw" else torch.optim.Adam
    return kind(weights, lr=chosen.lr, betas=chosen.betas, weight_decay=chosen.weight_decay)


def _freeze_batch_norms(module: nn.Module) -> None:
    """Running statistics stay those of the original: adversarial batches must not move them."""
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.eval()
