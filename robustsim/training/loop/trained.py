"""What a run changes: the trained weights, what the optimiser remembers of them, and their average."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from robustsim.errors import OutputError
from robustsim.training.loop.processes import Processes
from robustsim.training.loop.schedule import averaging
from robustsim.training.loop.state import Checkpoint
from robustsim.training.recipes.files import Recipe


class Trained:
    """The trained parameters of a module, wrapped for the processes that share it.

    Attributes:
        module: the module as it is called in a step.
        through: as it is called where no weight needs a gradient: the plain module, or the wrapper where only that has
            whole weights.

    Args:
        module: what is trained; its parameters that require gradients are.
        recipe: how.
        processes: who shares it.
    """

    def __init__(self, module: nn.Module, recipe: Recipe, processes: Processes) -> None:
        self._recipe, self._processes = recipe, processes
        named = [(name, one) for name, one in module.named_parameters() if one.requires_grad]
        optimizer = _optimizer(recipe, [one for _, one in named])
        self.module, self._optimizer = processes.prepare(module, optimizer)
        if processes.sharded:  # which puts other parameters in the place of ours
            found = [(name, one) for name, one in self.module.named_parameters() if one.requires_grad]
            named = [(name.replace("_checkpoint_wrapped_module.", ""), one) for name, one in found]
        self.through: Any = self.module if processes.sharded else module
        self._named: list[tuple[str, nn.Parameter]] = named
        self._average = [one.detach().clone() for _, one in named] if recipe.ema is not None else None

    # -- a step

    def begin(self, rate: float) -> None:
        """Train mode, no gradients, and this learning rate; times each tensor's size where it is relative."""
        for group in self._optimizer.param_groups:
            group["lr"] = rate * group["size"]
        self.module.train()
        for part in self.module.modules():
            # Running statistics stay those of the original: adversarial batches must not move them.
            if isinstance(part, nn.modules.batchnorm._BatchNorm):
                part.eval()
        self._optimizer.zero_grad()

    def clip(self, norm: float) -> Tensor:
        """Shorten the gradients to a norm; the one they had, ()."""
        found = nn.utils.clip_grad_norm_([one for _, one in self._named], norm).detach()
        whole: Tensor = found.full_tensor() if hasattr(found, "full_tensor") else found
        return whole

    def update(self, step: int) -> None:
        """Let the weights follow their gradients, and the average the weights."""
        self._optimizer.step()
        if self._average is None:
            return
        keep = averaging(step, self._recipe.ema or 0.0)
        with torch.no_grad():
            for mean, (_, weight) in zip(self._average, self._named, strict=True):
                mean.lerp_(weight.detach(), 1 - keep)

    # -- what is kept

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The average in the place of the weights, where there is one."""
        if self._average is None:
            yield
            return
        weights = [one.detach().clone() for _, one in self._named]
        self._put(self._average)
        try:
            yield
        finally:
            self._put(weights)

    def result(self) -> dict[str, Tensor]:
        """The weights by the names of the module, the average where there is one; whole, on the first process."""
        with self.averaged():
            return {name: value.clone() for name, value in self._weights().items()}

    def state(self) -> dict[str, Tensor]:
        """Everything that a checkpoint needs, by its names there; whole, on the first process."""
        tensors = {f"model/{name}": value for name, value in self._weights().items()}
        tensors |= {f"optimizer/{name}": value for name, value in self._memory().items()}
        if self._average is not None:
            tensors |= {f"average/{name}": value for name, value in self.result().items()}
        return tensors

    def load(self, checkpoint: Checkpoint, where: "str | os.PathLike[str]") -> None:
        """Take over a checkpoint.

        Raises:
            OutputError: it is of another encoder.
        """
        self._load(checkpoint.part("model/"), where)
        self._remember(checkpoint.part("optimizer/"))
        if self._average is not None:
            weights = [one.detach().clone() for _, one in self._named]
            self._load(checkpoint.part("average/"), where)
            self._average = [one.detach().clone() for _, one in self._named]
            self._put(weights)

    def _put(self, values: list[Tensor]) -> None:
        with torch.no_grad():
            for value, (_, weight) in zip(values, self._named, strict=True):
                weight.copy_(value)
        self._forget_gathered()

    def _forget_gathered(self) -> None:
        """Where weights are sharded, the last forward pass may have left them whole: these are of before."""
        if self._processes.sharded:
            for part in self.module.modules():
                if hasattr(part, "reshard"):
                    part.reshard()

    def _weights(self) -> dict[str, Tensor]:
        if not self._processes.sharded:
            return {name: one.detach() for name, one in self._named}
        from torch.distributed.checkpoint import state_dict as tools

        options = tools.StateDictOptions(full_state_dict=True, cpu_offload=True)
        whole: Any = tools.get_model_state_dict(self.module, options=options)
        trained = {name for name, _ in self._named}
        return {name: value for name, value in whole.items() if name in trained}

    def _memory(self) -> dict[str, Tensor]:
        """`<parameter>/<entry>`, what the optimiser remembers."""
        if not self._processes.sharded:
            kept: dict[str, Any] = {name: self._optimizer.state.get(one, {}) for name, one in self._named}
        else:
            from torch.distributed.checkpoint import state_dict as tools

            options = tools.StateDictOptions(full_state_dict=True, cpu_offload=True)
            whole: Any = tools.get_optimizer_state_dict(self.module, self._optimizer, options=options)
            kept = whole.get("state", {})
        return {
            f"{name}/{key}": torch.as_tensor(value)
            for name, entries in kept.items()
            for key, value in entries.items()
            if value is not None
        }

    def _load(self, weights: dict[str, Tensor], where: "str | os.PathLike[str]") -> None:
        theirs = {name: value.shape for name, value in weights.items()}
        ours = {name: one.shape for name, one in self._named}
        differing = [name for name in {**ours, **theirs} if ours.get(name) != theirs.get(name)]
        if differing:
            raise OutputError(
                f"the checkpoints in {os.fspath(where)!r} are of another encoder ({differing[0]} differs): choose "
                "another output folder, or begin anew with restart (--restart)"
            )
        if self._processes.sharded:
            from torch.distributed.checkpoint import state_dict as tools

            options = tools.StateDictOptions(full_state_dict=True, strict=False)
            tools.set_model_state_dict(self.module, dict[str, Any](weights), options=options)
            self._forget_gathered()
            return
        self._put([weights[name] for name, _ in self._named])

    def _remember(self, memory: dict[str, Tensor]) -> None:
        kept: dict[str, dict[str, Tensor]] = {}
        for key, value in memory.items():
            name, _, entry = key.rpartition("/")
            kept.setdefault(name, {})[entry] = value
        if self._processes.sharded:
            if not kept:  # plain SGD
                return
            from torch.distributed.checkpoint import state_dict as tools

            names = {id(one): name for name, one in self._named}
            groups = [
                {**group, "params": [names[id(one)] for one in group["params"]]}
                for group in self._optimizer.param_groups
            ]
            state: Any = {"state": kept, "param_groups": groups}
            options = tools.StateDictOptions(full_state_dict=True)
            tools.set_optimizer_state_dict(self.module, self._optimizer, state, options=options)
            return
        for name, one in self._named:
            if name in kept:
                # Laid out in memory as the optimiser itself does, like the weight; it counts steps where it is fused
                # beside the weight, and else on the CPU.
                steps = one.device if _on_gpu([one]) else "cpu"
                self._optimizer.state[one] = {
                    key: value.to(steps) if key == "step" else torch.empty_like(one.detach()).copy_(value)
                    for key, value in kept[name].items()
                }


def _optimizer(recipe: Recipe, weights: list[nn.Parameter]) -> torch.optim.Optimizer:
    chosen = recipe.optimizer
    groups: list[dict[str, Any]] = [{"params": weights, "size": 1.0}]
    if chosen.relative:
        groups = [{"params": [one], "size": _size(one)} for one in weights]
    # One kernel for each group: with a group for each tensor, dozens would take longer than a small encoder's forward.
    common: dict[str, Any] = {"lr": chosen.lr, "weight_decay": chosen.weight_decay, "fused": _on_gpu(weights) or None}
    if chosen.name == "sgd":
        return torch.optim.SGD(groups, momentum=chosen.momentum, **common)
    kind = torch.optim.AdamW if chosen.name == "adamw" else torch.optim.Adam
    return kind(groups, betas=chosen.betas, **common)


def _size(weight: Tensor) -> float:
    """The root mean square of a tensor, at least 1e-3, so that zeros move too (Adafactor, Shazeer and Stern 2018)."""
    return max(1e-3, float(weight.detach().double().square().mean().sqrt()))


def _on_gpu(weights: list[nn.Parameter]) -> bool:
    return all(one.device.type == "cuda" for one in weights)
