"""Configuration of instruction data."""

from __future__ import annotations

import re
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from ml_filter.agreement.config import AggregateConfig
from ml_filter.annotation.config import AnnotateConfig, AskConfig
from ml_filter.config import Cli, HubName, Seed, StageConfig
from ml_filter.prepare.config import ChunkConfig, DecontaminateConfig, DeduplicateConfig

_ASKED = {
    "endpoints": "--endpoint",
    "model": "--model",
    "temperature": "--temperature",
    "max_concurrency": "--max-concurrency",
}


class WriterConfig(AskConfig):
    """How an LLM writes instructions and evolves them. A failed answer only costs its instruction."""

    prompt: str = Field("instruct_write", description="name or file of the prompt that writes the instructions")
    max_failed_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="share of failed answers above which the command exits with code 1"
    )


class AnswererConfig(WriterConfig):
    """How an LLM answers instructions. A failed answer only costs its pairs."""

    prompt: str = Field("instruct_answer", description="name or file of the prompt that answers an instruction")


class PassageConfig(ChunkConfig):
    """How documents are cut into the passages that instructions are written from."""

    min_chunk_tokens: Annotated[int, Field(ge=0)] = Field(32, description="drop shorter chunks, as too_short")


class CheckConfig(StageConfig):
    """Which instructions are dropped by rules, before anything is paid for their rating."""

    min_grounding: Annotated[float, Field(ge=0, le=1)] = Field(
        0.5, description="lowest share of the output's content words that the passage has"
    )
    numbers_in_source: bool = Field(True, description="drop outputs with a number that the passage does not have")
    min_instruction_words: Annotated[int, Field(ge=1)] = Field(
        3, description="minimum number of words of an instruction"
    )
    max_instruction_words: Annotated[int, Field(ge=1)] = Field(
        300, description="maximum number of words of an instruction"
    )
    min_output_words: Annotated[int, Field(ge=1)] = Field(5, description="minimum number of words of an output")
    max_output_words: Annotated[int, Field(ge=1)] = Field(2000, description="maximum number of words of an output")
    max_repeated_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.2, description="highest share of repeated word 3-grams in an output"
    )
    max_copied_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.9,
        description="highest share of the word 2-grams of an output that are in its instruction, and of those of an "
        "evolved instruction that are in its parent",
    )
    keywords: list[str] = Field(
        [], description="regular expressions; an instruction or output that matches is dropped, as refusals always are"
    )

    @field_validator("keywords")
    @classmethod
    def _are_expressions(cls, keywords: list[str]) -> list[str]:
        for keyword in keywords:
            try:
                re.compile(keyword)
            except re.error as error:
                raise ValueError(f"{keyword!r} is not a regular expression: {error}") from error
        return keywords


class EvolveConfig(StageConfig):
    """How instructions are evolved, as in Evol-Instruct (arXiv 2304.12244)."""

    generations: Annotated[int, Field(ge=0)] = Field(1, description="how often instructions are evolved; 0: never")
    share: Annotated[float, Field(gt=0, le=1)] = Field(
        1.0, description="share of the instructions of a generation that are evolved, chosen by the seed"
    )
    prompts: Annotated[list[str], Field(min_length=1)] = Field(
        [
            "instruct_evolve_constraints",
            "instruct_evolve_deepen",
            "instruct_evolve_concretize",
            "instruct_evolve_reasoning",
            "instruct_evolve_complicate_input",
            "instruct_evolve_breadth",
        ],
        description="names or files of the prompts that evolve; the seed chooses one for each instruction",
    )
    seed: Seed = Field(0, description="seed of the choices")


class PreferConfig(StageConfig):
    """How preference pairs are made: several answers to an instruction, compared by a judge in both orders."""

    answerers: Annotated[list[AnswererConfig], Field(min_length=1)] = Field(
        description="models or temperatures that answer; with one, its answer is compared with the output"
    )
    judge: AskConfig = Field(AskConfig(), description="LLM that compares two answers")
    prompt: str = Field("compare_answers", description="name or file of the prompt that compares")


