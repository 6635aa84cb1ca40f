"""Does a filter help? Train small models on what it keeps and on as many random documents, and compare them.

    arms (trained.py) -> [lm-eval (benchmarks.py)] -> ablation.json, ablation.html

Each stage is a directory. The models take hours and the comparison seconds, so a setting of the report trains nothing
again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ml_filter.documents.manifest import Manifest, Parent, read_manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.downstream.ablation.benchmarks import figures_of, measure_model
from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.downstream.ablation.corpora import heads_of, read_filtered
from ml_filter.downstream.ablation.report import ablation_page
from ml_filter.downstream.ablation.result import (
    ABLATION_NAME,
    REPORT_NAME,
    Ablation,
    Model,
    Target,
    compare_arms,
    power_of,
    read_ablation,
    read_arms,
    spread_between,
    verdict_of,
    warnings_about,
)
from ml_filter.downstream.ablation.targets import HIGH
from ml_filter.downstream.ablation.trained import train_arms
from ml_filter.downstream.ablation.training import TrainedModel
from ml_filter.downstream.benchmarks.measure import Benchmarks


def ablate_filter(filtered: str, config: AblateConfig, output: str) -> tuple[Ablation, Manifest]:
    """Train and compare the arms of a filtered corpus; writes `ablation.json` and `ablation.html`.

    Args:
        filtered: directory that `filter` wrote with `dropped`.
        config: targets, arms and training.
        output: local directory of the directories of all stages; the result is in `ablation-{digest}`.

    Raises:
        InputError: the directory has no dropped documents, a target or an arm has too few documents, `pilot` is not an
            ablation, or a process died.
        ConfigError: an extra is missing; and as of `train_arms`.
    """
    kept, _ = read_filtered(filtered)
    benchmarks = Benchmarks(config) if config.has_benchmarks else None
    pilots = [] if config.pilot is None else [read_manifest(config.pilot, "ablation")]
    arms = train_arms(filtered, config, f"{output}/arms-{{digest}}")
    inputs = [arms, *pilots]
    trained, models = read_arms(arms)
    tasks: dict[str, dict[str, float]] = {}
    if benchmarks is not None:
        for name in trained.models:
            directory = f"{output}/lm-eval-{{digest}}"
            inputs.append(measure_model(benchmarks, arms, name, directory, config.training.device))
            tasks[name] = figures_of(inputs[-1])
    settings = {"confidence": config.confidence, "resamples": config.resamples}
    parents = [Parent(path=manifest.root, digest=manifest.digest) for manifest in inputs]
    with OutputDirectory(f"{output}/ablation-{{digest}}", "ablation", settings, parents) as out:
        if out.manifest:
            return read_ablation(out.path), out.manifest
        comparisons = compare_arms(models, trained.sizes, config)
        verdict, reason, warnings = verdict_of(comparisons, trained.arms, config)
        ablation = Ablation(
            verdict=verdict,
            reason=reason,
            warnings=warnings
            + warnings_about(models, trained.sizes)
            + (benchmarks.warnings if benchmarks is not None else []),
            heads=heads_of(kept),
            power=power_of(len(trained.sizes[HIGH]), config),
            spread=spread_between(models, trained.sizes),
            targets=[Target(name=name, documents=len(by), bytes=sum(by)) for name, by in trained.sizes.items()],
            models=[_summary(model, trained.sizes, tasks.get(model.name, {})) for model in models],
            comparisons=comparisons,
            cpu_seconds=sum(model.cpu_seconds for model in models),
            config=config.model_dump(mode="json"),
            parents=arms.parents,
            **trained.model_dump(exclude={"sizes", "models"}),
        )
        out.put_bytes(ABLATION_NAME, (ablation.model_dump_json(indent=1) + "\n").encode())
        out.put_bytes(REPORT_NAME, ablation_page(ablation).encode())
        return ablation, out.finish([], arms.counts)


def _summary(model: TrainedModel, sizes: Mapping[str, Sequence[int]], tasks: dict[str, float]) -> Model:
    return Model(
        name=model.name,
        arm=model.arm,
        seed=model.seed,
        rate=model.rate,
        final_loss=model.final_loss,
        cpu_seconds=model.cpu_seconds,
        bits_per_byte={name: float(np.mean(np.divide(bits, sizes[name]))) for name, bits in model.bits.items()},
        curve=[(point.tokens, point.bits_per_byte) for point in model.curve],
        tasks=tasks,
    )
