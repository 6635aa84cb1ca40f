"""Configuration of annotation, estimates, batches, translation and labels."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, field_validator, model_validator

from ml_filter.config import Cli, Seed, StageConfig
from ml_filter.mongodb import SafePath


def base_url(url: str) -> str:
    """Check the base URL of an endpoint, which is written to logs and manifests and so must not contain a secret.

    Raises:
        ValueError: the URL has a user, a password, a query or a fragment.
    """
    try:
        parts = urlsplit(url)
    except ValueError:
        return url  # the client reports it with the endpoint's other errors
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ValueError(
            "the URL of an endpoint must have the form http://host:port/v1, without user, password or query; put the "
            "key into ML_FILTER_API_KEY, or into the variable named by api_key_env"
        )
    return url


class EndpointConfig(StageConfig):
    """An endpoint with its own model name or key."""

    url: Annotated[str, AfterValidator(base_url)]
    model: str | None = Field(None, description="model name at this endpoint (default: `model`)")
    api_key_env: Annotated[str, Field(pattern="^[A-Z_][A-Z0-9_]*$")] | None = Field(
        None, description="environment variable that holds the key (default: ML_FILTER_API_KEY)"
    )


class AskConfig(StageConfig):
    """How an LLM is asked, for scores, labels and translations."""

    endpoints: Annotated[list[str | EndpointConfig], Cli("--endpoint", "URL")] = Field(
        [],
        description="base URLs of endpoints that serve the same model (default: ML_FILTER_ENDPOINT, else the embedded "
        "annotator)",
    )
    model: str | None = Field(
        None, description="model name at the endpoints, also recorded as the annotator (default: ML_FILTER_MODEL)"
    )
    temperature: Annotated[float, Field(ge=0)] = Field(0.0, description="sampling temperature")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="nucleus sampling (default: the server's default)"
    )
    seed: Seed = Field(0, description="sampling seed; vote k uses seed + k")
    extra_body: dict[str, Any] = Field(
        {},
        description="further request fields, such as chat_template_kwargs; overrides all others, and null removes a "
        "field",
    )
    structured: Literal["auto", "on", "off"] = Field(
        "auto", description="structured output: auto uses it until the server rejects it, on requires it"
    )
    tokenizer: str | None = Field(
        None,
        description="Hub name or directory, or `server` to use the endpoint's tokenizer (default: cut by characters)",
    )
    context_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="context length of the model in tokens (default: as reported by the endpoint)"
    )
    chat_template: Literal["server", "client"] = Field(
        "server", description="who applies the chat template: client is for servers without a chat API"
    )
    add_generation_prompt: bool = Field(
        True, description="end the chat template with the start of the answer (chat_template client)"
    )
    max_concurrency: Annotated[int, Field(ge=1)] = Field(
        256, description="upper bound on the requests in flight; the actual number adapts to the server"
    )
    timeout_s: Annotated[float, Field(gt=0), Cli("--timeout")] = Field(
        120.0, description="time-out of a request in seconds"
    )
    max_retries: Annotated[int, Field(ge=0)] = Field(5, description="retries of a request that failed")
    max_outage_s: Annotated[float, Field(gt=0), Cli("--max-outage")] = Field(
        600.0, description="seconds to wait for an endpoint, or a ledger at a URL, that has stopped answering"
    )
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.05, description="share of failed answers above which the command exits with code 1"
    )
    retry_failed: bool = Field(False, description="ask again for the failed answers of an earlier run")
    ledger: SafePath | None = Field(
        None,
        description="where answers are kept, to share them between outputs: an SQLite file, a directory at a URL, or "
        "mongodb://HOST/DATABASE.COLLECTION (default: in the output)",
    )
    ledger_answers: Annotated[int, Field(ge=1)] = Field(
        200,
        description="most answers that a ledger at a URL has not saved yet: what a kill can cost, besides the requests "
        "in flight",
    )
    ledger_seconds: Annotated[float, Field(gt=0)] = Field(
        30.0, description="seconds after which a ledger at a URL saves an answer at the latest"
    )
    usd_per_million_prompt_tokens: Annotated[float, Field(ge=0)] | None = Field(
        None, description="price in USD (default: costs are not reported)"
    )
    usd_per_million_completion_tokens: Annotated[float, Field(ge=0)] | None = Field(
        None, description="price in USD (default: costs are not reported)"
    )
    budget_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="most tokens that this annotator may use in this run (default: no limit)"
    )
    budget_usd: Annotated[float, Field(gt=0)] | None = Field(
        None, description="most USD that this annotator may spend in this run (default: no limit)"
    )
    at_budget: Literal["stop", "finish"] = Field(
        "stop",
        description="when the budget is used up: stop the run, or finish the output with the other answers failed as "
        "`not_asked`",
    )

    @field_validator("endpoints")
    @classmethod
    def _have_no_secret(cls, endpoints: list[str | EndpointConfig]) -> list[str | EndpointConfig]:
        for endpoint in endpoints:
            if isinstance(endpoint, str):  # an EndpointConfig has checked its own URL
                base_url(endpoint)
        return endpoints

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.budget_usd is not None and self.usd(1, 1) is None:
            raise ValueError("budget_usd needs usd_per_million_prompt_tokens and usd_per_million_completion_tokens")
        if self.chat_template == "client" and self.tokenizer in (None, "server"):
            raise ValueError("chat_template client needs a tokenizer")
        return self

    @property
    def windows_per_document(self) -> int:
        """Most windows of a document that are asked about; text after them is left out."""
        return 1

    def answer_tokens(self, max_tokens: int) -> int:
        """Most tokens of an answer: `max_tokens` of the prompt, unless `extra_body` overrides it."""
        limits = [self.extra_body.get(name) for name in ("max_completion_tokens", "max_tokens")]
        return next((limit for limit in limits if isinstance(limit, int)), max_tokens)

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Price of tokens in USD; None if the prices are not configured."""
        prompt, completion = self.usd_per_million_prompt_tokens, self.usd_per_million_completion_tokens
        if prompt is None or completion is None:
            return None
        return (prompt_tokens * prompt + completion_tokens * completion) / 1e6


