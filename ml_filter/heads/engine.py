"""The scoring engines: texts to scores with a head, whatever its kind."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from loguru import logger
from pydantic import BaseModel
from torch import nn

from ml_filter.documents.readers import text_id
from ml_filter.errors import ConfigError, InputError
from ml_filter.heads.batching import combine_windows, run_in_batches, split_windows
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.device import choose_device, choose_dtype, usual_batch_tokens
from ml_filter.heads.hashing import HashingModel
from ml_filter.heads.info import CONFIG_NAME, HeadInfo, read_info
from ml_filter.heads.load import load_model, resolve_head
from ml_filter.heads.openvino import OpenVinoModel
from ml_filter.heads.profile import script_of
from ml_filter.heads.static import StaticModel
from ml_filter.heads.tokens import usual_ids
from ml_filter.prepare.sampling import sampling_key

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from transformers import PreTrainedTokenizerBase

    from ml_filter.heads.model import HeadModel

TOLERANCE = {torch.float32: 0.001, torch.bfloat16: 0.05}
"""Of the self-test, by the encoder's number type, as shares of the score range."""
_PROBES = (
    "Water boils at 100 degrees Celsius at sea level, because that is where its vapour pressure equals the air's.",
    "CLICK HERE!!! Best offers, free shipping",
    "Вода кључа на сто степени. 水は百度で沸騰する。",
    " ".join(f"Lesson {n}: the square of {n} is {n * n}, and its root is again {n}." for n in range(60)),
    "",
)


Strata = Mapping[str, Sequence[str | None]]


class Judged(NamedTuple):
    """Scores [texts, criteria], clamped; which engine gave each, where there are several; what to count of them."""

    scores: NDArray[np.float32]
    scored_by: Sequence[str] | None = None
    counts: Mapping[str, int] = {}


class Engine(ABC):
    """Scores texts."""

    info: HeadInfo

    @abstractmethod
    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them; nan where it gave none."""

    def score(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The same, clamped to the score ranges."""
        low, high = ([getattr(criterion, side) for criterion in self.info.criteria] for side in ("low", "high"))
        made: NDArray[np.float32] = np.clip(self.raw(texts), low, high).astype(np.float32)
        return made

    def judge(self, texts: Sequence[str], strata: Strata | None = None) -> Judged:
        """The same, with what else there is to say.

        Args:
            strata: languages and sources [texts], where they are known.
        """
        return Judged(self.score(texts))


def load_engine(head: str | Path, config: EngineConfig) -> Engine:
    """The engine of a head, or of a published classifier.

    Args:
        head: as `resolve_head` knows it.
        config: device and number type.

    Raises:
        InputError: there is no such head, or no complete one.
        ConfigError: there is no such device here, or the classifier cannot be loaded.
    """
    directory = resolve_head(head)
    path = directory / CONFIG_NAME
    if not path.exists():
        raise InputError(f"{directory} holds no trained head (no {CONFIG_NAME}); make one with ml-filter train")
    content = json.loads(path.read_text())
    if "hashing" in content:
        return LexicalEngine(HashingModel.load(directory), read_info(directory))
    if "static" in content:
        return LexicalEngine(StaticModel.load(directory), read_info(directory))
    if "stack" in content:
        members = [load_engine(directory / name, config) for name in content["stack"]["members"]]
        return StackEngine(members, content["stack"], read_info(directory))
    if "cascade" in content:
        student, encoder = (load_engine(directory / name, config) for name in ("student", "encoder"))
        return CascadeEngine(student, encoder, CascadeInfo.model_validate(content["cascade"]), read_info(directory))
    return EncoderEngine(*load_model(directory), config)


def read_cascade(head: str | Path) -> CascadeInfo | None:
    """What a cascade's config.json says of it; None of a head that is none."""
    cascade = json.loads((resolve_head(head) / CONFIG_NAME).read_text()).get("cascade")
    return None if cascade is None else CascadeInfo.model_validate(cascade)


