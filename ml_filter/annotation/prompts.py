"""Prompts are data: YAML files with a digest, so that every score says which words made it.

A prompt asks in one of two modes. `generate`: the model writes an answer, the last match of `pattern` is the
score, and the token log-probabilities at that place give an expected score. `choice`: the model's next token is
compared over labelled choices, and nothing is written; the way to use models too small to follow a rubric.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ml_filter.documents.manifest import digest_of
from ml_filter.errors import ConfigError
from ml_filter.settings import problems_in, read_yaml

SLOT = "{text}"
_SPECIAL_TOKEN = re.compile(
    r"<[|\uff5c](?=[A-Za-z_/])|<(?=/?(?:s|bos|eos|start_of_turn|end_of_turn|im_start|im_end)>)|\[(?=/?INST\])"
)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreRange(_Strict):
    """Lowest and highest score, both included."""

    min: float
    max: float

    @model_validator(mode="after")
    def _has_width(self) -> ScoreRange:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) must be above min ({self.min})")
        return self


class Calibration(_Strict):
    """Platt scaling of the expected score: with p its share of the range, sigmoid(slope * logit(p) + intercept)."""

    slope: float
    intercept: float
    source: str = Field(description="on what data it was fitted")


class Prompt(_Strict):
    """A question to an LLM about a document."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    criterion: str
    language: str
    description: str = ""
    score: ScoreRange
    api: Literal["chat", "completion"] = "chat"
    mode: Literal["generate", "choice"] = "generate"
    system: str | None = None
    text: str
    pattern: str = ""
    choices: dict[str, float] = Field({}, description="choice mode: next token -> score")
    calibration: Calibration | None = None
    max_tokens: Annotated[int, Field(ge=1)] = 256
    top_logprobs: Annotated[int, Field(ge=0)] = 20
    max_text_chars: Annotated[int, Field(gt=0)] = 12_000
    one_line: bool = Field(False, description="fold the document's white space, for prompts that are lists of lines")

    @model_validator(mode="after")
    def _is_complete(self) -> Prompt:
        if self.text.count(SLOT) != 1:
            raise ValueError(f"text must hold the slot {SLOT} exactly once")
        if self.mode == "generate":
            try:
                groups = re.compile(self.pattern).groups
            except re.error as error:
                raise ValueError(f"pattern is no regular expression: {error}") from error
            if groups != 1:
                raise ValueError("pattern must have exactly one group, around the score")
        else:
            if len(self.choices) < 2:
                raise ValueError("mode choice needs at least two choices")
            outside = [c for c, v in self.choices.items() if not self.score.min <= v <= self.score.max]
            if outside:
                raise ValueError(f"choices {outside} have a value outside the score range")
        if self.api == "completion" and self.system:
            raise ValueError("api completion has no system message")
        return self

    @property
    def digest(self) -> str:
        """SHA-256 of everything that shapes the question and the reading of the answer."""
        return digest_of(self.model_dump(exclude={"description"}))

    def render(self, document: str) -> str:
        """The question with the document in its slot: cut to `max_text_chars`, chat special tokens defused."""
        text = " ".join(document.lstrip()[: 2 * self.max_text_chars].split()) if self.one_line else document
        excerpt = text[: self.max_text_chars]
        return self.text.replace(SLOT, _SPECIAL_TOKEN.sub(lambda m: m[0] + " ", excerpt))

    def calibrated(self, expected: float) -> float:
        """An expected score after calibration; unchanged where the prompt has none."""
        if self.calibration is None:
            return expected
        low, width = self.score.min, self.score.max - self.score.min
        share = min(max((expected - low) / width, 1e-9), 1 - 1e-9)
        logit = self.calibration.slope * math.log(share / (1 - share)) + self.calibration.intercept
        return low + width / (1 + math.exp(-min(max(logit, -700), 700)))


def prompt_directory() -> Path:
    """The prompts that ship with the project."""
    return Path(__file__).resolve().parents[2] / "configs" / "prompts"


def load_prompt(name_or_file: str) -> Prompt:
    """A prompt by the name of a shipped one or by the path of a YAML file.

    Raises:
        ConfigError: there is no such prompt, or the file is not a valid one; says what is wrong with which field.
    """
    path = Path(name_or_file)
    if path.suffix not in (".yaml", ".yml"):
        path = prompt_directory() / f"{name_or_file}.yaml"
        if not path.exists():
            known = ", ".join(sorted(p.stem for p in prompt_directory().glob("*.yaml")))
            raise ConfigError(f"no prompt named {name_or_file!r}; there are {known}, or give the path of a .yaml file")
    try:
        return Prompt.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"prompt file {path}: {problems_in(error, 'prompt')}") from error
