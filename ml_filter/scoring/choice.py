"""Which engine, device and number type a corpus is scored with: chosen once for all that take part, and written down.

Two engines give scores that differ in their last digits. Every worker, rank and later run on the same output therefore
takes what the first one chose, so that its bytes do not depend on when, or where, a shard is scored.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Literal

import torch
from loguru import logger
from pydantic import BaseModel

from ml_filter.errors import ConfigError
from ml_filter.heads.device import choose_device, choose_dtype
from ml_filter.heads.engine import EncoderEngine
from ml_filter.heads.info import CONFIG_NAME
from ml_filter.heads.load import load_model, resolve_head
from ml_filter.scoring.config import ScoreConfig

_WORTH_MEASURING = 4 * 2**20
"""Bytes of input; of less, a measurement would take longer than the faster engine saves."""
_CLEARLY_FASTER = 1.05
_TEXTS, _TOKENS, _REPEATS = 4, 512, 3


class Choice(BaseModel):
    """What runs the encoder, where, in which number type, and why."""

    engine: Literal["torch", "openvino"]
    device: str
    dtype: Literal["float32", "bfloat16"]
    reason: str

    def settle(self, config: ScoreConfig) -> ScoreConfig:
        """The settings with this in the place of `auto`."""
        device = self.device if config.device == "auto" else config.device
        return config.model_copy(update={"engine": self.engine, "dtype": self.dtype, "device": device})


def choose(head: str | Path, config: ScoreConfig, input_bytes: int | None, threads: int | None) -> Choice | None:
    """Choose what the settings leave open; None where there is no encoder, or only the workers can know.

    On a CPU each engine is timed on one batch of the longest texts the head reads; OpenVINO is taken where it is
    clearly the faster. One that cannot run the encoder, or whose scores are off, is left out.

    Args:
        input_bytes: of the corpus, None where it is not known.
        threads: that each worker has, None: as many as torch takes.

    Raises:
        ConfigError: there is no such device here, or the engine that was asked for cannot run the encoder.
    """
    encoder = find_encoder(resolve_head(head))
    if encoder is None or (config.ray and config.worker_gpus):
        return None
    device = choose_device("cpu" if config.ray and config.device == "auto" else config.device)
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16" if choose_dtype(config.dtype, device) == torch.bfloat16 else "float32"
    )
    engine: Literal["torch", "openvino"] = "torch"
    if config.engine != "auto":
        engine, reason = config.engine, "as the settings say"
    elif device.type != "cpu":
        reason = "OpenVINO is for CPUs"
    elif input_bytes is not None and input_bytes < _WORTH_MEASURING:
        reason = f"less than {_WORTH_MEASURING // 2**20} MiB to score: not worth a measurement"
    else:
        settled = config.model_copy(update={"device": device.type, "dtype": dtype})
        engine, reason = _fastest(encoder, settled, threads)
    choice = Choice(engine=engine, device=device.type, dtype=dtype, reason=reason)
    logger.info(f"Scoring with {choice.engine} in {choice.dtype} on {choice.device}: {choice.reason}")
    return choice


def find_encoder(directory: Path) -> Path | None:
    """The directory of the encoder head in a head, which may be a stack or a cascade; None where it has none."""
    content = json.loads((directory / CONFIG_NAME).read_text())
    if "stack" in content:
        found = (find_encoder(directory / name) for name in content["stack"]["members"])
        return next((one for one in found if one is not None), None)
    if "cascade" in content:
        return find_encoder(directory / "encoder")
    return None if "hashing" in content or "static" in content else directory


def _fastest(encoder: Path, config: ScoreConfig, threads: int | None) -> tuple[Literal["torch", "openvino"], str]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        torch_speed = _tokens_a_second(encoder, config.model_copy(update={"engine": "torch"}))
        try:
            openvino_speed = _tokens_a_second(encoder, config.model_copy(update={"engine": "openvino"}))
        except ConfigError as error:
            return "torch", str(error)
    finally:
        torch.set_num_threads(before)
    reason = f"openvino reads {openvino_speed:,.0f} tokens/s, torch {torch_speed:,.0f}, of long texts"
    return "openvino" if openvino_speed > _CLEARLY_FASTER * torch_speed else "torch", reason


def _tokens_a_second(encoder: Path, config: ScoreConfig) -> float:
    engine = EncoderEngine(*load_model(encoder), config)
    ids = torch.ones(_TEXTS, min(_TOKENS, engine.model.config.max_tokens), dtype=torch.int64)
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + _REPEATS):
            start = time.perf_counter()
            engine.forward(ids, torch.ones_like(ids))
            seconds.append(time.perf_counter() - start)
    return ids.numel() / min(seconds[1:])
