"""Where to compute: names of devices, checked before hours of work depend on them."""

from __future__ import annotations


def resolve(name: str) -> str:
    """Return a device that is here; ``auto`` is CUDA if there is one. ValueError if there is no such device."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device is {name!r}; allowed: auto, cpu, or a device that is here: {reason}") from error
    return name
