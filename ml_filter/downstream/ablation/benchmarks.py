"""lm-eval on the models of an ablation."""

from __future__ import annotations

from pathlib import Path

from ml_filter.documents.manifest import Manifest, Parent, digest_of
from ml_filter.downstream.ablation.result import model_path
from ml_filter.downstream.benchmarks.measure import Benchmarks, read_results
from ml_filter.heads.trained import file_digests


def measure_model(benchmarks: Benchmarks, arms: Manifest, name: str, output: str, device: str) -> Manifest:
    """The stage with the figures of a model of the arms; `output` as of `Benchmarks.measure`."""
    directory = Path(arms.path_of(model_path(name)))
    weights = Parent(path=str(directory), digest=digest_of(file_digests(directory)))
    return benchmarks.measure(directory, weights, output, device=device)


def figures_of(measured: Manifest) -> dict[str, float]:
    """The figures in such a stage."""
    return {figure: result.value for figure, result in read_results(measured).items()}
