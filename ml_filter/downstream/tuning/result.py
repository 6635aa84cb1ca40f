"""A tuned model as metadata: where it is, and the content of its tuning.json."""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel

from ml_filter import __version__
from ml_filter.config import flat_settings
from ml_filter.documents.config import SourceConfig
from ml_filter.documents.manifest import Parent, digest_of
from ml_filter.documents.result import read_result
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.data import TRAINED_ON_FILE, DataSummary
from ml_filter.heads.trained import inside
from ml_filter.location import Location
from ml_filter.statistics.intervals import Figure
from ml_filter.tracking import RunRecord

TUNING_NAME = "tuning.json"
REPORT_NAME, CARD_NAME = "report.html", "README.md"
MODEL_DIRECTORY, ADAPTER_DIRECTORY, GGUF_NAME = "model", "adapter", "model.gguf"


class Ancestor(BaseModel):
    """A directory that the data was made from."""

    kind: str
    path: str
    digest: str


class TuningResult(BaseModel):
    """The content of `tuning.json`, which is written last: a directory without it is not complete.

    `figures` compare the tuned model with its base on the held-out conversations: for sft `base_loss`, `loss`,
    `loss_change` and perplexities, per token of the answers; for dpo the loss of DPO, `accuracy` and `margin`.
    `source` says how the data was read. `history` has the curves. `cpu_seconds` counts all processes that worked on the
    model, up to their last checkpoints. `files` has the SHA-256 of every other file. `config_digest` is of all that the
    weights depend on.
    """

    config_digest: str
    config: TuneConfig
    base: Parent
    base_license: str | None
    source: SourceConfig
    parents: list[Parent]
    lineage: list[Ancestor]
    data: DataSummary
    figures: dict[str, Figure]
    history: list[dict[str, float]]
    cpu_seconds: float
    files: dict[Annotated[str, AfterValidator(inside)], str]
    code_version: str = __version__
    commit: str = ""

    def lineage_digests(self) -> dict[str, dict[str, str]]:
        """The digests of the base, of the data, and of what the data was made from, by path."""
        inputs: dict[str, list[Parent] | list[Ancestor]] = {
            "base": [self.base],
            "data": self.parents,
            "made_from": self.lineage,
        }
        return {kind: {item.path: item.digest for item in items} for kind, items in inputs.items()}

    def to_json(self) -> bytes:
        """The content of the file."""
        return (json.dumps(self.model_dump(mode="json"), indent=1) + "\n").encode()


class TunedModel(BaseModel):
    """A tuned model, without its weights. `root` is its directory or URL."""

    root: str
    result: TuningResult

    @property
    def digest(self) -> str:
        """Digest of the weights, the configuration and the tokenizer."""
        files = self.result.files.items()
        return digest_of({name: digest for name, digest in files if name.startswith(f"{MODEL_DIRECTORY}/")})

    @property
    def parent(self) -> Parent:
        """The model as the input of a later stage."""
        return Parent(path=self.root, digest=self.digest)

    @property
    def values(self) -> dict[str, float]:
        """The figures without their intervals."""
        return {name: figure.value for name, figure in self.result.figures.items() if figure.value is not None}

    def trained_on(self) -> NDArray[np.uint64]:
        """The `data.keys_of` the conversations that it was trained on, sorted.

        Raises:
            InputError: their file is missing.
        """
        content = (Location(self.root) / TRAINED_ON_FILE).read_bytes()
        return np.unique(pa.ipc.open_stream(content).read_all()["key"].to_numpy())

    def record(self) -> RunRecord:
        """What the experiment tracker records."""
        result = self.result
        return RunRecord(
            metrics={
                "tuning_cpu_seconds": result.cpu_seconds,
                **self.values,
                **{f"tuning_{name}": count for name, count in result.data.counts.items()},
            },
            parameters={
                "model_digest": self.digest,
                "base": result.base.path,
                "base_digest": result.base.digest,
                "data_digest": ", ".join(parent.digest for parent in result.parents),
                **flat_settings(result.config.model_dump(mode="json"), "tune_"),
            },
            history=[{name.replace("/", "_"): value for name, value in row.items()} for row in result.history],
            pages={REPORT_NAME: (Location(self.root) / REPORT_NAME).read_bytes().decode()},
        )


def read_tuned(name: str | Path) -> TunedModel:
    """Read what is known of a tuned model, without its weights.

    Raises:
        InputError: the model is missing, not complete, or of another version.
    """
    return TunedModel(root=str(Location(name)), result=read_result(name, TUNING_NAME, TuningResult, "ml-filter tune"))


def public_path(path: str) -> str:
    """What may be published of a path: of a local one, only its last part."""
    return path if path.startswith("hf://") else PurePosixPath(path).name


def public_settings(config: TuneConfig) -> dict[str, Any]:
    """The settings that the result depends on."""
    return config.model_dump(mode="json", exclude={"push", "private"})


def training_settings(config: TuneConfig) -> dict[str, Any]:
    """The settings that the weights depend on."""
    return config.model_dump(mode="json", exclude={"push", "private", "license", "gguf", "log_steps"})
