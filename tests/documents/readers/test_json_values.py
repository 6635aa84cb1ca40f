import json

import pytest

from tests.documents.readers.reading import lines

ROWS = [{"id": str(i), "text": f"text {i}\n{{", "n": {"k": [i, 7]}} for i in range(5)]
LAYOUTS = {
    "array in one line": json.dumps(ROWS),
    "array, pretty": json.dumps(ROWS, indent=2),
    "array, an object per line": "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]\n",
    "lines with commas": ",\n".join(map(json.dumps, ROWS)),
    "pretty objects": "\n".join(json.dumps(row, indent=1) for row in ROWS),
    "object with a list": json.dumps({"version": 1, "data": ROWS}),
    "object with a list, pretty": json.dumps({"version": 1, "data": ROWS}, indent=4),
    "two arrays": json.dumps(ROWS[:2]) + "\n" + json.dumps(ROWS[2:]),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
def test_every_layout_of_json_is_read(read, tmp_path, layout, line_end):
    path = tmp_path / "a.json"
    path.write_bytes(LAYOUTS[layout].replace("\n", line_end).encode())
    result = read(path)
    assert result.rows == ROWS
    assert result.rejects == []


def test_an_array_larger_than_the_limit_of_a_line_is_streamed(read, tmp_path):
    rows = [{"id": str(i), "text": "x" * 10_000} for i in range(200)]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    assert len(read(tmp_path / "a.json", max_text_bytes=20_000).rows) == 200


def test_a_bad_item_is_one_reject_and_the_next_ones_are_read(read, tmp_path):
    pretty = json.dumps(ROWS, indent=2).replace('"id": "2"', '"id": "2')
    (tmp_path / "a.json").write_text(pretty)
    result = read(tmp_path / "a.json")
    assert [row["id"] for row in result.rows] == ["0", "1", "3", "4"]
    assert result.reasons == ["invalid_json"]
    assert result.locations[0][0].startswith("line ")


def test_what_follows_a_bad_item_in_the_same_line_is_damage(read, tmp_path):
    (tmp_path / "a.json").write_text(json.dumps(ROWS).replace('"id": "2"', '"id": "2'))
    result = read(tmp_path / "a.json")
    assert [row["id"] for row in result.rows] == ["0", "1"]
    assert result.reasons == ["unreadable"]


@pytest.mark.parametrize("cut", [1, 30, 100])
def test_an_array_that_is_cut_off_is_one_reject(read, tmp_path, cut):
    content = json.dumps(ROWS, indent=2)
    (tmp_path / "a.json").write_text(content[:-cut])
    result = read(tmp_path / "a.json")
    assert result.rows == ROWS[: len(result.rows)]
    assert result.reasons == ["truncated"]


def test_items_that_are_not_objects_are_rejects(read, tmp_path):
    (tmp_path / "a.json").write_text('[1, "two", null,\n{"text": "three"}, {"text": "\\ud800"}]')
    result = read(tmp_path / "a.json")
    assert result.texts == ["three"]
    assert result.reasons == ["invalid_json"] * 3 + ["invalid_utf8"]


def test_a_row_with_a_text_is_a_row_whatever_lists_it_has(read, tmp_path):
    row = {"id": "a", "text": "one", "answers": [{"text": "two"}]}
    (tmp_path / "a.jsonl").write_bytes(lines(row))
    assert read(tmp_path / "a.jsonl").rows == [row]


def test_numbers_that_are_not_json_are_read(read, tmp_path):
    (tmp_path / "a.jsonl").write_text('{"id": NaN, "text": "one", "n": Infinity}\n')
    [row] = read(tmp_path / "a.jsonl").rows
    assert (len(row["id"]), row["n"]) == (32, float("inf"))