class EncoderEngine(Engine):
    """An encoder with its head, in batches of like length under a token budget.

    Torch runs the encoder, or OpenVINO where `engine` says so, in the chosen number type; the head runs in float32.
    Before it scores anything it scores a few texts of its own, and compares with transformers' plain forward in
    float32, one text at a time.

    Raises:
        ConfigError: there is no such device here, the engine cannot run this encoder on it, or the scores of the test
            differ by more than the tolerance.
    """

    def __init__(self, model: HeadModel, tokenizer: PreTrainedTokenizerBase, config: EngineConfig) -> None:
        self.info = model.config.info
        self.device = choose_device(config.device)
        self.dtype = choose_dtype(config.dtype, self.device)
        self.tokenizer = tokenizer
        self.batch_tokens = config.batch_tokens or usual_batch_tokens(self.device)
        self.name = "openvino" if config.engine == "openvino" else "torch"
        self.model = model.eval()
        expected = _plain_scores(model, tokenizer)
        self.forward: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
        if self.name == "openvino":
            if self.device.type != "cpu":
                raise ConfigError(f"engine openvino runs on the CPU, not on {self.device}: add --device cpu")
            self.forward = OpenVinoModel(model, self.dtype)
        else:
            self.forward = nn.Module.to(model.cast_encoder(self.dtype), self.device)
        self._check(expected)

    def _check(self, expected: NDArray[np.float32]) -> None:
        """The self-test. nan is as far as can be from any score, but is nan's like."""
        reach = np.array([criterion.high - criterion.low for criterion in self.info.criteria])
        made = self.raw(_PROBES)
        differs = np.where(np.isnan(made) & np.isnan(expected), 0, np.nan_to_num(np.abs(made - expected), nan=np.inf))
        worst, tolerance = float((differs / reach).max()), TOLERANCE[self.dtype]
        logger.debug(
            f"Scoring with {self.name} on {self.device} in {self.dtype}: self-test differs from a plain float32 "
            f"forward by at most {worst:.2%} of the score range"
        )
        if worst > tolerance:
            raise ConfigError(
                f"scores of {self.name} on {self.device} in {self.dtype} differ from a plain float32 forward by "
                f"{worst:.1%} of the score range, more than {tolerance:.1%}: score with --dtype float32, with another "
                "--engine, or on another --device"
            )

    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them; nan where it gave none."""
        if not texts:
            return np.empty((0, len(self.info.criteria)), np.float32)
        config = self.model.config
        windows, owners = split_windows(texts, self.tokenizer, config.max_tokens, config.windows)
        made = run_in_batches(
            windows,
            self.tokenizer,
            self.forward,
            max_tokens=config.max_tokens,
            batch_tokens=self.batch_tokens,
            device=self.device,
            on_shrink=self._shrink,
        )
        combined: NDArray[np.float32] = combine_windows(made, np.array(owners), len(texts), config.combine)
        return combined

    def _shrink(self, batch_tokens: int) -> None:
        """Ask for no more than there was memory for."""
        self.batch_tokens = batch_tokens


def _plain_scores(model: HeadModel, tokenizer: PreTrainedTokenizerBase) -> NDArray[np.float32]:
    """Scores [probes, criteria] the way nothing can go wrong with: float32, on the CPU, one whole text at a time."""
    config, made = model.config, []
    with torch.inference_mode():
        for text in _PROBES:
            pieces, owners = split_windows([text], tokenizer, config.max_tokens, config.windows)
            rows = []
            for piece in pieces:
                ids = usual_ids([piece], tokenizer, config.max_tokens)
                rows.append(model(torch.tensor(ids), torch.ones(1, len(ids[0]), dtype=torch.int64)).numpy()[0])
            made.append(combine_windows(np.array(rows), np.array(owners), 1, config.combine)[0])
    return np.array(made, np.float32)


class LexicalEngine(Engine):
    """A linear head on hashed words or static embeddings: no encoder, no device."""

    def __init__(self, model: HashingModel | StaticModel, info: HeadInfo) -> None:
        self.model, self.info = model, info

    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them."""
        return self.model.scores(texts)


