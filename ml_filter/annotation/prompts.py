"""Prompts: YAML files with a digest, so that every score can be traced to the exact wording that produced it.

A prompt has one of three modes:

- `generate`: the model writes an answer, which states the score (grammar.py). The token log-probabilities at the
  position of the score give an expected score.
- `json`: the answer is a JSON object with `reason` and `score`. Servers with structured output enforce its schema.
- `choice`: the next token is compared over the labelled choices, and the model writes nothing. This works for models
  that are too small to follow a rubric. With `top_logprobs: 0` the model writes one of the choices.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ml_filter.annotation.grammar import GRAMMAR, Grammar
from ml_filter.annotation.prompt_files import prompt_file
from ml_filter.config import problems_in, read_yaml
from ml_filter.criterion import Criterion, middle
from ml_filter.documents.manifest import digest_of
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.errors import ConfigError

SLOT = "{text}"
_SPECIAL_TOKEN = re.compile(
    r"<[|\uff5c](?=[\w/\u2581])|<(?=\w+[|\uff5c]>)"  # <|im_end|>, <turn|>; DeepSeek's have a wide bar
    r"|<(?=/?(?:s|eop|eod|eot|eoh|eoa|sop|think|role|im_start|im_end|(?:start|end)_(?:of|function)_\w+)>)"
    r"|<(?=/?(?i:bos|eos|unk|pad|mask|cls|sep)(?:_token|_TOKEN)?>)"
    r"|<(?=/?(?:tool_\w+|arg_key|arg_value|longcat_\w+)>)"
    r"|<(?=/?(?:unused\d+|extra_id_\d+|reserved_\d+|SPECIAL_\d+|seed:\w+|fim_\w+)>)|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|MODEL_SETTINGS|THINK)\])"
    r"|\[(?=/?(?:CALL_ID|ARGS|IMG|IMG_BREAK|IMG_END|AUDIO|BEGIN_AUDIO|gMASK|sMASK|CLS|SEP|MASK|BOS|EOS)\])"
    r"|\[(?=\|\w+\|\])"  # EXAONE's
    r"|\](?=~!?b[\[\]])|\[(?=e~\[)|\](?=<\]\w+\[>\[)"  # MiniMax's
)
"""First characters of the control tokens of chat templates. A space after the first character turns such a token into
plain text. The model's own tokenizer, where one is configured, adds its special tokens (`Windows.clean`)."""


