"""Choose the device and the number type a model runs in."""

from __future__ import annotations

import os
import platform
import time
import timeit
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING

from ml_filter.errors import ConfigError

if TYPE_CHECKING:
    import torch

_CLEARLY_FASTER = 1.2


def choose_device(name: str) -> torch.device:
    """The device for a setting; `auto` is the first accelerator, or else the CPU.

    Raises:
        ConfigError: this machine does not have the device.
    """
    import torch

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
    """Default limit of padded tokens per batch. On a CPU, larger batches leave its caches: 4096 take a fifth longer."""
    return 65_536 if device.type == "cuda" else 2048


def local_rank(environment: Mapping[str, str] = os.environ) -> int:
    """Number of this process among those that torchrun or srun started on this machine; 0 without them."""
    ranks = (environment[name] for name in ("LOCAL_RANK", "SLURM_LOCALID") if name in environment)
    return int(next(ranks, 0))


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """The encoder's number type; `auto` is bfloat16 if the hardware multiplies it faster than float32."""
    import torch

    if name != "auto":
        return torch.bfloat16 if name == "bfloat16" else torch.float32
    is_faster = multiplies_bfloat16(device) and (device.type != "cpu" or _bfloat16_speedup() > _CLEARLY_FASTER)
    return torch.bfloat16 if is_faster else torch.float32


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device has instructions for products of bfloat16. On a CPU they may be slower than float32."""
    import torch

    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu" and platform.machine() in ("x86_64", "AMD64"):
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type == "cpu" and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@lru_cache
def _bfloat16_speedup() -> float:
    """How much faster one core multiplies matrices of an encoder's shape in bfloat16 than in float32.

    It is 0.4 on an Intel Xeon with AVX-512 but no AMX, and 2.8 on an AMD EPYC. Measured in the CPU time of one thread,
    so that other processes do not change the result, in about 0.1 s.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _product_seconds(torch.float32) / _product_seconds(torch.bfloat16)
    finally:
        torch.set_num_threads(threads)


def _product_seconds(dtype: torch.dtype) -> float:
    import torch
    from torch.nn import functional

    states, weights = torch.ones(512, 384, dtype=dtype), torch.ones(1536, 384, dtype=dtype)
    return min(timeit.repeat(lambda: functional.linear(states, weights), timer=time.thread_time, repeat=5, number=1))
