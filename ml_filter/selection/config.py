"""Configuration of selecting documents."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import (
    Field,
    model_validator,
)

from ml_filter.config import Seed, StageConfig


class Condition(StageConfig):
    """A number that a document must have. Written as `adult<=1`: a criterion, or another column of numbers."""

    name: str
    op: Literal["<=", "<", ">=", ">", "==", "!="]
    value: Annotated[float, Field(allow_inf_nan=False)]

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, given: Any) -> Any:
        if not isinstance(given, str):
            return given
        parts = re.fullmatch(r"\s*(.*?[^\s<>=!])\s*(<=|>=|==|!=|<|>|=)\s*([^\s<>=!]+)\s*", given)
        if parts is None:
            raise ValueError(f"{given!r} is not of the form adult<=1")
        name, op, value = parts.groups()
        return {"name": name, "op": "==" if op == "=" else op, "value": value}

    def __str__(self) -> str:
        return f"{self.name}{self.op}{self.value:.15g}"


class QuotaConfig(StageConfig):
    """How what is kept is divided over the values of columns. A value is written `deu`, of several columns `deu/web`;
    documents without one have the value "".
    """

    by: Annotated[list[str], Field(min_length=1)] = Field(
        description="columns; `host` and `domain` are those of `url` where there is no such column"
    )
    split: Literal["equal", "proportional"] = Field(
        "equal", description="of a token budget: the same for each value, or as its documents have tokens"
    )
    shares: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="of a token budget, by value, adding up to 1; other values get nothing"
    )
    tokens: dict[str, Annotated[int, Field(ge=0)]] = Field(
        {}, description="of a token budget, by value, at most the budget together; other values get nothing"
    )
    fractions: dict[str, Annotated[float, Field(ge=0, le=1)]] = Field(
        {}, description="by value, in the place of keep_fraction"
    )
    redistribute: bool | None = Field(
        None,
        description="what a value has too few documents for goes to the others in the same proportions; unset: yes, "
        "but not with `tokens`, which are limits",
    )

    @model_validator(mode="before")
    @classmethod
    def _from_columns(cls, given: Any) -> Any:
        """Columns alone are a quota: `language`, `[language, source]`."""
        if isinstance(given, str):
            return {"by": [given]}
        return {"by": given} if isinstance(given, list) else given

    @model_validator(mode="after")
    def _one_way_to_divide(self) -> Self:
        if sum(map(bool, (self.shares, self.tokens, self.fractions))) > 1:
            raise ValueError("give one of shares, tokens and fractions")
        if self.shares and abs(sum(self.shares.values()) - 1) > 1e-9:
            raise ValueError(f"shares add up to {sum(self.shares.values()):.9g}, not to 1")
        return self

    @property
    def named(self) -> Mapping[str, float] | None:
        """What values get that are named one by one, of a token budget; None: all values get something."""
        return self.shares or self.tokens or None

    @property
    def redistributes(self) -> bool:
        """Whether others get what a value has too few documents for."""
        return not self.tokens if self.redistribute is None else self.redistribute


class FilterConfig(StageConfig):
    """Which scored documents are kept: one of `min_score`, `keep_fraction` and `token_budget` says how many."""

    min_score: Annotated[float, Field(allow_inf_nan=False)] | None = Field(
        None, description="keep all with at least this score"
    )
    keep_fraction: Annotated[float, Field(gt=0, le=1)] | None = Field(
        None, description="keep the best, this fraction of the scored documents that fulfil the conditions"
    )
    token_budget: Annotated[int, Field(gt=0)] | None = Field(
        None, description="keep the best, as long as they have no more tokens than this together"
    )
    criterion: str | None = Field(None, description="whose score ranks; unset: the only one")
    conditions: Annotated[list[Condition], Field(max_length=100)] = Field(
        [], description="what else must hold, such as adult<=1"
    )
    quota: QuotaConfig | None = Field(None, description="columns over whose values what is kept is divided")
    weighted: bool = Field(
        False, description="draw instead of ranking, each document with a chance that grows with its score"
    )
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = Field(
        1.0, description="of weighted: one more point of score makes a document e**(1/temperature) times as likely"
    )
    seed: Seed = Field(0, description="settles ties and draws")
    tokenizer: str | None = Field(
        None, description="Hub name or directory; unset: the embedded encoder's, where tokens have to be counted"
    )
    token_column: str | None = Field(None, description="column that holds the number of tokens; nothing is tokenised")
    dropped: bool = Field(False, description="write what is dropped, and why, to `dropped/` of the output")

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        ways = {name: getattr(self, name) for name in ("min_score", "keep_fraction", "token_budget")}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError(
                f"give one of {', '.join(ways)}; given: {', '.join(given) or 'none'}"
                + (" (null, as in min_score=null, takes one back)" if given else "")
            )
        if self.min_score is not None and (self.quota or self.weighted):
            raise ValueError(
                "quota and weighted need keep_fraction or token_budget: min_score says by itself what stays"
            )
        if self.tokenizer is not None and self.token_column is not None:
            raise ValueError("give tokenizer or token_column, not both")
        if self.quota is not None:
            self._check_quota(self.quota)
        return self

    def _check_quota(self, quota: QuotaConfig) -> None:
        if self.token_budget is None and (quota.named or quota.split != "equal"):
            raise ValueError("quota.split, quota.shares and quota.tokens divide a token_budget")
        if self.keep_fraction is None and quota.fractions:
            raise ValueError("quota.fractions need keep_fraction")
        if self.token_budget is not None and (asked := sum(quota.tokens.values())) > self.token_budget:
            raise ValueError(f"quota.tokens add up to {asked:,}, more than token_budget ({self.token_budget:,})")

    @property
    def counts_tokens(self) -> bool:
        """Whether documents' tokens are counted."""
        return self.token_budget is not None or self.tokenizer is not None or self.token_column is not None