class InstructPublishConfig(StageConfig):
    """How instructions are published."""

    license: str = Field("unknown", description="license identifier of the documents, such as odc-by")
    model_license: str = Field(
        "unknown", description="license of the models that wrote and rated; the embedded model's is known"
    )
    title: str = Field("Instructions from documents", description="title of the data card")
    validation_share: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of the documents whose instructions are in the validation split"
    )
    seed: Seed = Field(0, description="seed of the splits")
    format: Literal["parquet", "jsonl"] = Field("parquet", description="format of the files")
    push: HubName | None = Field(None, description="Hub data set to upload to, as OWNER/NAME")
    private: bool = Field(False, description="create the Hub data set as private; fail if it exists and is public")


class InstructConfig(StageConfig):
    """From documents to instruction data."""

    chunk: Annotated[
        PassageConfig,
        Cli(options={name: f"--{name.replace('_', '-')}" for name in ("chunk_tokens", "overlap_tokens")}),
    ] = Field(PassageConfig(), description="how documents are cut into passages")
    size: Annotated[int, Field(gt=0)] | None = Field(
        None, description="number of passages to write about, drawn at random (default: all)"
    )
    write: Annotated[WriterConfig, Cli(options=_ASKED)] = Field(WriterConfig(), description="who writes and evolves")
    check: Annotated[CheckConfig, Cli(options={"min_grounding": "--min-grounding"})] = Field(
        CheckConfig(), description="which instructions are dropped by rules"
    )
    evolve: Annotated[EvolveConfig, Cli(options={"generations": "--generations"})] = Field(
        EvolveConfig(), description="how instructions are evolved"
    )
    deduplicate: DeduplicateConfig = Field(DeduplicateConfig(), description="which instructions repeat others")
    decontaminate: DecontaminateConfig | None = Field(None, description="evaluation sets to keep out (default: none)")
    judges: list[AnnotateConfig] = Field(
        [], description="who rates; several are a jury (default: the writer, with the prompt instruction_quality)"
    )
    aggregate: AggregateConfig = Field(AggregateConfig(), description="how the ratings of a jury become one")
    min_rating: float | None = Field(
        None, description="lowest rating that is kept (default: the threshold of the judges' prompt)"
    )
    prefer: PreferConfig | None = Field(None, description="how preference pairs are made (default: none)")
    publish: Annotated[
        InstructPublishConfig,
        Cli(options={"license": "--license", "model_license": "--model-license", "push": "--push"}),
    ] = Field(InstructPublishConfig(), description="how the data sets are written")
    budget_tokens: Annotated[int, Field(gt=0)] | None = Field(
        None, description="maximum number of tokens of all stages together (default: no limit)"
    )
    examples: Annotated[int, Field(ge=0)] = Field(5, description="kept and dropped instructions shown on the page")

    @field_validator("judges")
    @classmethod
    def _differ(cls, judges: list[AnnotateConfig]) -> list[AnnotateConfig]:
        if any(judge in judges[:number] for number, judge in enumerate(judges)):
            raise ValueError("two judges are the same; their votes would be counted twice")
        return judges

    @property
    def jury(self) -> list[AnnotateConfig]:
        """The judges; without any, the writer judges its own work, at temperature 0."""
        shared = self.write.model_dump(exclude={"prompt", "temperature"})
        return self.judges or [AnnotateConfig(prompts=["instruction_quality"], **shared)]

    @model_validator(mode="after")
    def _budget_is_shared(self) -> Self:
        configs = [self.write, *self.judges, *((*self.prefer.answerers, self.prefer.judge) if self.prefer else ())]
        if self.budget_tokens is not None and any(config.budget_tokens for config in configs):
            raise ValueError("set budget_tokens for all stages together or for single ones, not both")
        return self
