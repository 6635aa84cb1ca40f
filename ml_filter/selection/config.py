"""Configuration of selecting documents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from ml_filter.config import Cli, Seed, StageConfig


class Condition(StageConfig):
    """A condition on a criterion or another numeric column, also written as text: `adult<=1`."""

    name: str
    op: Literal["<=", "<", ">=", ">", "==", "!="]
    value: Annotated[float, Field(allow_inf_nan=False)]

    @model_validator(mode="before")
    @classmethod
    def _parse(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        parts = re.fullmatch(r"\s*(.*?[^\s<>=!])\s*(<=|>=|==|!=|<|>|=)\s*([^\s<>=!]+)\s*", value)
        if parts is None:
            raise ValueError(f"{value!r} is not a condition; write NAME<=NUMBER, such as adult<=1")
        name, op, number = parts.groups()
        return {"name": name, "op": "==" if op == "=" else op, "value": number}

    def __str__(self) -> str:
        return f"{self.name}{self.op}{self.value:.15g}"


class QuotaConfig(StageConfig):
    """How to divide what is kept among the values of columns.

    A value is written `deu`, or `deu/web` with two columns; that of documents without a value is "".
    """

    by: Annotated[list[str], Field(min_length=1), Cli(comma_separated=True)] = Field(
        description="columns; `host` and `domain` are derived from `url` unless they are columns"
    )
    split: Literal["equal", "proportional"] = Field(
        "equal", description="how to split a token budget: equally, or in proportion to the tokens of each value"
    )
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="share of the token budget for each value, adding up to 1; other values get nothing"
    )
    tokens: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="tokens of the token budget for each value, at most the budget in total; others get nothing"
    )
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="fraction to keep for single values, instead of keep_fraction"
    )
    redistribute: bool | None = Field(
        None,
        description="give what a value has too few documents for to the other values, in proportion to their quotas; "
        "default: yes, except with `tokens`, which are limits",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_columns(cls, value: Any) -> Any:
        """Accept columns alone: `language`, `[language, source]`."""
        if isinstance(value, str):
            return {"by": [value]}
        return {"by": value} if isinstance(value, list) else value

    @model_validator(mode="after")
    def _check_division(self) -> Self:
        if sum(map(bool, (self.shares, self.tokens, self.fractions))) > 1:
            raise ValueError("set only one of shares, tokens and fractions")
        if self.shares and abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares add up to {sum(self.shares.values()):.9g}, not to 1")
        return self

    @property
    def named(self) -> Mapping[str, float] | None:
        """Parts of a token budget by value; None if the values are not named, so that each gets a part."""
        return self.shares or self.tokens or None

    @property
    def redistributes(self) -> bool:
        """`redistribute`, or its default."""
        return not self.tokens if self.redistribute is None else self.redistribute


class FilterConfig(StageConfig):
    """Which scored documents to keep. Set one of `min_score`, `keep_fraction` and `token_budget`."""

    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="keep documents with at least this score"
    )
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="keep this fraction of the scored documents that meet the conditions, the best ones"
    )
    token_budget: Annotated[int, Field(gt=0)] | None = Field(
        None, description="keep the best documents with at most this many tokens in total"
    )
    criterion: str | None = Field(None, description="criterion to rank by; default: the only one")
    conditions: Annotated[list[Condition], Field(max_length=100), Cli("--where", "CONDITION")] = Field(
        [], description="conditions that a kept document must meet, such as adult<=1"
    )
    quota: Annotated[
        QuotaConfig | None, Cli(options={"by": "--quota", "split": "--quota-split", "shares": "--quota-share"})
    ] = Field(None, description="columns among whose values to divide what is kept")
    weighted: bool = Field(
        False, description="draw documents at random, with a chance that grows with the score, instead of ranking them"
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="for weighted: one more point of score makes a document e**(1/temperature) times as likely"
    )
    seed: Seed = Field(0, description="seed for ties and draws")
    tokenizer: str | None = Field(
        None,
        description="Hub name or directory of the tokenizer that counts tokens; default: that of the embedded encoder, "
        "if tokens have to be counted",
    )
    token_column: str | None = Field(None, description="column with the number of tokens, instead of a tokenizer")
    dropped: bool = Field(
        False, description="write dropped documents and the reasons to the subdirectory `dropped` of the output"
    )

    @model_validator(mode="after")
    def _check_combination(self) -> Self:
        options = {name: getattr(self, name) for name in ("min_score", "keep_fraction", "token_budget")}
        used = [name for name, value in options.items() if value is not None]
        if len(used) != 1:
            raise ValueError(
                f"set exactly one of {', '.join(options)}; set: {', '.join(used) or 'none'}"
                + (" (to unset one, give null, as in min_score=null)" if used else "")
            )
        if self.min_score is not None and (self.quota or self.weighted):
            raise ValueError("quota and weighted require keep_fraction or token_budget")
        if self.tokenizer is not None and self.token_column is not None:
            raise ValueError("set tokenizer or token_column, not both")
        if self.quota is not None:
            self._check_quota(self.quota)
        return self

    def _check_quota(self, quota: QuotaConfig) -> None:
        if self.token_budget is None and (quota.named or quota.split != "equal"):
            raise ValueError("quota.split, quota.shares and quota.tokens require token_budget")
        if self.keep_fraction is None and quota.fractions:
            raise ValueError("quota.fractions requires keep_fraction")
        if self.token_budget is not None and (total := sum(quota.tokens.values())) > self.token_budget:
            raise ValueError(f"quota.tokens add up to {total:,}, more than token_budget ({self.token_budget:,})")

    @property
    def counts_tokens(self) -> bool:
        """Whether the tokens of documents are counted."""
        return self.token_budget is not None or self.tokenizer is not None or self.token_column is not None
