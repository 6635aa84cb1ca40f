"""Store manifests and heads as JSON and safetensors, with previews, never by cloudpickle."""

from __future__ import annotations

import json
import shutil
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer

from ml_filter.documents.manifest import MANIFEST_NAME, Manifest
from ml_filter.documents.preview import manifest_preview
from ml_filter.downstream.tuning.result import REPORT_NAME, TUNING_NAME, TunedModel, TuningResult
from ml_filter.heads.info import CONFIG_NAME
from ml_filter.heads.store import HUB, ZENML, open_file
from ml_filter.heads.trained import TRAINING_NAME, TrainedHead, TrainingResult
from ml_filter.location import Location
from ml_filter.rendering.html import render

_PREVIEW = "preview.html"
_ROOT = "root.txt"
_ORIGIN = "origin.json"
_BLOCK = 2**22


class _WithPreview(BaseMaterializer):
    SKIP_REGISTRATION: ClassVar[bool] = True

    def _save_preview(self, page: str) -> dict[str, VisualizationType]:
        path = f"{self.uri}/{_PREVIEW}"
        self._write(path, page.encode())
        return {path.replace("\\", "/"): VisualizationType.HTML}

    def _write(self, path: str, content: bytes) -> None:
        with self.artifact_store.open(path, "wb") as file:
            file.write(content)

    def _read(self, path: str) -> bytes:
        with self.artifact_store.open(path, "rb") as file:
            content: bytes = file.read()
        return content


class ManifestMaterializer(_WithPreview):
    """Stores the manifest. The shards stay where they are; the manifest has their digests."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (Manifest,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.DATA
    SKIP_REGISTRATION: ClassVar[bool] = False

    def save(self, data: Manifest) -> None:
        """Write the manifest and the path of its directory."""
        self._write(f"{self.uri}/{MANIFEST_NAME}", data.to_json().encode())
        self._write(f"{self.uri}/{_ROOT}", data.root.encode())

    def load(self, data_type: type[Any]) -> Manifest:
        """Read the manifest back."""
        manifest = Manifest.model_validate_json(self._read(f"{self.uri}/{MANIFEST_NAME}"))
        manifest.root = self._read(f"{self.uri}/{_ROOT}").decode()
        return manifest

    def save_visualizations(self, data: Manifest) -> dict[str, VisualizationType]:
        """Counts, shards and the first rows."""
        return self._save_preview(manifest_preview(data))

    def extract_metadata(self, data: Manifest) -> dict[str, Any]:
        """Counts, size and digests."""
        return {
            "kind": data.kind,
            "path": data.root,
            "rows": data.rows,
            "shards": len(data.shards),
            "bytes": sum(shard.bytes for shard in data.shards),
            "digest": data.digest,
            "config_digest": data.config_digest,
            "commit": data.commit,
            "counts": dict(data.counts),
        }

    def compute_content_hash(self, data: Manifest) -> str:
        """The digest of the manifest, which does not depend on its directory."""
        return data.digest


class HeadMaterializer(_WithPreview):
    """Stores the files of the head, so that a model version contains the model.

    Loading reads no weights. They come from the origin if that is a directory with the same head, else from the store.
    """

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (TrainedHead,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL
    SKIP_REGISTRATION: ClassVar[bool] = False

    def save(self, data: TrainedHead) -> None:
        """Copy the files of the head to the store."""
        for name in data.training.files:
            self.artifact_store.makedirs(f"{self.uri}/{name}".rpartition("/")[0])
            with open_file(data, name) as source, self.artifact_store.open(f"{self.uri}/{name}", "wb") as target:
                shutil.copyfileobj(source, target, _BLOCK)
        self._save_metadata(data, self.uri)

    def _save_metadata(self, data: TrainedHead, copy_at: str | None) -> None:
        self._write(f"{self.uri}/{_ORIGIN}", json.dumps({"origin": data.origin, "copy_at": copy_at}).encode())
        self._write(f"{self.uri}/{TRAINING_NAME}", data.training.to_json())

    def load(self, data_type: type[Any]) -> TrainedHead:
        """Read what is known of the head. A directory that is not on this machine gives way to the copy as origin."""
        training = self._read(f"{self.uri}/{TRAINING_NAME}")
        names = json.loads(self._read(f"{self.uri}/{_ORIGIN}"))
        origin, copy_at = names["origin"], names["copy_at"]
        directory = Location(origin)
        if directory.is_local and not origin.startswith((ZENML, HUB)):
            origin = origin if (directory / TRAINING_NAME).find_bytes() == training else copy_at
        head = TrainedHead(
            origin=origin,
            copy_at=copy_at,
            training=TrainingResult.model_validate_json(training),
            config=json.loads(self._read(f"{self.uri}/{CONFIG_NAME}")),
        )
        if copy_at is not None:
            head.opens_copy_with(lambda name: self.artifact_store.open(f"{copy_at}/{name}", "rb"))
        return head

    def save_visualizations(self, data: TrainedHead) -> dict[str, VisualizationType]:
        """The figures on held-out documents."""
        return self._save_preview(render("heads/templates/head.html", head=data))

    def extract_metadata(self, data: TrainedHead) -> dict[str, Any]:
        """Origin, digest and figures of the head."""
        commit = data.training.commit
        return {"path": data.origin, "digest": data.digest, "commit": commit, **data.training.evaluation.figures()}

    def compute_content_hash(self, data: TrainedHead) -> str:
        """The digest of the weights."""
        return data.digest


class ReferencedHeadMaterializer(HeadMaterializer):
    """Stores only the location of a head that is at a URL or a model version, which needs no other copy."""

    SKIP_REGISTRATION: ClassVar[bool] = True

    def save(self, data: TrainedHead) -> None:
        """Store the origin, or copy the files."""
        if data.copy_at is None and Location(data.origin).is_local:
            super().save(data)
        else:
            self._write(f"{self.uri}/{CONFIG_NAME}", json.dumps(data.config).encode())
            self._save_metadata(data, data.copy_at)


class TunedModelMaterializer(_WithPreview):
    """Stores what is known of a tuned model. Its files stay where they are, pinned by their digests."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (TunedModel,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL
    SKIP_REGISTRATION: ClassVar[bool] = False

    def save(self, data: TunedModel) -> None:
        """Write tuning.json and the path of the model."""
        self._write(f"{self.uri}/{TUNING_NAME}", data.result.to_json())
        self._write(f"{self.uri}/{_ROOT}", data.root.encode())

    def load(self, data_type: type[Any]) -> TunedModel:
        """Read both back."""
        result = TuningResult.model_validate_json(self._read(f"{self.uri}/{TUNING_NAME}"))
        return TunedModel(root=self._read(f"{self.uri}/{_ROOT}").decode(), result=result)

    def save_visualizations(self, data: TunedModel) -> dict[str, VisualizationType]:
        """The report."""
        return self._save_preview((Location(data.root) / REPORT_NAME).read_bytes().decode())

    def extract_metadata(self, data: TunedModel) -> dict[str, Any]:
        """Path, digest and figures."""
        return {"path": data.root, "digest": data.digest, "commit": data.result.commit, **data.values}

    def compute_content_hash(self, data: TunedModel) -> str:
        """The digest of the weights."""
        return data.digest
