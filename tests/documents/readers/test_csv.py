import csv
import gzip
import io

import pytest

from ml_filter.documents.readers import text_id
from ml_filter.errors import InputError
from tests.documents.readers.reading import compress, varied_rows


@pytest.mark.parametrize("ending", ["", ".gz", ".zst"])
@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_values_are_read_unchanged_as_text(read, tmp_path, separator, ending):
    rows = [["id", "text", "n"], ["007", 'two\nlines, "quoted"; one\ttab', "1.50"], ["", "zwei ß", ""]]
    content = io.StringIO(newline="")
    csv.writer(content, delimiter=separator).writerows(rows)
    path = tmp_path / f"a.csv{ending}"
    path.write_bytes(compress(content.getvalue().encode(), ending))
    assert read(path).rows == [
        {"id": "007", "text": 'two\nlines, "quoted"; one\ttab', "n": "1.50"},
        {"id": text_id("zwei ß"), "text": "zwei ß", "n": None},
    ]
    assert read(path, id_column="n").rows[0]["id"] == "1.50"


def test_each_bad_row_is_one_reject_and_the_others_are_read(read, tmp_path):
    path = tmp_path / "a.tsv"
    path.write_bytes(b'text\tn\na\t1\nb\nc\t1\t2\n"d" e\t1\n\n\xff\t1\n\t1\n"f\ng"\t1\nh\t2\n"i\t3\nj')
    result = read(path)
    assert result.texts == ["a", "f\ng", "h"]
    assert result.locations == [
        ("line 3", "invalid_csv"),
        ("line 4", "invalid_csv"),
        ("line 5", "invalid_csv"),
        ("line 7", "invalid_utf8"),
        ("line 8", "missing_text"),
        ("line 12", "invalid_csv"),
    ]


def test_a_missing_text_column_is_an_error_that_lists_the_columns(read, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("id,body\n1,one\n")
    with pytest.raises(InputError, match=r"a\.csv has no column 'text'; it has id, body"):
        read(path)
    assert read(path, text_column="body").texts == ["one"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,té\n1,one\n".encode("latin-1"), "is not UTF-8; save it as UTF-8"),
        (b"id,id\n1,one\n", "has several columns named 'id'; rename them"),
        (b"\nid,text\n", "begins with an empty line; the first line must name the columns"),
        (b'"id" x,text\n', "line 1: .*; the first line must name the columns"),
    ],
)
def test_a_first_line_that_does_not_name_the_columns_is_an_error(read, tmp_path, content, message):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read(tmp_path / "a.csv")


def test_complete_rows_of_a_truncated_archive_are_read(read, tmp_path):
    content = gzip.compress("".join(f"{row['id']},{row['text']}\n" for row in varied_rows(2000)).encode())
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"id,text\n") + content[: len(content) // 2])
    result = read(tmp_path / "a.csv.gz")
    assert result.rows == varied_rows(2000)[: len(result.rows)]
    assert len(result.rows) > 500
    assert result.reasons == ["truncated"]
