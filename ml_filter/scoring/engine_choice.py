"""Choose the engine, device and number type for a corpus: once per output directory, and recorded there.

Two engines give scores that differ in the last digits. Therefore every worker, rank and later run on an output uses the
choice of the first one: the bytes of a shard do not depend on when or where it is scored.

Which engine and number type are the fastest on a CPU depends on the processor, the encoder and the lengths of the
texts. Therefore they are timed on documents of the corpus, unless that would take longer than it could save.
"""

from __future__ import annotations

import math
import time
import timeit
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import NamedTuple

import torch
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.readers import InputShard, known_rows, read_records
from ml_filter.documents.rejects import RejectsLog
from ml_filter.errors import ConfigError
from ml_filter.heads.batching import length_batches, pad, split_windows, token_ids
from ml_filter.heads.device import choose_device, choose_dtype, multiplies_bfloat16
from ml_filter.heads.kinds import encoder_directory
from ml_filter.heads.kinds.encoder import EncoderHead
from ml_filter.heads.model import load_model
from ml_filter.heads.store import fetch_head
from ml_filter.scoring.config import Dtype, Engine, EngineChoice, ScoreConfig

_MIN_BYTES = 4 * 2**20
_MAX_SHARE = 0.05
"""Of the time that scoring takes: no further candidate is timed after that."""
_MAX_SECONDS = 2.0
"""When the batches of one candidate have taken this long, no further batch is timed."""
_CLEARLY_FASTER, _CLEARLY_SLOWER = 0.97, 1.25
_SHARDS, _TEXTS, _BATCHES = 8, 128, 4

Batch = tuple[torch.Tensor, torch.Tensor]

_DTYPES: dict[torch.dtype, Dtype] = {torch.float32: "float32", torch.bfloat16: "bfloat16"}


class Candidate(NamedTuple):
    """What can run the encoder, in which number type."""

    engine: Engine
    dtype: Dtype

    def __str__(self) -> str:
        return f"{self.engine} {self.dtype}"


def choose_engine(
    head: str | Path, config: ScoreConfig, source: SourceConfig, shards: Sequence[InputShard], threads: int | None
) -> EngineChoice | None:
    """Choose what the settings leave open. None if the head has no encoder, or if each Ray worker has its own GPU.

    On a CPU, the candidates are timed on a few batches of the corpus, those first that are probably the fastest. No
    further one is timed after a twentieth of the time in which the fastest so far would score the corpus.

    Args:
        threads: of each worker; None means torch's default.

    Raises:
        ConfigError: the device is not available, or no candidate can run the encoder.
    """
    encoder = encoder_directory(Path(head) if Path(head).is_dir() else fetch_head(head).directory)
    if encoder is None or (config.ray and config.worker_gpus):
        return None
    device = choose_device("cpu" if config.ray and config.device == "auto" else config.device)
    candidates = _candidates(config, device)
    size = sum(math.inf if shard.size is None else shard.size for shard in shards)
    chosen = candidates[0]
    if len(candidates) == 1 and config.engine == "auto" and device.type != "cpu":
        reason = "OpenVINO is used on CPUs only"
    elif len(candidates) == 1:
        reason = "set in the configuration"
    elif size < _MIN_BYTES:
        reason = f"less than {_MIN_BYTES // 2**20} MiB to score, so the engines were not timed"
    elif not (texts := list(_sample(shards, source))):
        reason = "no document could be read to time the engines"
    else:
        documents = known_rows(shards) or size * len(texts) / sum(len(text.encode(errors="replace")) for text in texts)
        settings = config.model_copy(update={"device": device.type})
        default_threads = torch.get_num_threads()
        torch.set_num_threads(threads or default_threads)
        try:
            chosen, reason = _fastest(candidates, encoder, settings, texts, documents / config.workers)
        finally:
            torch.set_num_threads(default_threads)
    choice = EngineChoice(engine=chosen.engine, device=device.type, dtype=chosen.dtype, reason=reason)
    logger.info(f"Scoring with {choice.engine} in {choice.dtype} on {choice.device}: {choice.reason}")
    return choice


def _candidates(config: ScoreConfig, device: torch.device) -> list[Candidate]:
    """What the settings allow, the probably fastest first: torch, in the number type of the faster matrix products."""
    dtype = _DTYPES[choose_dtype(config.dtype, device)]
    if device.type != "cpu":
        return [Candidate("torch" if config.engine == "auto" else config.engine, dtype)]
    engines: Sequence[Engine] = ("torch", "openvino") if config.engine == "auto" else (config.engine,)
    is_open = config.dtype == "auto" and multiplies_bfloat16(device)
    dtypes = sorted(_DTYPES.values(), key=dtype.__ne__) if is_open else [dtype]
    return [Candidate(engine, dtype) for dtype, engine in product(dtypes, engines)]


