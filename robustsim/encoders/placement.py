"""Where an encoder lives, and in which type: what people write, as torch's own."""

import torch

from robustsim.errors import InputError


def find_device(device: "str | torch.device | None") -> torch.device:
    """A device by its name; None for CUDA where there is one, else MPS, else the CPU.

    Raises:
        InputError: there is no such device, or this machine has none.
    """
    if device is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise InputError(f"{device!r} is no device: use 'cpu', 'cuda', 'cuda:1' or 'mps'") from error
    missing = {"cuda": not torch.cuda.is_available(), "mps": not torch.backends.mps.is_available()}
    if missing.get(place.type):
        raise InputError(f"this machine, or this build of torch, has no {place.type!r} device: use device='cpu'")
    return place
