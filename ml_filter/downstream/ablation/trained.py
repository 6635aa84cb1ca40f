"""Train the models of all arms, and measure them on every target document.

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
from ml_filter.downstream.ablation.config import FILTERED, RANDOM, REJECTED, AblateConfig
from ml_filter.downstream.ablation.corpora import decontaminated, sources_of
from ml_filter.downstream.ablation.dial import Dial
from ml_filter.downstream.ablation.processes import devices_and_workers, train_models
from ml_filter.downstream.ablation.result import ARMS_NAME, TRAINED_NAME, Arm, TrainedArms, model_path, power_of
from ml_filter.downstream.ablation.targets import HIGH, TargetText, read_targets, write_targets
from ml_filter.downstream.ablation.tokens import Corpus, tokenize, train_tokenizer
from ml_filter.downstream.ablation.training import TrainedModel, TrainingJob
from ml_filter.errors import ConfigError, InputError

if TYPE_CHECKING:
    from numpy.typing import NDArray

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


def train_arms(filtered: str, config: AblateConfig, output: str | Path) -> Manifest:
    """Train and measure the models of all arms; writes `arms.json`, the models and the bits of every target document.

    Only settings that change those are part of the digest: another confidence trains nothing again.

    Args:
        filtered: directory that `filter` wrote with `dropped`.
        config: targets, arms and training.
        output: local directory.

    Raises:
        InputError: the directory has no dropped documents, a target or an arm has too few documents, or a process died.
        ConfigError: `arm_tokens` is more than an arm has, a corpus has too few tokens, the device is not available, or
            a model has diverged.
    """
    sources = sources_of(filtered, config)
    inputs = [*sources.values(), config.gold, *config.targets.values()]
    parents = [parent for source in inputs for parent in list_shards(source)[1]]
    with OutputDirectory(output, "ablation-arms", config.of_arms, parents) as out:
        if not out.is_local:
            raise ConfigError(f"{out.path} is a URL; models are trained in a local directory, which you can copy later")
        return out.manifest or _Arms(out, config).run(sources)


class _Arms:
    """The arms of one ablation in their output directory."""

    def __init__(self, out: OutputDirectory, config: AblateConfig) -> None:
        self.out, self.config, self.dial = out, config, Dial(config.training.depth)
        self.root = Path(out.root).absolute()
        self.scratch = out.scratch.absolute()

    def run(self, sources: dict[str, SourceConfig]) -> Manifest:
        devices_and_workers(self.config.training)  # a device that is not there is known before the corpora are read
        targets = write_targets(self.config, self.scratch / "targets")
        texts = {name: list(read_targets(path)) for name, path in targets.items()}
        sizes = {name: [text.bytes for text in of_target] for name, of_target in texts.items()}
        power = power_of(len(sizes[HIGH]), self.config)
        logger.info(
            f"With {power.documents} documents and {power.repetitions} seeds, a gain of {power.smallest:.4f} bits per "
            f"byte is found with a probability of {power.power:.0%}; smaller ones may go unseen"
        )
        corpora, left_out = self._corpora(sources)
        jobs, summaries = self._plan(Arms(corpora, self.config.arm_tokens), targets)
        trained = TrainedArms(
            arms=summaries,
            left_out=left_out,
            sizes=sizes,
            models=[job.name for job in jobs],
            parameters=self.dial.parameters(jobs[0].vocabulary),
            dial={**self.dial.derived(), "vocabulary": jobs[0].vocabulary},
            steps=jobs[0].steps,
            training_tokens=jobs[0].steps * self.dial.sequences * self.dial.context,
        )
        logger.info(
            f"Training {len(jobs)} models of {trained.parameters:,} parameters, each on {jobs[0].sequences:,} "
            f"sequences of {self.dial.context} tokens, {self.config.training.passes} times"
        )
        self._train(jobs, texts)
        self.out.put_bytes(ARMS_NAME, (trained.model_dump_json(indent=1) + "\n").encode())
        counts = {"models": len(jobs), "target_documents": sum(map(len, sizes.values()))}
        return self.out.finish(self.out.finished_shards(trained.models).items(), counts)

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
        fewest = arms.shortest(planned)
        sequences = (fewest - 1) // self.dial.context
        tokens = sequences * self.dial.context + 1
        if sequences < self.dial.sequences:
            raise InputError(
                f"an arm has {fewest:,} tokens, fewer than the {self.dial.sequences * self.dial.context:,} of a batch "
                f"at depth {self.dial.depth}; use a larger corpus or a smaller depth"
            )
        arms.require(tokens)
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
                model=self.root / model_path(name),
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
        self.out.put_bytes(f"{model_path(model.name)}/{TRAINED_NAME}", model.model_dump_json().encode())
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
