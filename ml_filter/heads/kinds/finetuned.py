"""Train an encoder together with its output layer. The result is an encoder head like any other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ml_filter.heads.balance import class_weights
from ml_filter.heads.batching import combine_windows
from ml_filter.heads.info import HELD_OUT_FOLD, HeadInfo, uncalibrated
from ml_filter.heads.kinds.encoder import CHUNK_TEXTS, EncoderTrainer
from ml_filter.statistics.intervals import Array

if TYPE_CHECKING:
    from ml_filter.heads.model import HeadModel

_NUMBERS = pa.list_(pa.float32())
_TEXTS = pa.schema({"text": pa.string()})
_LABELLED = pa.schema({"text": pa.string(), "labels": _NUMBERS, "weights": _NUMBERS})


class FinetunedTrainer(EncoderTrainer):
    """Fits the output layer to the frozen encoder first, then trains both.

    Training is too expensive to repeat for each fold: `cross_fit` trains once, one fold chooses the checkpoint and is
    scored, and `fit` keeps that model.
    """

    calibrated_on = HELD_OUT_FOLD
    _scratch: Path
    _model: HeadModel | None = None

    def _open(self, opened: ExitStack) -> None:
        super()._open(opened)
        self._scratch.mkdir(parents=True, exist_ok=True)
        self._file = self._scratch / "texts.parquet"
        self._texts = opened.enter_context(pq.ParquetWriter(self._file, _TEXTS))

    def _rows_of(self, windows: Sequence[str]) -> list[int]:
        self._texts.write_table(pa.table({"text": windows}))
        return super()._rows_of(windows)

    def cross_fit(self, indices: NDArray[np.int64], labels: Array, weights: Array, folds: NDArray[np.int64]) -> Array:
        """Train on all folds but the first; scores of the first, nan for the others."""
        from ml_filter.heads.finetune import finetune

        assert self.config.finetune is not None
        self._texts.close()
        others = folds != folds.min()
        super().fit(indices[others], labels[others], weights[others])
        # Training only needs the names and ranges; calibration comes later.
        self._model = self._model_with(HeadInfo(engine="encoder", criteria=uncalibrated(self.criteria)))
        balanced = class_weights(labels, weights, self.config.head.balance)
        train, validation = (
            self._write(name, indices[chosen], labels[chosen], balanced[chosen])
            for name, chosen in (("train", others), ("validation", ~others))
        )
        self.history = finetune(
            self._model,
            self._tokenizer,
            train,
            validation,
            self.config.finetune,
            self._scratch,
            seed=self.config.seed,
        )
        scores = np.full(labels.shape, np.nan)
        scores[~others] = self.predict(indices[~others])
        return scores

    def fit(self, indices: NDArray[np.int64], labels: Array, weights: Array) -> None:
        """Keep the model that `cross_fit` trained."""

    def predict(self, indices: NDArray[np.int64]) -> Array:
        """Scores of documents by the trained model."""
        assert self._model is not None
        parts, positions = [], []
        for texts, texts_at in self._read(indices):
            parts.append(self._run(self._model, self._model, texts).astype(np.float64))
            positions.append(texts_at)
        return combine_windows(np.concatenate(parts), np.concatenate(positions), len(indices), self.config.combine)

    def _model_with(self, info: HeadInfo) -> HeadModel:
        if self._model is None:
            return super()._model_with(info)
        self._model.config.head = info.model_dump(mode="json")
        return self._model

    def _read(self, indices: NDArray[np.int64]) -> Iterator[tuple[list[str], NDArray[np.int64]]]:
        """The windows of documents in chunks: their texts, and the position of each one's document in `indices`."""
        positions, start = self._positions_of_windows(indices), 0
        for batch in pq.ParquetFile(self._file).iter_batches(CHUNK_TEXTS):
            in_batch = positions[start : start + len(batch)]
            start += len(batch)
            chosen = in_batch >= 0
            if chosen.any():
                yield batch.column("text").filter(pa.array(chosen)).to_pylist(), in_batch[chosen]

    def _write(self, name: str, indices: NDArray[np.int64], labels: Array, weights: Array) -> Path:
        """Write the windows of some documents as `finetune` reads them."""
        path = self._scratch / f"{name}.parquet"
        with pq.ParquetWriter(path, _LABELLED) as writer:
            for texts, positions in self._read(indices):
                columns = [texts, *(list(values[positions].astype(np.float32)) for values in (labels, weights))]
                writer.write_table(pa.table(columns, schema=_LABELLED))
        return path
