"""Does a filter help? Train small models on what it keeps and on as many random documents, and compare them.

The models are trained in separate processes. A finished model is a shard of the output, with the bits of every target
document, and a directory `models/NAME`. The checkpoints of unfinished ones are in the output's scratch directory, with
the decontaminated and tokenized corpora; a killed run resumes from there.
"""

from __future__ import annotations

import json
import shutil
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
from loguru import logger

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.finished import ShardResult
from ml_filter.documents.manifest import Manifest
from ml_filter.documents.output_directory import OutputDirectory
from ml_filter.documents.sources import list_shards
from ml_filter.downstream.ablation.arms import Arms
from ml_filter.downstream.ablation.benchmarks import run_tasks
from ml_filter.downstream.ablation.config import FILTERED, RANDOM, REJECTED, AblateConfig
from ml_filter.downstream.ablation.corpora import decontaminated, heads_of, read_filtered, sources_of
from ml_filter.downstream.ablation.dial import Dial
from ml_filter.downstream.ablation.processes import devices_and_workers, train_models
from ml_filter.downstream.ablation.report import ablation_page
from ml_filter.downstream.ablation.result import (
    ABLATION_NAME,
    MEASURED_SPREAD,
    REPORT_NAME,
    Ablation,
    Arm,
    Model,
    Target,
    compare_arms,
    spread_between,
    verdict_of,
)
from ml_filter.downstream.ablation.targets import HIGH, TargetText, read_targets, write_targets
from ml_filter.downstream.ablation.tokens import Corpus, tokenize, train_tokenizer
from ml_filter.downstream.ablation.training import TrainedModel, TrainingJob
from ml_filter.downstream.benchmarks import check_tasks
from ml_filter.errors import ConfigError, InputError
from ml_filter.location import Location
from ml_filter.statistics.replicates import Power, Spread, smallest_difference

if TYPE_CHECKING:
    from numpy.typing import NDArray

