"""Choose the device and the number type a model runs in."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping

import torch

from ml_filter.errors import ConfigError


def choose_device(name: str) -> torch.device:
    """The device for a setting; `auto` is the first accelerator, or else the CPU.

    Raises:
        ConfigError: this machine does not have the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and torch.cuda.device_count() > 1:
        name = f"cuda:{local_rank() % torch.cuda.device_count()}"
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return torch.device(name)


def usual_batch_tokens(device: torch.device) -> int:
    """Default limit of padded tokens per batch: a CPU gains nothing from more, a GPU does."""
    return 65_536 if device.type == "cuda" else 4096


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this process among those that torchrun or srun started on this machine; 0 without them."""
    ranks = (environment[name] for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environment)
    return int(next(ranks, 0))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The encoder's number type; `auto` is bfloat16 if the hardware multiplies it natively, else float32."""
    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    is_native = False
    if device.type == "cuda":
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        is_native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    elif device.type == "cpu":
        is_native = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.bfloat16 if is_native else torch.float32