class Strict(BaseModel):
    """A model that rejects unknown fields and cannot be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ScoreRange(Strict):
    """Lowest and highest score, both included."""

    min: float
    max: float

    @model_validator(mode="after")
    def _has_width(self) -> ScoreRange:
        if self.max <= self.min:
            raise ValueError(f"max ({self.max}) must be above min ({self.min})")
        return self


class PlattScaling(Strict):
    """Calibration by sigmoid(slope * log-odds + intercept); the log-odds are those of the score scaled to 0..1."""

    slope: float
    intercept: float
    source: str = Field(description="data that the calibration was fitted on")

    def share(self, log_odds: float) -> float:
        """The calibrated score, scaled to 0..1."""
        return 1 / (1 + math.exp(-min(max(self.slope * log_odds + self.intercept, -700), 700)))


class Curve(Strict):
    """Calibration of one annotator by a rising curve through points, linear between them and flat beyond."""

    annotator: str = Field(description="the annotator it was fitted for; the scores of others stay as they are")
    points: Annotated[tuple[tuple[float, float], ...], Field(min_length=2)] = Field(
        description="log-odds of the score scaled to 0..1, and the calibrated score scaled to 0..1"
    )
    source: str = Field(description="data that the calibration was fitted on")

    @model_validator(mode="after")
    def _rises(self) -> Self:
        for before, after in pairwise(self.points):
            if not (before[0] < after[0] and 0 <= before[1] <= after[1] <= 1):
                raise ValueError(f"points must rise, with shares between 0 and 1: {before}, {after}")
        return self

    def share(self, log_odds: float) -> float:
        """The calibrated score, scaled to 0..1."""
        for (x, share), (next_x, next_share) in pairwise(self.points):
            if log_odds < next_x:
                return share + (next_share - share) * max(0.0, (log_odds - x) / (next_x - x))
        return self.points[-1][1]


class Question(Strict):
    """A question to an LLM about a document."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]+$")]
    criterion: str
    language: str
    description: str = ""
    api: Literal["chat", "completion"] = "chat"
    mode: Literal["generate", "json", "choice"] = "generate"
    system: str | None = None
    text: str
    choices: dict[str, float] = Field({}, description="next token -> score (mode choice)")
    max_tokens: Annotated[int, Field(ge=1)] = 256
    top_logprobs: Annotated[int, Field(ge=0)] = 20
    max_text_chars: Annotated[int, Field(gt=0)] = Field(
        12_000, description="longest text in characters; applies only without a tokenizer"
    )
    max_text_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="longest text in tokens (default: whatever fits into the context)"
    )
    one_line: bool = Field(
        False, description="collapse white space to single spaces, for prompts that list one document per line"
    )

    @model_validator(mode="after")
    def _can_be_asked(self) -> Self:
        if self.text.count(SLOT) != 1:
            raise ValueError(f"text must contain the placeholder {SLOT} exactly once")
        if self.api == "completion" and self.system:
            raise ValueError("api completion does not support a system message")
        return self

    def __copy__(self) -> Self:
        """Drop the cached properties: `model_copy` changes fields of the copy, and the caches depend on them."""
        copied = super().__copy__()
        for name in copied.__dict__.keys() - type(self).model_fields.keys():
            del copied.__dict__[name]
        return copied

    @cached_property
    def digest(self) -> str:
        """SHA-256 of everything that affects the question or how its answer is read."""
        return digest_of(self.model_dump(exclude={"description", "threshold"}))

    @cached_property
    def _frame(self) -> tuple[str, str]:
        before, after = self.text.split(SLOT)
        return before, after

    @cached_property
    def frame_bytes(self) -> int:
        """Size of the question without the document, in UTF-8 bytes."""
        return len((self.system or "").encode()) + sum(len(part.encode()) for part in self._frame)

    @cached_property
    def _fence(self) -> tuple[re.Pattern[str], str] | None:
        """Pattern and replacement that break up the closing fence line inside a document; None without a fence.

        A document that contains the fence could otherwise end itself and continue as instructions."""
        line = self._frame[1].lstrip("\n").partition("\n")[0].strip()
        if len(line) < 5 or line[0].isalpha():
            return None
        if len(set(line)) == 1:  # a repeated character: make the line one character too short
            return re.compile(re.escape(line[0]) + f"{{{len(line)},}}"), line[1:]
        return re.compile(re.escape(line[0]) + f"(?={re.escape(line[1:])})"), line[0] + " "

    def bytes_with(self, piece: str) -> int:
        """Size of the question with a piece of a document, in UTF-8 bytes."""
        return len(piece.encode()) + self.frame_bytes

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of an answer in mode `json`."""
        return {}

    def clean(self, document: str) -> str:
        """Neutralise special tokens and the fence line in a document, so that its text cannot end the document or start
        a new chat message."""
        text = " ".join(document.split()) if self.one_line else document
        text = _SPECIAL_TOKEN.sub(lambda m: m[0] + " ", text)
        if self._fence is None:
            return text
        fence, broken = self._fence
        return fence.sub(lambda _: broken, text)

    def render(self, piece: str) -> str:
        """The question with a piece of a document, cleaned and cut to length, in place of {text}."""
        before, after = self._frame
        return f"{before}{piece}{after}"


class Prompt(Question):
    """A question to an LLM whose answer is a score."""

    score: ScoreRange
    threshold: float | None = Field(
        None,
        description="documents with at least this score count as good (default: the middle of the range); "
        "not part of the question, so a change keeps the answers that were paid for",
    )
    pattern: str | tuple[str, ...] = Field(
        "",
        description="regular expression, or several in order of preference, with one group around the score "
        "(mode generate; default: the grammar of answers)",
    )
    calibration: PlattScaling | Curve | None = None
    max_reason_chars: Annotated[int, Field(gt=0)] | None = Field(
        None, description="longest reason in characters (mode json); keeps small models from never reaching the score"
    )

    @model_validator(mode="before")
    @classmethod
    def _has_a_pattern(cls, fields: Any) -> Any:
        """Fill in the default before validation, so that the digest covers it."""
        if isinstance(fields, dict) and fields.get("mode", "generate") == "generate":
            return {"pattern": GRAMMAR, **fields}
        return fields

    @model_validator(mode="after")
    def _threshold_is_in_range(self) -> Prompt:
        if self.threshold is not None and not self.score.min < self.threshold <= self.score.max:
            raise ValueError(
                f"threshold ({self.threshold:g}) must be above {self.score.min:g} and at most {self.score.max:g}"
            )
        return self

    @model_validator(mode="after")
    def _is_complete(self) -> Prompt:
        if self.mode == "generate":
            try:
                groups = {pattern.groups for pattern in self.grammar.patterns}
            except re.error as error:
                raise ValueError(f"pattern is not a valid regular expression: {error}") from error
            if groups != {1} and self.pattern != GRAMMAR:
                raise ValueError("pattern must have exactly one group, around the score")
        elif self.mode == "choice":
            if len(self.choices) < 2:
                raise ValueError("mode choice requires at least two choices")
            outside = [c for c, v in self.choices.items() if not self.score.min <= v <= self.score.max]
            if outside:
                raise ValueError(f"the values of choices {outside} are outside the score range")
        return self

    @property
    def defined_criterion(self) -> Criterion:
        """The criterion that this prompt defines."""
        low, high = self.score.min, self.score.max
        threshold = middle(low, high) if self.threshold is None else self.threshold
        return Criterion(name=self.criterion, low=low, high=high, threshold=threshold)

    @cached_property
    def grammar(self) -> Grammar:
        """How a written answer is read."""
        written = [self.pattern] if isinstance(self.pattern, str) else self.pattern
        has_own = self.mode == "generate" and self.pattern != GRAMMAR
        return Grammar(
            self.score.min,
            self.score.max,
            self.criterion,
            self.text,
            patterns=[re.compile(pattern) for pattern in written] if has_own else (),
            in_json=self.mode == "json",
        )

    @property
    def json_schema(self) -> dict[str, Any]:
        """The JSON schema of an answer in mode `json`."""
        low, high = self.score.min, self.score.max
        is_integer = low.is_integer() and high.is_integer() and high - low <= 100
        score = {"enum": list(range(int(low), int(high) + 1))} if is_integer else {"minimum": low, "maximum": high}
        reason = {"type": "string"} | ({"maxLength": self.max_reason_chars} if self.max_reason_chars else {})
        return {
            "type": "object",
            "properties": {"reason": reason, "score": {"type": "integer" if is_integer else "number", **score}},
            "required": ["reason", "score"],
            "additionalProperties": False,
        }

    def calibrated(self, expected: float) -> float:
        """An expected score after calibration; unchanged if the prompt has no calibration."""
        if self.calibration is None:
            return expected
        low, width = self.score.min, self.score.max - self.score.min
        share = min(max((expected - low) / width, 1e-9), 1 - 1e-9)
        return low + width * self.calibration.share(math.log(share / (1 - share)))

    def for_annotator(self, annotator: str) -> Prompt:
        """The prompt without a calibration that was fitted for another annotator."""
        is_others = isinstance(self.calibration, Curve) and self.calibration.annotator != annotator
        return self.model_copy(update={"calibration": None}) if is_others else self


def load_prompt(name_or_file: str) -> Prompt:
    """Load a prompt by the name of a shipped prompt or by the path of a YAML file.

    Raises:
        ConfigError: the prompt does not exist, or a field of the file is invalid.
    """
    path = prompt_file(name_or_file)
    try:
        return Prompt.model_validate(read_yaml(path))
    except ValidationError as error:
        raise ConfigError(f"prompt file {path}: {problems_in(error, 'prompt')}") from error


class _Dumper(yaml.SafeDumper):
    """Writes multi-line strings as literal blocks."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def as_yaml(content: Mapping[str, Any]) -> str:
    """Fields of a prompt as readable YAML."""
    return yaml.dump(dict(content), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)