MODELS = "models"
_RESULT = "trained.json"
_TOKENIZER = "tokenizer.json"
_ROWS = pa.schema(
    [
        pa.field("arm", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("rate", pa.float64(), nullable=False),
        pa.field("target", pa.string(), nullable=False),
        pa.field("document_id", pa.string(), nullable=False),
        pa.field("bytes", pa.int64(), nullable=False),
        pa.field("bits", pa.float64(), nullable=False),
    ]
)


def ablate_filter(filtered: str, config: AblateConfig, output: str | Path) -> tuple[Ablation, Manifest]:
    """Train and compare the arms of a filtered corpus; writes `ablation.json`, `ablation.html` and the models.

    Args:
        filtered: directory that `filter` wrote with `dropped`.
        config: targets, arms and training.
        output: local directory.

    Raises:
        InputError: the directory has no dropped documents, a target or an arm has too few documents, or a process died.
        ConfigError: `arm_tokens` is more than an arm has, the device is not available, or an extra is missing.
    """
    kept, _ = read_filtered(filtered)
    sources = sources_of(filtered, config)
    inputs = [*sources.values(), config.gold, *config.targets.values()]
    parents = [parent for source in inputs for parent in list_shards(source)[1]]
    if config.lm_eval_tasks:
        check_tasks(config.lm_eval_tasks, config.lm_eval_directory)
    training = config.training.model_dump(mode="json", exclude={"workers", "device"})
    settings = {"filtered": filtered, "ablate": {**config.model_dump(mode="json"), "training": training}}
    with OutputDirectory(output, "ablation", settings, parents) as out:
        if not out.is_local:
            raise ConfigError(f"{out.path} is a URL; models are trained in a local directory, which you can copy later")
        if out.manifest:
            return read_ablation(out.path), out.manifest
        return _Run(out, config).run(sources, kept)


def read_ablation(directory: str | Path) -> Ablation:
    """The result in the directory of an ablation.

    Raises:
        InputError: the directory has no result.
    """
    content = (Location(directory) / ABLATION_NAME).find_bytes()
    if content is None:
        raise InputError(f"{directory} has no {ABLATION_NAME}: it is not a finished ablation; make one with ablate")
    return Ablation.model_validate_json(content)


class _Run:
    """One ablation in its output directory."""

    def __init__(self, out: OutputDirectory, config: AblateConfig) -> None:
        self.out, self.config, self.dial = out, config, Dial(config.training.depth)
        self.root = Path(out.root).absolute()
        self.scratch = out.scratch.absolute()

    def run(self, sources: dict[str, SourceConfig], kept: Manifest) -> tuple[Ablation, Manifest]:
        targets = write_targets(self.config, self.scratch / "targets")
        texts = {name: list(read_targets(path)) for name, path in targets.items()}
        sizes = {name: [text.bytes for text in of_target] for name, of_target in texts.items()}
        power = self._state_power(sizes[HIGH])
        corpora, left_out = self._corpora(sources)
        arms = Arms(corpora, self.config.arm_tokens)
        jobs, summaries = self._plan(arms, targets)
        parameters = self.dial.parameters(jobs[0].vocabulary)
        logger.info(
            f"Training {len(jobs)} models of {parameters:,} parameters, each on {jobs[0].sequences:,} sequences of "
            f"{self.dial.context} tokens, {self.config.training.passes} times"
        )
        self._train(jobs, texts)
        results = self.out.finished_shards(job.name for job in jobs)
        models = [self._trained(job.name) for job in jobs]
        tasks = {job.name: run_tasks(self.root / MODELS / job.name, self.config) for job in jobs}
        comparisons = compare_arms(models, sizes, self.config)
        verdict, reason, warnings = verdict_of(comparisons, summaries, self.config)
        ablation = Ablation(
            verdict=verdict,
            reason=reason,
            warnings=warnings,
            heads=heads_of(kept),
            power=power,
            spread=spread_between(models, sizes),
            parameters=parameters,
            dial={**self.dial.derived(), "vocabulary": jobs[0].vocabulary},
            steps=jobs[0].steps,
            training_tokens=jobs[0].steps * self.dial.sequences * self.dial.context,
            arms=summaries,
            targets=[Target(name=name, documents=len(by), bytes=sum(by)) for name, by in sizes.items()],
            left_out=left_out,
            models=[_summary(model, sizes, tasks[model.name]) for model in models],
            comparisons=comparisons,
            cpu_seconds=sum(model.cpu_seconds for model in models),
            config=self.config.model_dump(mode="json"),
            parents=self.out.parents,
        )
        self.out.put_bytes(ABLATION_NAME, (ablation.model_dump_json(indent=1) + "\n").encode())
        self.out.put_bytes(REPORT_NAME, ablation_page(ablation).encode())
        counts = {"models": len(models), "target_documents": sum(map(len, sizes.values()))}
        return ablation, self.out.finish(results.items(), counts)

    def _state_power(self, sizes: Sequence[int]) -> Power:
        spread: Spread = read_ablation(self.config.pilot).spread if self.config.pilot else MEASURED_SPREAD
        seeds, confidence = self.config.training.seeds, self.config.confidence
        power = smallest_difference(spread, len(sizes), seeds, confidence)
        logger.info(
            f"With {len(sizes)} documents and {seeds} seeds, a gain of {power.smallest:.4f} bits per byte is found "
            f"with a probability of {power.power:.0%}; smaller ones may go unseen"
        )
        return power

    # --- Corpora -----------------------------------------------------------------------------------------------------

    def _corpora(self, sources: dict[str, SourceConfig]) -> tuple[dict[str, Corpus], dict[str, int]]:
        """The corpora as tokens, and how many documents of each were left out because they overlap a target."""
        pools = dict(decontaminated(sources, self.config, self.scratch / "corpora"))
        read = {name: SourceConfig(paths=[manifest.root]) for name, manifest in pools.items()}
        tokenizer = train_tokenizer(read.values(), self.dial.vocabulary, self.scratch / _TOKENIZER)
        corpora = {
            name: tokenize(source, tokenizer, self.scratch / f"{name}.tokens", f"Tokenizing {name}")
            for name, source in read.items()
        }
        return corpora, {name: manifest.counts["dropped"] for name, manifest in pools.items()}

    def _plan(self, arms: Arms, targets: dict[str, Path]) -> tuple[list[TrainingJob], list[Arm]]:
        """The models to train, with their training data on disk, and what their arms consist of.

        The arms that decide come first, seed by seed, so that their models are ready first.
        """
        training, rates = self.config.training, self.config.training.learning_rates
        planned = [(training.seed + n, arm) for n in range(training.seeds) for arm in (FILTERED, RANDOM)]
        others = [name for name in arms.names() if name not in (FILTERED, RANDOM)]
        planned += [(training.seed + n, arm) for n in range(training.control_seeds) for arm in others]
        fewest = min(int(arms.draw(arm, seed)["document"]["tokens"].sum()) for seed, arm in planned)
        sequences = (fewest - 1) // self.dial.context
        tokens = sequences * self.dial.context + 1
        if sequences < self.dial.sequences:
            raise InputError(
                f"an arm has {fewest:,} tokens, fewer than the {self.dial.sequences * self.dial.context:,} of a batch "
                f"at depth {self.dial.depth}; use a larger corpus or a smaller depth"
            )
        devices, _ = devices_and_workers(training)
        first = TrainingJob(
            name="",
            arm="",
            seed=0,
            rate=0,
            dial=self.dial,
            vocabulary=self._vocabulary(),
            sequences=sequences,
            passes=training.passes,
            checkpoint_steps=training.checkpoint_steps,
            device=devices[0],
            tokens=self.scratch,
            scratch=self.scratch,
            model=self.scratch,
            tokenizer=self.scratch / _TOKENIZER,
            targets=targets,
        )
        jobs, drawn_sizes = [], defaultdict[str, list[tuple[float, float]]](list)
        for number, (seed, arm) in enumerate(planned):
            name = f"{arm}-{seed}"
            scratch = self.scratch / name
            job = replace(
                first,
                name=name,
                arm=arm,
                seed=seed,
                rate=rates[(seed - training.seed) % len(rates)],
                device=devices[number % len(devices)],
                tokens=scratch / "data.tokens",
                scratch=scratch,
                model=self.root / MODELS / name,
            )
            jobs.append(job)
            drawn = arms.draw(arm, seed)
            drawn_sizes[arm].append(_sizes(drawn, tokens))
            if self.out.finished_shard(name) is None and not job.tokens.exists():
                arms.write(drawn, tokens, job.tokens)
        summaries = [_arm(name, arms, drawn_sizes[name], tokens) for name in arms.names()]
        return jobs, summaries

    def _vocabulary(self) -> int:
        content = json.loads((self.scratch / _TOKENIZER).read_bytes())
        return len(content["model"]["vocab"])

    # --- Models ------------------------------------------------------------------------------------------------------

    def _train(self, jobs: Sequence[TrainingJob], texts: Mapping[str, Sequence[TargetText]]) -> None:
        finished = self.out.finished_shards(job.name for job in jobs)
        _, workers = devices_and_workers(self.config.training)
        waiting = [job for job in jobs if job.name not in finished]
        for model in train_models(waiting, min(workers, len(waiting))):
            self._commit(model, texts)

    def _commit(self, model: TrainedModel, texts: Mapping[str, Sequence[TargetText]]) -> ShardResult:
        self.out.put_bytes(f"{MODELS}/{model.name}/{_RESULT}", model.model_dump_json().encode())
        with self.out.new_shard(model.name, _ROWS) as writer, self.out.new_rejects(model.name) as rejects:
            for target, bits in model.bits.items():
                of_target = texts[target]
                columns = {
                    "arm": [model.arm] * len(bits),
                    "seed": [model.seed] * len(bits),
                    "rate": [model.rate] * len(bits),
                    "target": [target] * len(bits),
                    "document_id": [text.id for text in of_target],
                    "bytes": [text.bytes for text in of_target],
                    "bits": bits,
                }
                writer.write(pa.table(columns, schema=_ROWS))
        result = self.out.commit(model.name, writer, rejects, {"measured": writer.rows}, seconds=model.cpu_seconds)
        shutil.rmtree(self.scratch / model.name)
        return result

    def _trained(self, name: str) -> TrainedModel:
        return TrainedModel.model_validate_json((self.root / MODELS / name / _RESULT).read_bytes())


def _sizes(drawn: NDArray[np.void], tokens: int) -> tuple[float, float]:
    """The documents and bytes in the first tokens of a draw, whose last document is cut."""
    counts = drawn["document"]["tokens"]
    share = np.clip((tokens - (np.cumsum(counts) - counts)) / counts, 0, 1)
    return float((share > 0).sum()), float((share * drawn["document"]["bytes"]).sum())


def _arm(name: str, arms: Arms, drawn: Sequence[tuple[float, float]], tokens: int) -> Arm:
    documents, size = np.mean(drawn, axis=0)
    of_arm = [arms.corpora[corpus] for corpus in ([name] if name in arms.corpora else [FILTERED, REJECTED])]
    return Arm(
        name=name,
        available_documents=sum(len(corpus.documents) for corpus in of_arm),
        available_bytes=sum(corpus.bytes for corpus in of_arm),
        documents=float(documents),
        bytes=float(size),
        tokens=tokens,
    )


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
