"""Choose the engine, device and number type for a corpus: once per output directory, and recorded there.

Two engines give scores that differ in the last digits. Therefore every worker, rank and later run on an output uses the
choice of the first one: the bytes of a shard do not depend on when or where it is scored.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

import torch
from loguru import logger
from pydantic import BaseModel

from ml_filter.errors import ConfigError
from ml_filter.heads.device import choose_device, choose_dtype
from ml_filter.heads.kinds import encoder_directory
from ml_filter.heads.kinds.encoder import EncoderHead
from ml_filter.heads.load import load_model, resolve_head
from ml_filter.scoring.config import ScoreConfig

_MIN_BYTES = 4 * 2**20
"""With less input, measuring would take longer than the faster engine saves."""
_CLEARLY_FASTER = 1.05
_TEXTS, _TOKENS, _REPEATS = 4, 512, 3


class EngineChoice(BaseModel):
    """What runs the encoder, where, in which number type, and why."""

    engine: Literal["torch", "openvino"]
    device: str
    dtype: Literal["float32", "bfloat16"]
    reason: str

    def apply(self, config: ScoreConfig) -> ScoreConfig:
        """The settings with `auto` replaced by this choice."""
        device = self.device if config.device == "auto" else config.device
        return config.model_copy(update={"engine": self.engine, "dtype": self.dtype, "device": device})


def choose_engine(
    head: str | Path, config: ScoreConfig, input_bytes: int | None, threads: int | None
) -> EngineChoice | None:
    """Choose what the settings leave open. None if the head has no encoder, or if each Ray worker has its own GPU.

    On a CPU, both engines are timed on one batch of the longest texts that the head reads. OpenVINO is chosen if it is
    clearly faster; it is skipped if it cannot run the encoder or fails its self-test.

    Args:
        input_bytes: size of the corpus, None if unknown.
        threads: of each worker; None means torch's default.

    Raises:
        ConfigError: the device is not available, or the requested engine cannot run the encoder.
    """
    encoder = encoder_directory(resolve_head(head))
    if encoder is None or (config.ray and config.worker_gpus):
        return None
    device = choose_device("cpu" if config.ray and config.device == "auto" else config.device)
    dtype: Literal["float32", "bfloat16"] = (
        "bfloat16" if choose_dtype(config.dtype, device) == torch.bfloat16 else "float32"
    )
    engine: Literal["torch", "openvino"] = "torch"
    if config.engine != "auto":
        engine, reason = config.engine, "set in the configuration"
    elif device.type != "cpu":
        reason = "OpenVINO is used on CPUs only"
    elif input_bytes is not None and input_bytes < _MIN_BYTES:
        reason = f"less than {_MIN_BYTES // 2**20} MiB to score, so the engines were not measured"
    else:
        engine, reason = _faster_engine(
            encoder, config.model_copy(update={"device": device.type, "dtype": dtype}), threads
        )
    choice = EngineChoice(engine=engine, device=device.type, dtype=dtype, reason=reason)
    logger.info(f"Scoring with {choice.engine} in {choice.dtype} on {choice.device}: {choice.reason}")
    return choice


def _faster_engine(encoder: Path, config: ScoreConfig, threads: int | None) -> tuple[Literal["torch", "openvino"], str]:
    default_threads = torch.get_num_threads()
    torch.set_num_threads(threads or default_threads)
    try:
        torch_speed = _tokens_per_second(encoder, config.model_copy(update={"engine": "torch"}))
        try:
            openvino_speed = _tokens_per_second(encoder, config.model_copy(update={"engine": "openvino"}))
        except ConfigError as error:
            return "torch", str(error)
    finally:
        torch.set_num_threads(default_threads)
    reason = f"on long texts openvino reads {openvino_speed:,.0f} tokens/s, torch {torch_speed:,.0f}"
    return "openvino" if openvino_speed > _CLEARLY_FASTER * torch_speed else "torch", reason


def _tokens_per_second(encoder: Path, config: ScoreConfig) -> float:
    head = EncoderHead(*load_model(encoder), config)
    ids = torch.ones(_TEXTS, min(_TOKENS, head.model.config.max_tokens), dtype=torch.int64)
    seconds = []
    with torch.inference_mode():
        for _ in range(1 + _REPEATS):  # the first one only warms up
            start = time.perf_counter()
            head.forward(ids, torch.ones_like(ids))
            seconds.append(time.perf_counter() - start)
    return ids.numel() / min(seconds[1:])
