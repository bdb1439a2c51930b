"""Random numbers that a training draws from torch's own generators: seeded in each step, and as before afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def own_random_numbers(device: torch.device) -> Iterator[None]:
    """The generators of the CPU and of a device are afterwards what they were."""
    devices = [device] if device.type == "cuda" else []
    state = torch.mps.get_rng_state() if device.type == "mps" else None
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            if state is not None:
                torch.mps.set_rng_state(state)


def seed(number: int, device: torch.device) -> None:
    """Seed those two, and not those of other devices, as `torch.manual_seed` does."""
    torch.default_generator.manual_seed(number)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(number)
    elif device.type == "mps":
        torch.mps.manual_seed(number)