class StackEngine(Engine):
    """Several engines, whose scores are added up with the weights that training found."""

    def __init__(self, members: Sequence[Engine], stack: dict[str, Any], info: HeadInfo) -> None:
        self.members, self.info = members, info
        self.weights, self.bias = np.array(stack["weights"]), np.array(stack["bias"])

    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order, as the head gives them; nan where a member gave none."""
        made = np.stack([member.raw(texts) for member in self.members], 2)
        combined: NDArray[np.float32] = (np.einsum("ncm,cm->nc", made, self.weights) + self.bias).astype(np.float32)
        return combined


class CascadeInfo(BaseModel):
    """What a cascade settles, and what is known of it: `cascade` in its config.json.

    Attributes:
        threshold: documents are kept from this score upwards; the bound is of these decisions.
        low: scores of the student below it are settled: dropped.
        high: scores of the student from it upwards are settled: kept.
        scripts: that the student may settle.
        languages: that it may settle, where the sample's documents have a language.
        sources: that the sample had documents of, likewise.
        longest: characters of a document that the student may settle.
        audit_share: of what is settled, goes to the encoder all the same.
        seed: draws the audit.
        max_changed: share of decisions that was allowed to differ from the encoder's.
        confidence: of the bound.
        bound: upper bound of that share.
        tested: documents that it rests on.
        settled: how many of them the student settles.
        changed: how many of these the encoder decides otherwise.
        sample: documents in the sample.
        student: its engine.
    """

    threshold: float
    low: float
    high: float
    scripts: list[str]
    languages: list[str | None] | None = None
    sources: list[str | None] | None = None
    longest: int
    audit_share: float
    seed: int
    max_changed: float
    confidence: float
    bound: float
    tested: int
    settled: int
    changed: int
    sample: int
    student: str

    @property
    def known(self) -> dict[str, set[str | None]]:
        """Languages and sources that the student may settle, of those the sample's documents have."""
        of = {"language": self.languages, "source": self.sources}
        return {name: set(values) for name, values in of.items() if values is not None}


class CascadeEngine(Engine):
    """A cheap student that settles what it safely can, and an encoder for the rest."""

    def __init__(self, student: Engine, encoder: Engine, cascade: CascadeInfo, info: HeadInfo) -> None:
        self.student, self.encoder, self.cascade, self.info = student, encoder, cascade, info

    def raw(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order; nan where neither gave one."""
        return self.judge(texts).scores

    def judge(self, texts: Sequence[str], strata: Strata | None = None) -> Judged:
        """Scores, who gave them, and how many of the audited decisions differ."""
        cascade = self.cascade
        scores = self.student.score(texts)
        by_student = scores[:, 0].copy()
        clear = (by_student < cascade.low) | (by_student >= cascade.high)
        settled = clear & np.fromiter(map(self._is_like, texts), bool, len(texts))
        for name, known in cascade.known.items():
            if strata is not None and name in strata:
                settled &= np.fromiter((value in known for value in strata[name]), bool, len(texts))
        audited = settled & np.fromiter(map(self._audits, texts), bool, len(texts))
        asked = ~settled | audited
        if asked.any():
            scores[asked] = self.encoder.score([text for text, ask in zip(texts, asked, strict=True) if ask])
        changed = (by_student >= cascade.threshold) != (scores[:, 0] >= cascade.threshold)
        return Judged(
            scores,
            np.where(asked, "encoder", "student").tolist(),
            {
                "by_student": int((~asked).sum()),
                "by_encoder": int(asked.sum()),
                "audited": int(audited.sum()),
                "audited_changed": int((audited & changed).sum()),
            },
        )

    def _is_like(self, text: str) -> bool:
        """Whether a document is like those that the student was tested on."""
        return len(text) <= self.cascade.longest and script_of(text) in self.cascade.scripts

    def _audits(self, text: str) -> bool:
        return sampling_key(text_id(text), self.cascade.seed, "audit") < self.cascade.audit_share * 2**64
