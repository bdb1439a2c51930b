"""The loop: any task, on one device or many, resumable to the bit."""

import os
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from robustsim.encoders.encoder import Encoder
from robustsim.encoders.weights import whole_file
from robustsim.errors import CorruptFileError, InputError, ObjectiveError, OutputError, TrainingError
from robustsim.training.loop.clock import Clock
from robustsim.training.loop.log import SKIPPED, Log
from robustsim.training.loop.processes import Processes
from robustsim.training.loop.schedule import learning_rate
from robustsim.training.loop.seeds import own_random_numbers, seed
from robustsim.training.loop.signals import Signals, Stopped
from robustsim.training.loop.state import (
    Checkpoint,
    find_checkpoints,
    finite,
    read_checkpoint,
    set_aside,
    write_checkpoint,
)
from robustsim.training.loop.tally import Skipped, Tally
from robustsim.training.loop.trained import Trained
from robustsim.training.recipes.files import Recipe
from robustsim.training.sources.stream import mix

# Steps between lines of the log.
_LOG_EVERY = 10


class Task(Protocol):
    """What is trained, and on what; `Adversarial` is one.

    Attributes:
        unit: what a sample is called.
        samples: how many there are to train on.
        total: updates in all.
        began_as: the SHA-256 of the weights that it starts from, and of those that it compares with.
        device: where everything happens.
        module: what is trained; its parameters that require gradients are.
    """

    unit: str
    samples: int
    total: int
    began_as: str
    device: torch.device
    module: Any

    def batches(self, spans: Iterator[range]) -> Iterator[Any]:
        """A batch for each range of positions."""

    def terms(self, module: Any, through: Any, batch: Any, step: int) -> dict[str, Tensor]:
        """The named terms whose sum is minimised."""

    def state(self, step: int) -> dict[str, float]:
        """What changes along the training, for the log."""

    def validate(
        self, through: Any, rank: int, world: int, stopped: Callable[[], bool] = ...
    ) -> tuple[dict[str, float], int]:
        """Sums over this process's share of what is judged, and how many that are."""

    def encoder(self, weights: dict[str, Tensor]) -> Encoder:
        """The result with these weights, by the names of the module."""


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

    Raises:
        InputError: the batch cannot be shared.
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
        self._tensorboard, self._progress = tensorboard, progress
        share = processes.world * recipe.accumulate
        if recipe.batch_size % share:
            raise InputError(
                f"batch_size {recipe.batch_size} cannot be shared by {processes.world} processes in "
                f"{recipe.accumulate} parts each: change batch_size or accumulate"
            )
        self._part = recipe.batch_size // share
        if recipe.compile:
            task.module.student.compile()
        self._trained = Trained(task.module, recipe, processes)
        self._signals = Signals()
        self._tally, self._skipped = Tally(processes), Skipped(skipped, processes)

    def run(self) -> dict[str, Tensor]:
        """Train to the end; the resulting weights by the names of the module, whole on the first process.

        Raises:
            Stopped: SIGTERM or SIGINT; the state is saved.
            TrainingError: a loss or a weight that is not finite; the last good checkpoint is kept.
            CorruptFileError: no checkpoint is whole.
            OutputError: the state cannot be written, or is of another run.
        """
        start, seconds, problems = self._resume()
        task, recipe = self.task, self.recipe
        log = Log(
            self.output,
            start,
            task.total,
            recipe.batch_size,
            task.unit,
            active=self.processes.is_main,
            tensorboard=self._tensorboard,
            progress=self._progress,
        )
        try:
            for problem in problems:
                log.note(start, f"{problem}; the run goes on from step {start}")
            with own_random_numbers(self.processes.device), self._signals:
                self._train(start, seconds, log)
        finally:
            log.close()
        return self._trained.result()

    # -- steps

    def _train(self, start: int, seconds: float, log: Log) -> None:
        recipe, total = self.recipe, self.task.total
        clock = Clock(seconds, start)
        # A run may have been killed between a checkpoint and the judgement that belongs to it.
        missed = self.processes.is_main and start > log.validated and self._is_judged(start)
        if any(row[0] for row in self.processes.everyones(float(missed))):
            self._validate(start, log)
        batches: Any = self.task.batches(self._spans(start))
        try:
            for step in range(start, total):
                self._tally.add(self._step(batches, step), step)
                log.advance()
                done = step + 1
                stop, due = self._agree(clock.since_save > 60 * recipe.checkpoints.minutes, done)
                if done % _LOG_EVERY == 0 or done == total:
                    self._tell(step, clock, log)
                if self._is_judged(done) and not stop:
                    with clock.paused():
                        self._validate(done, log)
                    stop, _ = self._agree(False, done)
                every = recipe.checkpoints.every
                if done == total or stop or due or (every and done % every == 0):
                    with clock.paused():
                        self._save(done, clock.seconds)
                    clock.saved()
                if stop:
                    raise Stopped(done, stop)
        finally:
            batches.close()

    def _step(self, batches: Iterator[Any], step: int) -> dict[str, Tensor]:
        recipe, trained = self.recipe, self._trained
        seed(mix(recipe.seed, step, self.processes.rank, 4), self.processes.device)  # of dropout
        trained.begin(self._rate(step))
        seen: dict[str, Tensor] = {}
        for part in range(recipe.accumulate):
            batch = next(batches)
            last = part == recipe.accumulate - 1
            with nullcontext() if last else self.processes.accelerator.no_sync(trained.module):
                with self._precision():
                    try:
                        terms = self.task.terms(trained.module, trained.through, batch, step)
                    except ObjectiveError as error:
                        raise self._spoilt(step + 1, f"in the inner attack: {error}") from error
                    loss = torch.stack(list(terms.values())).sum() / recipe.accumulate
                torch.autograd.backward(loss)
            for name, value in {**terms, "loss": loss * recipe.accumulate}.items():
                value = value.detach().float() / recipe.accumulate
                seen[name] = seen[name] + value if name in seen else value
        if recipe.optimizer.clip_norm is not None:
            seen["gradient_norm"] = trained.clip(recipe.optimizer.clip_norm)
        trained.update(step)
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

    # -- what they tell

    def _agree(self, due: bool, done: int) -> tuple[int, bool]:
        """The signal that one of the processes was sent, or 0; and whether the first one's clock asks for a checkpoint.

        Raises:
            TrainingError: a loss of one of them is not finite.
        """
        alone, device = self.processes.world == 1, self.processes.device.type
        look = not alone or device == "cpu" or done % _LOG_EVERY == 0 or done == self.task.total
        bad = self._tally.bad if look else -1
        rows = self.processes.everyones(float(self._signals.number), float(due), float(bad))
        if (step := min((int(row[2]) for row in rows if row[2] >= 0), default=-1)) >= 0:
            names = self._tally.bad_names or ["the loss of another process"]
            raise self._spoilt(step + 1, f"{names[0]} is not finite")
        return int(max(row[0] for row in rows)), bool(rows[0][1])

    def _spoilt(self, done: int, what: str) -> TrainingError:
        kept = find_checkpoints(self.output)
        where = f"the last good state is {os.fspath(kept[-1])!r}" if kept else "no checkpoint was written yet"
        return TrainingError(
            f"step {done}: {what}. The training stopped; {where}. Lower optimizer.lr, set optimizer.clip_norm or "
            "let the radius grow (attack.warmup), in a new output folder"
        )

    def _tell(self, step: int, clock: Clock, log: Log) -> None:
        """A line of the log."""
        means = self._tally.means()
        rate = clock.rate(step + 1) * self.recipe.batch_size
        log.write(
            "train",
            step + 1,
            {
                **means,
                **self.task.state(step),
                "lr": self._rate(step),
                f"{self.task.unit}s_per_second": rate,
                "seconds": clock.seconds,
                "skipped": len(self._skipped.share()),
            },
        )
        log.show({"loss": means["loss"]})

    def _is_judged(self, done: int) -> bool:
        often = self.recipe.validation.every
        return done == self.task.total or bool(often and done and done % often == 0)

    def _validate(self, done: int, log: Log) -> None:
        """Judge, unless a signal comes meanwhile: the next go does it then."""
        processes = self.processes
        # No process can do a forward pass alone where weights are sharded: there, each judges everything to its end.
        rank, world = (0, 1) if processes.sharded else (processes.rank, processes.world)

        def stopped() -> bool:
            return self._signals.number > 0 and not processes.sharded

        with self._trained.averaged(), self._precision():
            try:
                sums, count = self.task.validate(self._trained.through, rank, world, stopped)
            except ObjectiveError as error:
                raise self._spoilt(done, f"in the validation: {error}") from error
        # A process without an image of its own has no names either.
        names = sorted(set(processes.gather(sorted(sums))))
        totals = processes.sum([float(stopped()), float(count), *(sums.get(name, 0.0) for name in names)])
        if totals[0] or not totals[1]:
            return
        means = {name: value / totals[1] for name, value in zip(names, totals[2:], strict=True)}
        log.write("validation", done, {**means, "skipped": len(self._skipped.share())})
        log.say(f"step {done}: " + ", ".join(f"{name} {value:.4g}" for name, value in means.items()))

    # -- state

    def _save(self, done: int, seconds: float) -> None:
        """Write a checkpoint, if everything in it is finite."""
        tensors = self._trained.state()
        if any(row[0] for row in self.processes.everyones(float(not finite(tensors)))):
            # On a GPU the loss that has done it may not have been looked at yet.
            step = done if self._tally.bad < 0 else self._tally.bad + 1
            raise self._spoilt(step, "a weight, or what the optimiser remembers of it, is not finite")
        skipped = self._skipped.share()
        notes = {"seconds": seconds, "skipped": skipped, "began_as": self.task.began_as, **self._tally.notes()}

        def write() -> None:
            write_checkpoint(self.output, Checkpoint(done, tensors, notes), self.recipe.checkpoints.keep)
            with whole_file(self.output / SKIPPED) as place:
                place.write_text("".join(f"{line}\n" for line in skipped), encoding="utf-8")

        self.processes.on_main(write)

    def _resume(self) -> tuple[int, float, list[str]]:
        """Load the newest checkpoint that is whole: its step, the seconds so far, and what is wrong with newer ones."""
        kept, damaged, problems = find_checkpoints(self.output), [], []
        state = None
        while kept and state is None:
            try:
                state = read_checkpoint(kept[-1])
            except CorruptFileError as error:
                problems.append(str(error))
                damaged.append(kept.pop())
        steps = {row[0] for row in self.processes.everyones(-1.0 if state is None else float(state.step))}
        if len(steps) > 1:
            raise OutputError(
                f"not every process sees the same checkpoints in {os.fspath(self.output)!r}: it must lie on a disk "
                "that all of them share"
            )
        if state is None and damaged:
            raise CorruptFileError(f"{'; '.join(problems)}; no other is left: begin anew with restart (--restart)")
        self.processes.on_main(lambda: set_aside(damaged))
        if state is None:
            return 0, 0.0, []
        notes = state.notes
        if notes.get("began_as", self.task.began_as) != self.task.began_as:
            raise OutputError(
                f"{self.recipe.encoder!r}, or its original, is another encoder than when the run in "
                f"{os.fspath(self.output)!r} began: choose another folder, or begin anew with restart (--restart)"
            )
        self._trained.load(state, self.output)
        self._skipped.resume(notes["skipped"])
        self._tally.resume(notes)
        return state.step, float(notes["seconds"]), problems
