"""Store manifests and heads as JSON and safetensors, with previews, never by cloudpickle."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from zenml.enums import ArtifactType, VisualizationType
from zenml.materializers.base_materializer import BaseMaterializer

from ml_filter.documents.manifest import MANIFEST_NAME, Manifest
from ml_filter.documents.preview import manifest_preview
from ml_filter.heads.train import TRAINING_NAME, TrainedHead, head_files, read_head
from ml_filter.rendering.html import render

_PREVIEW = "preview.html"
_ROOT = "root.txt"
_FILES = "files.json"
_DIGEST = "digest.txt"


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
            "counts": dict(data.counts),
        }

    def compute_content_hash(self, data: Manifest) -> str:
        """The digest of the manifest, which does not depend on its directory."""
        return data.digest


class HeadMaterializer(_WithPreview):
    """Stores the files of the head, so that a model version contains the model."""

    ASSOCIATED_TYPES: ClassVar[tuple[type[Any], ...]] = (TrainedHead,)
    ASSOCIATED_ARTIFACT_TYPE: ClassVar[ArtifactType] = ArtifactType.MODEL
    SKIP_REGISTRATION: ClassVar[bool] = False

    def save(self, data: TrainedHead) -> None:
        """Copy the files of the head to the store."""
        files = head_files(data.directory)
        names = [file.relative_to(data.directory).as_posix() for file in files]
        for name, file in zip(names, files, strict=True):
            self.artifact_store.makedirs(f"{self.uri}/{name}".rpartition("/")[0])
            self._write(f"{self.uri}/{name}", file.read_bytes())
        self._write(f"{self.uri}/{_FILES}", json.dumps(names).encode())
        self._write(f"{self.uri}/{_ROOT}", data.directory.encode())
        self._write(f"{self.uri}/{_DIGEST}", data.digest.encode())

    def load(self, data_type: type[Any]) -> TrainedHead:
        """Return the head in its original directory if that is unchanged, else a copy from the store."""
        trained_in = self._read(f"{self.uri}/{_ROOT}").decode()
        stored = self._read(f"{self.uri}/{TRAINING_NAME}")
        original = Path(trained_in) / TRAINING_NAME
        if original.exists() and original.read_bytes() == stored:
            head = read_head(trained_in)
            if head.digest == self._read(f"{self.uri}/{_DIGEST}").decode():
                return head
        directory = Path(tempfile.mkdtemp(prefix="ml_filter-head-"))
        for name in json.loads(self._read(f"{self.uri}/{_FILES}")):
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
            (directory / name).write_bytes(self._read(f"{self.uri}/{name}"))
        return read_head(directory)

    def save_visualizations(self, data: TrainedHead) -> dict[str, VisualizationType]:
        """The figures on held-out documents."""
        return self._save_preview(render("heads/templates/head.html", head=data))

    def extract_metadata(self, data: TrainedHead) -> dict[str, Any]:
        """Directory, digest and figures of the head."""
        return {"path": data.directory, "digest": data.digest, **data.training.evaluation.figures()}

    def compute_content_hash(self, data: TrainedHead) -> str:
        """The digest of the weights."""
        return data.digest
