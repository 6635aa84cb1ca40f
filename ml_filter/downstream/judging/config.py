"""Configuration of the evaluation of a tuned model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from ml_filter.annotation.config import AskConfig, EndpointConfig
from ml_filter.config import Cli, Seed
from ml_filter.downstream.benchmarks.config import BenchmarkConfig

_JUDGE = {
    "endpoints": "--endpoint",
    "model": "--model",
    "max_concurrency": "--max-concurrency",
    "budget_tokens": "--budget-tokens",
}


class ContestantConfig(AskConfig):
    """Who answers. Without an endpoint, a model tuned from the embedded one, or this one, answers from a GGUF file."""

    endpoints: Annotated[list[str | EndpointConfig], Cli("--endpoint", "URL")] = Field(
        [], description="base URLs of endpoints that serve the model (default: the embedded server)"
    )
    model: str | None = Field(None, description="model name at the endpoints")
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="share of tasks without an answer above which the command exits with code 1"
    )

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float | None:
        """Price of tokens in USD: 0 in the embedded server, None at an endpoint without prices."""
        usd = super().usd(prompt_tokens, completion_tokens)
        return usd if self.endpoints or usd is not None else 0.0


class JudgeConfig(BenchmarkConfig):
    """How a tuned model is compared with its base."""

    size: Annotated[int, Field(ge=1)] = Field(200, description="maximum number of held-out tasks")
    seed: Seed = Field(0, description="seed of the choice of tasks")
    max_tokens: Annotated[int, Field(ge=1)] = Field(512, description="longest answer in tokens; the rest is cut off")
    base: Annotated[ContestantConfig, Cli(options={"endpoints": "--base-endpoint", "model": "--base-model"})] = Field(
        ContestantConfig(), description="where the base answers (default: the embedded server)"
    )
    tuned: Annotated[ContestantConfig, Cli(options={"endpoints": "--tuned-endpoint", "model": "--tuned-model"})] = (
        Field(ContestantConfig(), description="where the tuned model answers (default: the embedded server)")
    )
    judge: Annotated[AskConfig, Cli(options=_JUDGE)] = Field(
        AskConfig(), description="the LLM that compares and rates the answers"
    )
    prompt: str = Field("compare_answers", description="name or file of the prompt that compares two answers")
    rating_prompt: str | None = Field(
        "answer_quality", description="name or file of the prompt that rates an answer (null: no ratings)"
    )
    min_consistency: Annotated[float, Field(ge=0, le=1)] = Field(
        0.6,
        description="of the pairs with a winner in both orders, the share with the same one below which the judge is "
        "not trusted; over all pairs, GPT-4 had 0.65 and GPT-3.5 0.46 (arXiv 2306.05685)",
    )
    min_pairs: Annotated[int, Field(ge=10)] = Field(30, description="minimum number of judged pairs for a verdict")
    confidence: Annotated[float, Field(gt=0, lt=1)] = Field(0.95, description="confidence of the intervals")
    rouge: bool = Field(True, description="measure ROUGE against the held-out answers; for languages in Latin script")
    examples: Annotated[int, Field(ge=0)] = Field(5, description="pairs of answers shown on the page")