def _sample(shards: Sequence[InputShard], source: SourceConfig) -> Iterator[str]:
    """The first texts of some shards. Unreadable ones are left out; scoring will report them."""
    chosen = shards[:: math.ceil(len(shards) / _SHARDS)]
    for shard in chosen:
        try:
            for _, row in islice(read_records(shard, source, RejectsLog()), math.ceil(_TEXTS / len(chosen))):
                if isinstance(text := row.get(source.text_column), str) and text.strip():
                    yield text[: source.max_text_bytes]
        except Exception as error:  # file systems, decoders and the Hub client have no common base class
            logger.debug(f"{shard.uri} cannot be read to time the engines: {error}")


def _fastest(
    candidates: Sequence[Candidate], encoder: Path, config: ScoreConfig, texts: Sequence[str], documents: float
) -> tuple[Candidate, str]:
    """The fastest candidate and why it is chosen; `documents` is how many each worker will score.

    Raises:
        ConfigError: no candidate can run the encoder.
    """
    timings = _Timings(texts)
    started = timings.timer()
    failures: list[ConfigError] = []
    skipped: list[Candidate] = []
    for candidate in candidates:
        if timings.best and timings.timer() - started > _MAX_SHARE * timings.seconds_for(documents):
            skipped.append(candidate)
            continue
        try:
            timings.add(candidate, EncoderHead(*load_model(encoder), config.model_copy(update=candidate._asdict())))
        except ConfigError as error:  # it cannot run the encoder, or its self-test failed
            failures.append(error)
    if timings.best is None:
        raise failures[0]
    reasons = [timings.describe()]
    reasons += [str(error).partition(";")[0].partition(". ")[0] for error in failures]
    if skipped:
        names, seconds = ", ".join(map(str, skipped)), timings.seconds_for(documents)
        reasons.append(f"timing {names} as well could cost more than it saves: scoring takes about {seconds:,.0f} s")
    return timings.best, "; ".join(reasons)


class _Timings:
    """How long candidates take for the same batches of a corpus."""

    best: Candidate | None = None

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = texts
        self._seconds: dict[Candidate, list[float]] = {}
        self._batches: list[Batch] = []
        # The CPU time of one thread does not depend on what else runs on the machine. Several threads also spin.
        self.timer = time.process_time if torch.get_num_threads() == 1 else time.perf_counter

    def add(self, candidate: Candidate, head: EncoderHead) -> None:
        """Time a candidate; stop early if it is clearly slower than the best so far."""
        best = self._seconds[self.best] if self.best else []
        seconds = self._seconds[candidate] = []
        self._batches = self._batches or self._batches_for(head)
        with torch.inference_mode():
            for batch in self._batches:
                # The first pass only warms up, unless something disturbs the second one.
                seconds.append(min(timeit.repeat(partial(head.forward, *batch), timer=self.timer, number=1, repeat=2)))
                if sum(seconds) > _MAX_SECONDS or (best and _ratio(seconds, best) > _CLEARLY_SLOWER):
                    break
        if not best or _ratio(seconds, best) < _CLEARLY_FASTER:
            self.best = candidate

    def _batches_for(self, head: EncoderHead) -> list[Batch]:
        """Some batches, evenly distributed over those of texts sorted by length."""
        config = head.model.config
        windows, _ = split_windows(self._texts, head.tokenizer, config.max_tokens, config.windows)
        encoded = token_ids(windows, head.tokenizer, config.max_tokens)
        lengths = [len(ids) for ids in encoded]
        self._tokens_per_text = sum(lengths) / len(self._texts)
        batches = list(length_batches(lengths, head.batch_tokens))
        padding = head.tokenizer.pad_token_id or 0
        chosen = batches[:: math.ceil(len(batches) / _BATCHES)]
        return [pad([encoded[index] for index in indices], padding, head.device) for indices in chosen]

    def _speed(self) -> float:
        """Tokens a second of the best candidate."""
        assert self.best
        seconds = self._seconds[self.best]
        return sum(int(mask.sum()) for _, mask in self._batches[: len(seconds)]) / sum(seconds)

    def seconds_for(self, documents: float) -> float:
        """How long the best candidate takes for some documents of the corpus."""
        return documents * self._tokens_per_text / self._speed()

    def describe(self) -> str:
        """The speed of the best candidate, and how much longer the others take."""
        assert self.best
        best = self._seconds[self.best]
        others = [
            f"{candidate} takes {_ratio(seconds, best):.2f} times as long"
            for candidate, seconds in self._seconds.items()
            if candidate != self.best
        ]
        return ", ".join([f"it reads {self._speed():,.0f} tokens/s of this corpus", *others])


def _ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """How many times as long as others something takes, in the batches that both were timed on."""
    timed = min(len(seconds), len(others))
    return sum(seconds[:timed]) / sum(others[:timed])
