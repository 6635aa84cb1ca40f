"""Configuration of asking an LLM: annotation, estimates, batches, translation, labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    Field,
    field_validator,
    model_validator,
)

from ml_filter.config import Seed, StageConfig


def base_url(url: str) -> str:
    """The base URL of an endpoint, which is written to logs and manifests and so must hold no secret.

    Raises:
        ValueError: it has a user, a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # which asking will tell of
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "the URL of an endpoint is one like http://host:port/v1, without user, password or query; a key goes into "
            "ML_FILTER_API_KEY, or the variable that api_key_env names"
        )
    return url


class EndpointConfig(StageConfig):
    """An endpoint that has its own name for the model, or its own key."""

    url: Annotated[str, AfterValidator(base_url)]
    model: str | None = Field(None, description="the model's name there; unset: `model`")
    api_key_env: Annotated[str, Field(pattern="^[A-Z_][A-Z0-9_]*$")] | None = Field(
        None, description="environment variable that holds its key; unset: ML_FILTER_API_KEY"
    )


class AskConfig(StageConfig):
    """How an LLM is asked, whatever about."""

    endpoints: list[str | EndpointConfig] = Field(
        [], description="base URLs, all of the same model; empty: ML_FILTER_ENDPOINT, else the embedded judge"
    )
    model: str | None = Field(None, description="what annotations are signed with, and its name at the endpoints")
    temperature: Annotated[float, Field(ge=0)] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Seed = 0
    extra_body: dict[str, Any] = Field(
        {}, description="fields of each request, such as chat_template_kwargs, before all others; null leaves one out"
    )
    structured: Literal["auto", "on", "off"] = Field(
        "auto", description="JSON schema or choices as constraints; auto: until the server refuses them"
    )
    tokenizer: str | None = Field(
        None, description="Hub name or directory, or `server` to ask the endpoint; unset: text is cut by characters"
    )
    context_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="the model's context; unset: what the endpoint says"
    )
    chat_template: Literal["server", "client"] = Field(
        "server", description="client: the tokenizer's template is filled in here, for servers without chat"
    )
    add_generation_prompt: bool = Field(True, description="a template filled in here ends with the answer's start")
    max_concurrency: Annotated[int, Field(ge=1)] = Field(256, description="the limit that adapts never goes above it")
    timeout_s: Annotated[float, Field(gt=0)] = 120.0
    max_retries: Annotated[int, Field(ge=0)] = 5
    max_outage_s: Annotated[float, Field(gt=0)] = Field(
        600.0, description="how long an endpoint that has answered may be silent before the run ends"
    )
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = 0.05
    retry_failed: bool = Field(False, description="ask the failed documents of an earlier run again")
    ledger: str | None = Field(None, description="SQLite file to share answers between outputs; unset: in the output")
    usd_per_million_prompt_tokens: Annotated[float, Field(ge=0)] | None = None
    usd_per_million_completion_tokens: Annotated[float, Field(ge=0)] | None = None
    budget_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="stop before more tokens are used; of this annotator's run, not of a whole pipeline"
    )
    budget_usd: Annotated[float, Field(gt=0)] | None = Field(
        None, description="stop before more money is spent; of this annotator's run, not of a whole pipeline"
    )
    at_budget: Literal["stop", "finish"] = Field(
        "stop", description="finish: what the budget has no room for is failed as `not_asked`, and the output complete"
    )

    @field_validator("endpoints")
    @classmethod
    def _hold_no_secret(cls, endpoints: list[str | EndpointConfig]) -> list[str | EndpointConfig]:
        for one in endpoints:
            if isinstance(one, str):  # an EndpointConfig has checked its own
                base_url(one)
        return endpoints

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.budget_usd is not None and self.usd(1, 1) is None:
            raise ValueError("budget_usd needs usd_per_million_prompt_tokens and usd_per_million_completion_tokens")
        if self.chat_template == "client" and self.tokenizer in (None, "server"):
            raise ValueError("chat_template client needs a tokenizer")
        return self

    @property
    def most_windows(self) -> int:
        """How many windows of a document are asked about; what is left of it is not."""
        return 1

    def answer_tokens(self, asked: int) -> int:
        """The most tokens of an answer for which a prompt asks so many: what `extra_body` says goes before it."""
        said = [self.extra_body.get(name) for name in ("max_completion_tokens", "max_tokens")]
        return next((tokens for tokens in said if isinstance(tokens, int)), asked)

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """What tokens cost; None where the prices are not known."""
        prompt, completion = self.usd_per_million_prompt_tokens, self.usd_per_million_completion_tokens
        if prompt is None or completion is None:
            return None
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6


class AnnotateConfig(AskConfig):
    """How an LLM scores documents against prompts."""

    prompts: Annotated[list[str], Field(min_length=1)] = Field(
        ["educational_value"],
        description="names or files; of those with one criterion, each document gets the one in its language, or the "
        "first",
    )
    votes: Annotated[int, Field(ge=1)] = 1
    long_documents: Literal["truncate", "windows"] = "truncate"
    max_windows: Annotated[int, Field(ge=1)] = 8
    combine_windows: Literal["mean", "max", "min", "median"] = "mean"

    @model_validator(mode="after")
    def _votes_differ(self) -> AnnotateConfig:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("votes above 1 need a temperature above 0, or every vote is the same answer paid again")
        return self

    @property
    def most_windows(self) -> int:
        """How many windows of a document are asked about; what is left of it is not."""
        return self.max_windows if self.long_documents == "windows" else 1


class EstimateConfig(StageConfig):
    """How the bill of an annotation is estimated."""

    pilot: Annotated[int, Field(ge=1)] = Field(50, description="documents to ask about")
    seed: Seed = Field(
        20_431, description="draws the pilot; unlike that of the sample, whose lowest keys are no random part of it"
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.95
    resamples: Annotated[int, Field(ge=100)] = 2000


class BatchConfig(StageConfig):
    """How requests go into OpenAI batch files. Defaults: the limits and the price of OpenAI's Batch API."""

    max_requests: Annotated[int, Field(ge=1)] = Field(50_000, description="in a file")
    max_bytes: Annotated[int, Field(ge=1)] = Field(200_000_000, description="of a file")
    completion_window: str = "24h"
    price_share: Annotated[float, Field(ge=0)] = Field(
        0.5, description="batch prices as a share of usd_per_million_*; 1 for a server of one's own"
    )


class TranslateConfig(AskConfig):
    """How an LLM translates documents and prompts."""

    piece_chars: Annotated[int, Field(ge=200)] = Field(
        4000, description="longer documents are translated in pieces, cut between paragraphs, else sentences or words"
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(4096, description="most tokens of a piece's translation")
    length_ratio: tuple[float, float] = Field(
        (0.33, 3.0), description="translation to original in characters; outside it, the translation is suspicious"
    )
    tries: Annotated[int, Field(ge=1)] = Field(3, description="of a prompt; each is told what was wrong before")


class LabelConfig(AskConfig):
    """How an LLM labels documents."""

    labels: Annotated[list[str], Field(min_length=1)] = Field(
        ["domain"], description="names or files of label lists; each is a facet, asked about on its own"
    )
    by: list[str] = Field([], description="columns whose values the report tells apart; empty: the source files")
