"""Instruction pipeline: from documents to data sets of instructions with answers."""

from zenml import pipeline

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.instruct.config import InstructConfig
from ml_filter.pipeline.instruct import InstructPipelineConfig
from steps.downstream.chunk_documents import chunk_documents
from steps.downstream.evolve_instructions import evolve_instructions
from steps.downstream.prefer_answers import prefer_answers
from steps.downstream.publish_instructions import publish_instructions
from steps.downstream.rate_instructions import rate_instructions
from steps.downstream.report_instructions import report_instructions
from steps.downstream.track_instructions import track_instructions
from steps.downstream.write_instructions import write_instructions


@pipeline(name="instruct", enable_cache=False)
def instruct_pipeline(config: InstructPipelineConfig) -> None:
    """Write instructions from documents, evolve them, keep the good ones, publish them with a report."""
    _, report = instruct_steps(config.instruct, config.output, source=config.source)
    track_instructions(config.tracking, report)


def instruct_steps(
    settings: InstructConfig, output: str, source: SourceConfig | None = None, documents: Manifest | None = None
) -> tuple[Manifest, Manifest]:
    """From a source or documents to the published data sets and the report."""
    chunks = chunk_documents(settings.chunk, output, source, documents)
    written = write_instructions(chunks, settings, output)
    evolved = evolve_instructions(written, settings, output)
    rated = rate_instructions(evolved, settings, output)
    preferences = None if settings.prefer is None else prefer_answers(rated, settings, output)
    published = publish_instructions(rated, settings.publish, output, preferences)
    report, _ = report_instructions(published, rated, settings.examples, output, preferences)
    return published, report
