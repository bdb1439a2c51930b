"""The processes that share a run: what each knows, what all agree on, and what the first does for all."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn

from robustsim.errors import InputError, MissingDependencyError, OutputError

# What accelerate may have been told to train with, and the loop cannot. Names of its DistributedType.
_FOREIGN = ("DEEPSPEED", "MEGATRON_LM", "XLA", "TPU")


class Processes:
    """The processes that share a run, through accelerate: one, or those that `accelerate launch` has started.

    Attributes:
        accelerator: accelerate's own.
        device: this process's.
        rank: this process's number.
        world: how many there are.
        sharded: whether weights are spread over them (FSDP).

    Args:
        cpu: work on the CPU even where there is a GPU.

    Raises:
        InputError: accelerate was launched, or is used in this process already, in a way that does not go with this.
        MissingDependencyError: accelerate is not installed.
    """

    def __init__(self, *, cpu: bool = False) -> None:
        try:
            from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs
        except ImportError as error:
            raise MissingDependencyError('training needs accelerate: pip install "robustsim[training]"') from error
        none = not (torch.cuda.is_available() or torch.backends.mps.is_available())
        try:
            # Precision is set by the recipe, in the loop: accelerate's is the same for a whole process's life.
            self.accelerator = Accelerator(
                cpu=cpu or none,
                mixed_precision="no",
                kwargs_handlers=[
                    DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                    InitProcessGroupKwargs(timeout=timedelta(hours=2)),
                ],
            )
        except ValueError as error:
            raise InputError(f"accelerate cannot train here: {error}") from error
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        if plugin is not None:  # which the second Accelerator of a process forgets
            self.accelerator.state.distributed_type = DistributedType.FSDP
        self.sharded = plugin is not None
        kind = self.accelerator.distributed_type.name
        if kind in _FOREIGN or (plugin is not None and getattr(plugin, "fsdp_version", 1) != 2):
            raise InputError(
                f"accelerate was launched for {'the first version of FSDP' if self.sharded else kind}: launch it with "
                "--multi_gpu, or with --use_fsdp --fsdp_version 2"
            )
        self.device: torch.device = self.accelerator.device
        self.rank: int = self.accelerator.process_index
        self.world: int = self.accelerator.num_processes

    @property
    def is_main(self) -> bool:
        """Whether this one writes."""
        return self.rank == 0

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[Any, torch.optim.Optimizer]:
        """A module as all processes train it together, and its optimiser."""
        wrapped, prepared = self.accelerator.prepare(module, optimizer)
        # Accelerate's own around it would heed settings of accelerate's that other code of the process may change.
        return wrapped, getattr(prepared, "optimizer", prepared)

    def sum(self, values: list[float]) -> list[float]:
        """Numbers added up over all processes."""
        return [sum(column) for column in zip(*self.everyones(*values), strict=True)]

    def everyones(self, *values: float) -> list[list[float]]:
        """Some numbers of each process, (world, K); in float64 where the device has it."""
        if self.world == 1 or not values:
            return [list(values)] * self.world
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        mine = torch.tensor([values], dtype=kind, device=self.device)
        gathered: Tensor = self.accelerator.gather(mine)
        rows: list[list[float]] = gathered.tolist()
        return rows

    def gather(self, items: list[str]) -> list[str]:
        """Everybody's lines."""
        if self.world == 1:
            return items
        from accelerate.utils import gather_object

        return list(gather_object(items))

    def on_main(self, work: Callable[[], object]) -> None:
        """Let the first process do something, while the others wait; where it fails, none goes on.

        Raises:
            Exception: what the work has raised; an OutputError in the other processes.
        """
        problem: Exception | None = None
        if self.is_main:
            try:
                work()
            except Exception as error:
                problem = error
        failed = any(row[0] for row in self.everyones(float(problem is not None)))
        if problem is not None:
            raise problem
        if failed:
            raise OutputError("the first process could not do its work, and has said why")

    def wait(self) -> None:
        """Until all are here."""
        self.accelerator.wait_for_everyone()