class AnnotateConfig(AskConfig):
    """How an LLM scores documents against prompts."""

    prompts: Annotated[list[str], Field(min_length=1), Cli("--prompt", "PROMPT")] = Field(
        ["educational_value"],
        description="prompt names or files; of several prompts for one criterion, a document gets the one in its "
        "language, else the first",
    )
    votes: Annotated[int, Field(ge=1)] = Field(
        1, description="answers per document; more than one requires a temperature above 0"
    )
    long_documents: Literal["truncate", "windows"] = Field(
        "truncate", description="truncate documents that exceed the context, or score them in windows"
    )
    max_windows: Annotated[int, Field(ge=1)] = Field(
        8, description="most windows per document; text after them is left out"
    )
    combine_windows: Literal["mean", "max", "min", "median"] = Field(
        "mean", description="how the scores of windows become one score"
    )

    @model_validator(mode="after")
    def _votes_differ(self) -> AnnotateConfig:
        if self.votes > 1 and self.temperature == 0:
            raise ValueError("votes above 1 need a temperature above 0; at 0 every vote is the same answer, paid again")
        return self

    @property
    def windows_per_document(self) -> int:
        """Most windows of a document that are asked about; text after them is left out."""
        return self.max_windows if self.long_documents == "windows" else 1


class EstimateConfig(StageConfig):
    """How the cost of an annotation is estimated."""

    pilot: Annotated[int, Field(ge=1)] = Field(50, description="documents to ask about")
    seed: Annotated[Seed, Cli("--pilot-seed")] = Field(
        20_431,
        description="seed that draws the pilot; should differ from the sample's, so that the pilot is random in it",
    )
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="confidence level of the intervals")
    resamples: Annotated[int, Field(ge=100)] = Field(2000, description="bootstrap resamples of the pilot")


class BatchConfig(StageConfig):
    """How requests are written to OpenAI batch files. Defaults: limits and price of OpenAI's Batch API."""

    max_requests: Annotated[int, Field(ge=1)] = Field(50_000, description="most requests per file")
    max_bytes: Annotated[int, Field(ge=1)] = Field(200_000_000, description="most bytes per file")
    completion_window: str = Field("24h", description="time within which the provider has to answer")
    price_share: Annotated[float, Field(ge=0)] = Field(
        0.5, description="batch price as a share of usd_per_million_*; 1 for your own server"
    )


class TranslateConfig(AskConfig):
    """How an LLM translates documents and prompts."""

    piece_chars: Annotated[int, Field(ge=200)] = Field(
        4000,
        description="most characters per request; longer documents are cut between paragraphs, else sentences or words",
    )
    max_tokens: Annotated[int, Field(ge=1)] = Field(4096, description="most tokens of the translation of a piece")
    length_ratio: tuple[float, float] = Field(
        (0.33, 3.0), description="allowed length of a translation relative to the original, in characters"
    )
    tries: Annotated[int, Field(ge=1)] = Field(
        3, description="attempts per prompt; each retry includes the reason why the last one was rejected"
    )


class LabelConfig(AskConfig):
    """How an LLM labels documents."""

    labels: Annotated[list[str], Field(min_length=1)] = Field(
        ["domain"], description="names or files of label lists; each is a facet with a question per document"
    )
    by: Annotated[list[str], Cli(comma_separated=True)] = Field(
        [], description="columns to group the report by (default: the source files)"
    )
