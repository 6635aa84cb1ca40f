"""Instruction pipeline: from documents to data sets of instructions with answers."""

from zenml import pipeline

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
    settings, output = config.instruct, config.output
    chunks = chunk_documents(config.source, settings.chunk, output)
    written = write_instructions(chunks, settings, output)
    evolved = evolve_instructions(written, settings, output)
    rated = rate_instructions(evolved, settings, output)
    preferences = None if settings.prefer is None else prefer_answers(rated, settings, output)
    published = publish_instructions(rated, settings.publish, output, preferences)
    report, _ = report_instructions(published, rated, settings.examples, output, preferences)
    track_instructions(config.tracking, report)
