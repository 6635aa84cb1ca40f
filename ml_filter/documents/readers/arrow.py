"""Arrow IPC: streams, as `datasets` saves them, and files (Feather)."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ml_filter.documents.readers import base
from ml_filter.documents.readers.base import Part, Problem, Rows
from ml_filter.documents.readers.columns import check_unique
from ml_filter.documents.readers.files import InputFile


def _check(batch: pa.RecordBatch) -> None:
    """Check the offsets in a batch, which Arrow takes from the file as they are: wrong ones crash the process.

    Raises:
        ArrowInvalid: the batch is damaged.
    """
    for column in batch.columns:
        if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):  # text is checked row by row
            column = column.view(pa.binary() if pa.types.is_string(column.type) else pa.large_binary())  # noqa: PLW2901
        column.validate(full=True)


def read_parts(file: InputFile) -> Iterator[Part]:
    """The rows of a file in tables of at most 1,000; a file that is cut off or damaged ends with a problem."""
    first = 0
    with file.seekable() as raw:
        is_file = raw.read(6) == b"ARROW1"
        raw.seek(0)
        reader = pa.ipc.open_file(raw) if is_file else pa.ipc.open_stream(raw)
        check_unique(reader.schema.names, file.uri)
        batches = (reader.get_batch(i) for i in range(reader.num_record_batches)) if is_file else iter(reader)
        try:
            for batch in batches:
                _check(batch)
                for start in range(0, batch.num_rows, base.BATCH_ROWS):
                    yield f"row {first}", Rows(pa.Table.from_batches([batch.slice(start, base.BATCH_ROWS)]), first)
                    first += min(base.BATCH_ROWS, batch.num_rows - start)
        except (pa.ArrowException, OSError, EOFError) as error:
            yield f"after row {first - 1}", Problem("truncated", str(error))
            return
        if not is_file and raw.read(1):
            yield f"after row {first - 1}", Problem("unreadable", "bytes after the end of the stream")
