"""Which device and which number type a model runs in."""

from __future__ import annotations

import torch

from ml_filter.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device a setting means; `auto` takes the first accelerator, else the CPU.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The encoder's type; `auto` is bfloat16 where the hardware multiplies it natively, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    if device.type == "cpu" and torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return torch.bfloat16
    return torch.float32
