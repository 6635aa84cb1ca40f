"""PDF files as documents: the text without what the layout adds, and rejects with a reason."""

import gzip

import pytest

from ml_filter.documents.extraction import ExtractionError, read_pdf
from ml_filter.documents.pdf import text_of
from tests.pdfs import pdf


def page(number: int, name: str) -> list[str]:
    halves = [f"Part {name}: the cell divides and its mito-", f"chondria go with it in step {name}."]
    return ["Journal of Cells 12", *halves, f"{number}"]


PAGES = [page(number, name) for number, name in enumerate(("one", "two", "three"), 1)]


def test_a_pdf_is_one_document_with_its_title_and_pages(read, tmp_path):
    (tmp_path / "cells.pdf").write_bytes(pdf(*PAGES, title="Cells"))
    [row] = read(tmp_path).rows
    assert row["text"] == "\n\n".join(
        f"Part {name}: the cell divides and its mitochondria go with it in step {name}."
        for name in ("one", "two", "three")
    )
    assert (row["title"], row["pages"]) == ("Cells", 3)


def test_a_pdf_is_known_by_its_content_and_may_be_compressed(read, tmp_path):
    (tmp_path / "article").write_bytes(pdf(["Cells divide."]))
    (tmp_path / "b.pdf.gz").write_bytes(gzip.compress(pdf(["Cells grow."])))
    assert read(tmp_path).texts == ["Cells divide.", "Cells grow."]


@pytest.mark.parametrize(
    ("content", "reason", "detail"),
    [
        (pdf(["secret"], password="x"), "encrypted", "password"),
        (pdf(["long enough"] * 50)[:300], "extraction_failed", "pdf: "),
        (b"%PDF-1.7\n" + bytes(range(256)) * 20, "extraction_failed", "pdf: "),
        (pdf([]), "no_main_text", "perhaps a scan; pages: 1"),
        (b"", "extraction_failed", "empty"),
    ],
)
def test_a_pdf_that_cannot_be_read_is_a_reject_and_the_next_is_read(read, tmp_path, content, reason, detail):
    (tmp_path / "a.pdf").write_bytes(content)
    (tmp_path / "b.pdf").write_bytes(pdf(["Cells divide."]))
    result = read(tmp_path)
    assert (result.texts, result.reasons) == (["Cells divide."], [reason])
    assert detail in result.rejects[0]["detail"]


def test_a_pdf_that_takes_too_long_is_an_error():
    with pytest.raises(ExtractionError, match=r"pdf took more than 0.05 s"):
        read_pdf(pdf(*([["word"] * 500] * 200)), 0.05)


def test_ligatures_and_hyphens_are_undone_and_ranges_and_lists_keep_theirs():
    page = "The \ufb01rst e\ufb03cient re\u00adsult of 1990-\n1995 is well-known\n"
    page += "and was con\u2010\n\ufb01rmed:\n- one\n- two"
    expected = "The first efficient result of 1990-\n1995 is well-known\nand was confirmed:\n- one\n- two"
    assert text_of([page]) == expected


def test_a_sentence_goes_on_over_the_page_and_its_number():
    pages = ["A. Author\nThe heart\n1", "A. Author\npumps blood.\n2", "A. Author\nThe lungs breathe.\nPage 3 of 3"]
    assert text_of(pages) == "The heart\npumps blood.\n\nThe lungs breathe."


def test_what_repeats_inside_pages_or_on_two_pages_is_text():
    pages = ["Verse\nRefrain\nA line\nAnother.", "Verse\nA line\nRefrain\nA third one"]
    assert text_of(pages) == "Verse\nRefrain\nA line\nAnother.\n\nVerse\nA line\nRefrain\nA third one"
