"""Read sources: one file per format, documents for the pipeline, plain tables for everything else.

- `read_shard` reads a shard as tables of documents; unreadable pieces become rejects.
- `read_records` reads a shard row by row, whatever its columns; unreadable rows become rejects.
- `read_rows` reads a table of any columns row by row; an unreadable piece is an error.
- `read_tables` reads columns of a Parquet file as Arrow tables; an unreadable piece is an error.
"""

from ml_filter.documents.readers.base import Format, InputShard, text_id
from ml_filter.documents.readers.documents import read_records, read_shard
from ml_filter.documents.readers.files import format_of_content
from ml_filter.documents.readers.parquet import known_rows, read_schema, read_tables
from ml_filter.documents.readers.table import read_rows

__all__ = [
    "Format",
    "InputShard",
    "format_of_content",
    "known_rows",
    "read_records",
    "read_rows",
    "read_schema",
    "read_shard",
    "read_tables",
    "text_id",
]