def keep_prompts(out: OutputDirectory, questions: Iterable[Question]) -> None:
    """Write the questions next to their answers as YAML files that can be used as prompts again: after an edit of the
    original file, its digest alone would no longer identify the wording."""
    for question in questions:
        content = f"# digest: {question.digest}\n" + as_yaml(question.model_dump(mode="json", exclude_none=True))
        out.put_bytes(kept_prompt(question.name, question.digest), content.encode())


def kept_prompt(name: str, digest: str) -> str:
    """Path of a prompt inside an annotations directory."""
    return f"prompts/{name}-{digest[:8]}.yaml"


def prompts_by_criterion(prompts: Sequence[Prompt]) -> dict[str, dict[str, Prompt]]:
    """Group prompts by criterion, then by language code, keeping their order.

    Raises:
        ConfigError: two prompts of one criterion have the same language, or define it differently.
    """
    criteria: dict[str, dict[str, Prompt]] = {}
    for prompt in prompts:
        languages = criteria.setdefault(prompt.criterion, {})
        code = language_code(prompt.language)
        if code in languages:
            raise ConfigError(
                f"prompts {languages[code].name} and {prompt.name} both score {prompt.criterion} in {code}; run "
                "them separately, or side by side with `ml-filter compare`"
            )
        first = next(iter(languages.values()), prompt)
        if first.defined_criterion != prompt.defined_criterion:
            raise ConfigError(
                f"prompts {first.name} and {prompt.name} have different score ranges or thresholds for "
                f"{prompt.criterion}"
            )
        languages[code] = prompt
    return criteria


def language_code(language: str) -> str:
    """The shortest code of a language: `de` for `deu_Latn`, `deu`, `de-DE` and `de`; `ar` for `arb_Arab`."""
    from langcodes import Language
    from langcodes.tag_parser import LanguageTagError

    try:
        tag = Language.get(language.replace("_", "-")).prefer_macrolanguage()
        return str(tag.language or language)
    except LanguageTagError:
        return language.lower()
