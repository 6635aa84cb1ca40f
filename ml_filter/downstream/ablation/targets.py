"""Texts that no arm is trained on, and how many bits a model needs for each of them.

The bits are those of lm-eval's `loglikelihood_rolling`: END before the first token, windows of one context, the last of
which reaches back so that it is full.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from loguru import logger

from ml_filter.documents.readers import read_shard
from ml_filter.documents.rejects import RejectsLog
from ml_filter.documents.sources import list_shards
from ml_filter.documents.tables import number_column
from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.errors import InputError
from ml_filter.location import write_atomically

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

HIGH, LOW = "high", "low"
MIN_DOCUMENTS, MAX_DOCUMENTS = 10, 10_000
_BATCH_WINDOWS = 16


@dataclass(frozen=True)
class TargetText:
    """A document of a target; `text` ends after `target_bytes`."""

    id: str
    text: str

    @property
    def bytes(self) -> int:
        """Length in UTF-8."""
        return len(self.text.encode())

    def beginning(self, most: int) -> TargetText:
        """The text up to a number of bytes, in whole characters."""
        return TargetText(self.id, self.text.encode()[:most].decode(errors="ignore"))


def write_targets(config: AblateConfig, directory: Path) -> dict[str, Path]:
    """Write the texts of each target to a file, once; its lines are those that lm-eval reads.

    Of documents with the same text, as far as it is read, one is a target: repeated ones would narrow the intervals.

    Raises:
        InputError: a target has too few documents or too many, or gold no scores.
    """
    paths = {name: directory / f"{name}.jsonl" for name in (HIGH, LOW, *config.targets)}
    for name, path in paths.items():
        if path.exists():
            continue
        texts: dict[str, TargetText] = {}
        repeated = 0
        for row in _rows(config, name):
            text = TargetText(*row).beginning(config.target_bytes)
            repeated += text.text in texts
            texts.setdefault(text.text, text)
            if len(texts) > MAX_DOCUMENTS:
                break
        if repeated:
            logger.warning(f"The target {name} has {repeated:,} documents with the text of another; they are left out")
        if len(texts) < MIN_DOCUMENTS:
            score = {HIGH: f" with a {config.gold_column} of at least {config.high:g}"}
            score[LOW] = f" with a {config.gold_column} of at most {config.low:g}"
            raise InputError(
                f"the target {name} has only {len(texts)} different documents{score.get(name, '')}; at least "
                f"{MIN_DOCUMENTS} are required"
            )
        if len(texts) > MAX_DOCUMENTS:
            raise InputError(
                f"the target {name} has more than {MAX_DOCUMENTS:,} documents, which take longer than training: draw "
                "a sample with ml-filter sample, and name that"
            )
        lines = (json.dumps(asdict(text), ensure_ascii=False) + "\n" for text in texts.values())
        write_atomically(path, "".join(lines).encode())
    return paths


def read_targets(path: Path) -> Iterator[TargetText]:
    """The texts in a file of `write_targets`."""
    with path.open(encoding="utf-8") as file:
        for line in file:
            yield TargetText(**json.loads(line))


def _rows(config: AblateConfig, name: str) -> Iterator[tuple[str, str]]:
    source = config.targets.get(name, config.gold)
    for shard in list_shards(source)[0]:
        for table in read_shard(shard, source, RejectsLog()):
            rows = zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True)
            if name in config.targets:
                yield from rows
                continue
            scores = number_column(table, config.gold_column, f"{shard.uri}, --gold-column").to_pylist()
            for row, score in zip(rows, scores, strict=True):
                if score is not None and (score >= config.high if name == HIGH else score <= config.low):
                    yield row


# --- Bits ------------------------------------------------------------------------------------------------------------


def text_bits(model: Any, tokenizer: Tokenizer, texts: Iterator[TargetText], context: int) -> Iterator[float]:
    """The bits that a model needs for each text."""
    import torch

    device = next(model.parameters()).device
    waiting: list[int] = []
    bits: dict[int, float] = {}
    windows: list[tuple[int, NDArray[np.int64], int]] = []

    def run() -> None:
        longest = max(len(tokens) for _, tokens, _ in windows)
        padded = np.zeros((len(windows), longest), np.int64)
        for row, (_, tokens, _) in zip(padded, windows, strict=True):
            row[: len(tokens)] = tokens
        batch = torch.from_numpy(padded).to(device)
        with torch.inference_mode(), mixed_precision(device):
            logits = model(input_ids=batch[:, :-1]).logits.float()
        losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="none")
        for (number, tokens, new), row in zip(windows, losses.view(len(windows), -1).double().cpu(), strict=True):
            bits[number] += float(row[len(tokens) - 1 - new : len(tokens) - 1].sum()) / math.log(2)
        windows.clear()

    for number, text in enumerate(texts):
        waiting.append(number)
        bits[number] = 0.0
        for window in _windows(np.array([0, *tokenizer.encode(text.text).ids]), context):
            windows.append((number, *window))
            if len(windows) == _BATCH_WINDOWS:
                run()
        while len(waiting) > 1 and (not windows or windows[0][0] > waiting[0]):
            yield bits.pop(waiting.pop(0))
    if windows:
        run()
    for number in waiting:
        yield bits.pop(number)


def _windows(tokens: NDArray[np.int64], context: int) -> Iterator[tuple[NDArray[np.int64], int]]:
    """Windows of at most `context` + 1 tokens, and how many at the end of each are predicted in it."""
    predicted, last = 0, len(tokens) - 1
    while predicted < last:
        end = min(predicted + context, last)
        yield tokens[max(0, end - context) : end + 1], end - predicted
        predicted = end


def mixed_precision(device: torch.device) -> torch.autocast:
    """Products in bfloat16 on a GPU that has them; float32 elsewhere."""
    import torch

    on = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, torch.bfloat16, enabled=on)
