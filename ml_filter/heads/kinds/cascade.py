"""The cascade: a fast first-stage model that decides the clear cases, and an encoder for the rest.

Made by ml_filter.scoring.cascade. Its config.json and the column `scored_by` call the first-stage model `student`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel

from ml_filter.documents.readers import text_id
from ml_filter.heads.info import HeadInfo
from ml_filter.heads.kinds.base import ENCODER_DIRECTORY, Head, ScoredTexts, Strata, load_head
from ml_filter.heads.profile import script_of
from ml_filter.heads.trained import TrainedHead
from ml_filter.prepare.sampling import sampling_key

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from ml_filter.heads.config import EngineConfig

FIRST_STAGE_DIRECTORY = "student"


class CascadeInfo(BaseModel):
    """What the first-stage model decides, and the evidence for it: `cascade` in a cascade's config.json.

    The first-stage model, of the kind `student`, drops documents with a score below `low` and keeps those from `high`
    on, if they have one of the `scripts`, `languages` and `sources` of the sample (None: its documents have none) and
    at most `longest` characters. The encoder checks `audit_share` of these decisions, drawn with `seed`.

    With `confidence`, at most the share `bound` of all decisions at `threshold` differs from the encoder's, where
    `max_changed` is tolerated. Of the documents in the `sample`, `tested` are behind the bound; the first-stage model
    settled `settled` of them, and the encoder changed `changed` of these.
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


class CascadeHead(Head):
    """Scores with the first-stage model, and again with the encoder if the case is not clear."""

    kind = "cascade"
    description = "a cascade of a fast first-stage model and a head on a transformers encoder"
    has_encoder = True

    def __init__(self, first_stage: Head, encoder: Head, cascade: CascadeInfo, info: HeadInfo) -> None:
        self.first_stage, self.encoder, self.cascade, self.info = first_stage, encoder, cascade, info
        self.unit = encoder.unit

    @classmethod
    def load(cls, directory: Path, content: dict[str, Any], config: EngineConfig) -> CascadeHead:
        """Read the cascade and both of its heads."""
        first_stage = load_head(directory / FIRST_STAGE_DIRECTORY, config)
        encoder = load_head(directory / ENCODER_DIRECTORY, config)
        cascade = CascadeInfo.model_validate(content["cascade"])
        return cls(first_stage, encoder, cascade, HeadInfo.model_validate(content["head"]))

    def predict(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Scores [texts, criteria], in order; nan if neither head gave a number."""
        return self.score_with_details(texts).scores

    def score_with_details(self, texts: Sequence[str], strata: Strata | None = None) -> ScoredTexts:
        """Scores, which head gave each, and how many of the checked decisions differ."""
        cascade = self.cascade
        scores = self.first_stage.score(texts)
        first_scores = scores[:, 0].copy()
        is_clear = (first_scores < cascade.low) | (first_scores >= cascade.high)
        settled = is_clear & np.fromiter(map(self._is_in_scope, texts), bool, len(texts))
        for name, allowed in (("language", cascade.languages), ("source", cascade.sources)):
            if allowed is not None and strata is not None and name in strata:
                known = set(allowed)
                settled &= np.fromiter((value in known for value in strata[name]), bool, len(texts))
        audited = settled & np.fromiter(map(self._is_audited, texts), bool, len(texts))
        to_encoder = ~settled | audited
        if to_encoder.any():
            scores[to_encoder] = self.encoder.score(
                [text for text, chosen in zip(texts, to_encoder, strict=True) if chosen]
            )
        changed = (first_scores >= cascade.threshold) != (scores[:, 0] >= cascade.threshold)
        return ScoredTexts(
            scores,
            np.where(to_encoder, ENCODER_DIRECTORY, FIRST_STAGE_DIRECTORY).tolist(),
            {
                "by_student": int((~to_encoder).sum()),
                "by_encoder": int(to_encoder.sum()),
                "audited": int(audited.sum()),
                "audited_changed": int((audited & changed).sum()),
            },
        )

    def lengths(self, texts: Sequence[str]) -> Sequence[int]:
        """Lengths as the head with the encoder counts them."""
        return self.encoder.lengths(texts)

    def _is_in_scope(self, text: str) -> bool:
        """Whether a document is like those that the first-stage model was tested on."""
        return len(text) <= self.cascade.longest and script_of(text) in self.cascade.scripts

    def _is_audited(self, text: str) -> bool:
        return sampling_key(text_id(text), self.cascade.seed, "audit") < self.cascade.audit_share * 2**64


def cascade_of(head: TrainedHead) -> CascadeInfo | None:
    """What a cascade's config.json says about it; None for other heads."""
    cascade = head.config.get("cascade")
    return None if cascade is None else CascadeInfo.model_validate(cascade)
