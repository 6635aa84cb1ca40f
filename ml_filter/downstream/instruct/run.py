"""The chain from documents to instruction data: every stage is a directory, and a killed run continues in the last one.

    chunks [-> sample] -> written -> triples-0 -> [evolving-1 -> evolved-1 -> triples-1 -> ...] -> deduplicated
        -> decontaminated -> ratings, scores -> rated
        -> [answers, checked and decontaminated -> pairs -> verdicts -> preferences] -> data sets, report

The stages share a directory of ledgers and a budget. Cheap checks come before anything is paid for a rating. A stage
without instructions is skipped, so that every run ends with a report.
"""

from __future__ import annotations

from typing import NamedTuple

from ml_filter.annotation.budget import SharedBudget
from ml_filter.annotation.connection import annotator_name
from ml_filter.annotation.generate import GenerationPrompt, generate, load_generation_prompt
from ml_filter.annotation.prompts import load_prompt
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.hub import hub_api
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.downstream.instruct.evolve import evolve_triples, load_evolutions
from ml_filter.downstream.instruct.prefer import prefer_answers
from ml_filter.downstream.instruct.publish import publish_instructions
from ml_filter.downstream.instruct.rate import rate_triples
from ml_filter.downstream.instruct.report import report_instructions
from ml_filter.downstream.instruct.stages import stages_of
from ml_filter.downstream.instruct.triples import collect_triples
from ml_filter.prepare.chunks import chunk_documents
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.decontaminate import decontaminate_documents
from ml_filter.prepare.deduplicate import deduplicate_documents
from ml_filter.prepare.sampling import sample_documents


class InstructRun(NamedTuple):
    """What a run made: the data sets and the report."""

    published: Manifest
    report: Manifest


def make_instructions(
    source: SourceConfig, config: InstructConfig, output: str, settings: Settings | None = None
) -> InstructRun:
    """From documents to instruction data, below `output`.

    Raises:
        TooManyFailures, EndpointError, InputError, ConfigError: of the stages; finished stages are not repeated.
    """
    settings = settings or Settings()
    check_stages(config, settings)
    chunks = chunk_documents(source, config.chunk, f"{output}/chunks-{{digest}}")
    written = write_instructions(chunks, config, output, settings)
    evolved = evolve_instructions(written, config, output, settings)
    rated = rate_instructions(evolved, config, output, settings)
    preferences = prefer(rated, config, output, settings) if config.prefer else None
    published = publish_instructions(rated, preferences, config.publish, f"{output}/data-{{digest}}")
    return InstructRun(
        published,
        report_instructions(published, rated, preferences, config.examples, f"{output}/report-{{digest}}"),
    )


def write_instructions(
    chunks: Manifest, config: InstructConfig, output: str, settings: Settings | None = None
) -> Manifest:
    """The instructions that the writer makes from passages, without those that fail a check."""
    prompt = _writer_prompt(config)
    passages = chunks
    if config.size is not None:
        sample = SampleConfig(size=config.size)
        passages = sample_documents(SourceConfig(paths=[chunks.root]), sample, f"{output}/sample-{{digest}}")
    writer = SharedBudget(config.budget_tokens).share(config.write, *stages_of(passages))
    source = SourceConfig(paths=[passages.root])
    written = generate(source, prompt, writer, f"{output}/written-{{digest}}", settings, ledgers=_ledgers(output))
    return collect_triples(written, config.check, f"{output}/triples-0-{{digest}}")


def _writer_prompt(config: InstructConfig) -> GenerationPrompt:
    return load_generation_prompt(config.write.prompt, like=["instruct_write", "instruct_for_passage"])


def check_stages(config: InstructConfig, settings: Settings) -> None:
    """Check what every stage needs, before anything is read or paid for.

    Raises:
        ConfigError, InputError, EndpointError: a model, a prompt, an evaluation set or the upload is wrong.
    """
    annotator_name(config.write, settings)
    _writer_prompt(config)
    if config.publish.push:
        hub_api(config.publish.push)
    for evaluation in config.decontaminate.against if config.decontaminate else ():
        list_shards(evaluation)
    load_evolutions(config.evolve)
    for judge in config.jury:
        annotator_name(judge, settings)
        for name in judge.prompts:
            load_prompt(name)
    if config.prefer is not None:
        annotator_name(config.prefer.judge, settings)
        load_generation_prompt(config.prefer.prompt, like=["compare_answers"])
        for answerer in config.prefer.answerers:
            annotator_name(answerer, settings)
            load_generation_prompt(answerer.prompt, like=["instruct_answer"])


def evolve_instructions(
    triples: Manifest, config: InstructConfig, output: str, settings: Settings | None = None
) -> Manifest:
    """The instructions of all generations, without duplicates and without those that contain evaluation texts."""
    generations = [triples]
    budget = SharedBudget(config.budget_tokens)
    for generation in range(1, config.evolve.generations + 1):
        if not generations[-1].rows:
            break
        generations.append(
            evolve_triples(
                generations[-1],
                generation,
                config.evolve,
                budget.share(config.write, *stages_of(generations[-1])),
                config.check,
                output,
                settings,
                ledgers=_ledgers(output),
            )
        )
    if not triples.rows:
        return triples
    source = SourceConfig(paths=[generation.root for generation in generations])
    clean = deduplicate_documents(source, config.deduplicate, f"{output}/deduplicated-{{digest}}")
    if config.decontaminate is not None:
        source = SourceConfig(paths=[clean.root])
        clean = decontaminate_documents(source, config.decontaminate, f"{output}/decontaminated-{{digest}}")
    return clean


def rate_instructions(
    triples: Manifest, config: InstructConfig, output: str, settings: Settings | None = None
) -> Manifest:
    """The instructions that the jury rates high enough."""
    if not triples.rows:
        return triples
    return rate_triples(
        triples,
        config.jury,
        config.aggregate,
        config.min_rating,
        output,
        settings,
        budget=SharedBudget(config.budget_tokens),
        ledgers=_ledgers(output),
    )


def prefer(triples: Manifest, config: InstructConfig, output: str, settings: Settings | None = None) -> Manifest:
    """Preference pairs, as `config.prefer` says, which must be set."""
    return prefer_answers(triples, config, output, settings, ledgers=_ledgers(output))


def _ledgers(output: str) -> str:
    return f"{output}/ledgers"
