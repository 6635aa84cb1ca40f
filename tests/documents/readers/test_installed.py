from itertools import islice

import pytest

from ml_filter.documents.readers.installed import fingerprint, read_installed

pytestmark = pytest.mark.slow


def test_the_installed_corpus_has_hundreds_of_documents_in_a_fixed_order(read):
    result = read("installed:")
    assert len(result.rows) > 100
    assert len({row["id"] for row in result.rows}) == len(result.rows)
    assert {"reference", "module", "description", "licence"} == {row["source"] for row in result.rows}
    assert result.rejects == []
    assert list(islice(read_installed(), 120)) == result.rows[:120]
    assert fingerprint() == fingerprint()
