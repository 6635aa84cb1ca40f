"""Proof pipeline: from documents to a filter, and to what shows that it helps."""

from zenml import pipeline

from ml_filter.pipeline.proof import ProofPipelineConfig
from pipelines.annotation import feature_steps
from pipelines.instruct import instruct_steps
from pipelines.scoring import inference_steps
from steps.downstream.ablate_filter import ablate_filter
from steps.downstream.judge_tuned import judge_tuned
from steps.downstream.track_proof import track_proof
from steps.downstream.tune_model import tune_model
from steps.downstream.write_proof import write_proof
from steps.inference.write_report import write_report
from steps.training.train_head import train_head


@pipeline(name="proof", enable_cache=False)
def proof_pipeline(config: ProofPipelineConfig) -> None:
    """Filter a corpus; ablate the filter; make instructions, tune a model on them, judge it; one page about it all."""
    output, features = config.output, feature_steps(config)
    head = train_head(config.train, output, scores=features.scores)
    scored, filtered = inference_steps(head, config)
    write_report(head, scored, filtered, **features._asdict())
    ablation, _ = ablate_filter(config.ablate, output, filtered=filtered)
    published, instructions = instruct_steps(config.instruct, f"{output}/instruct", documents=filtered)
    tuned = tune_model(config.tune, output, instructions=published)
    judgement, _ = judge_tuned(config.judge, f"{output}/judge", tuned=tuned)
    proof, _ = write_proof(features.annotations, filtered, ablation, instructions, tuned, judgement, output)
    track_proof(config.tracking, proof)
