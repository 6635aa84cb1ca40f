import os
import signal
from concurrent.futures import ThreadPoolExecutor
from threading import Timer
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ml_filter.documents import extraction
from ml_filter.documents.extraction import ExtractionError, Extractor, main_text
from ml_filter.errors import ConfigError

PROSE = "The heart pumps blood through the body, and the lungs bring oxygen into it with every breath we take. "
LIMIT = 10
LONG_TAG = "<html><body><div " + " ".join(f"a{number}" for number in range(300_000)) + ">"
EXTRACTORS = get_args(Extractor)


def page(text: str) -> str:
    article = f"<article><h1>Blood</h1><p>{PROSE * 5}</p>{text}</article>"
    return f"<html><body><nav><a href='/'>menu</a></nav>{article}</body></html>"


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_the_main_text_is_without_menus_and_the_whole_text_has_them(extractor):
    text = main_text(page(f"<p>{PROSE}The end.</p>"), extractor, LIMIT)
    assert "heart pumps blood" in text
    assert "The end." in text
    assert ("menu" in text) == (extractor == "text")


@pytest.mark.parametrize("extractor", EXTRACTORS)
def test_a_page_that_takes_too_long_is_an_error_and_the_next_page_is_extracted(extractor):
    with pytest.raises(ExtractionError, match=r"took more than 0.2 s") as error:
        main_text(LONG_TAG + page(""), extractor, 0.2)
    assert error.value.reason == "extraction_timeout"
    assert "heart pumps blood" in main_text(page(""), extractor, 0.2)


@pytest.mark.parametrize("extractor", EXTRACTORS)
@pytest.mark.parametrize("html", ["", " \n", "<!-- x -->", "<!DOCTYPE html>", "<script>let a = 1</script>", "<html/>"])
def test_a_page_without_text_has_an_empty_text(extractor, html):
    assert main_text(html, extractor, LIMIT).strip() == ""


@pytest.mark.parametrize("extractor", ["trafilatura", "resiliparse", "text"])  # jusText drops text with ©
@settings(max_examples=40, deadline=None)
@given(noise=st.text(st.characters(exclude_characters="<>&"), max_size=20), reference=st.integers(0, 0x10FFFF))
def test_no_character_or_reference_loses_the_text_around_it(extractor, noise, reference):
    text = main_text(page(f"<p>{PROSE} {noise}&#{reference};&#x{reference:x}; {PROSE} The end.</p>"), extractor, LIMIT)
    assert "The end." in text
    assert "\x00" not in text


@pytest.mark.parametrize("tags", ["<p><font>", "<b>", "<div>", "<ul><li>", "<table><tr><td>"])
@pytest.mark.parametrize("extractor", ["trafilatura", "text"])
def test_elements_that_are_never_closed_do_not_cut_the_text_off(extractor, tags):
    text = main_text("<html><body>" + "".join(f"{tags}{n} {PROSE}" for n in range(280)), extractor, LIMIT)
    assert f"279 {PROSE.strip()}" in text


@pytest.mark.parametrize("extractor", ["trafilatura", "justext"])
def test_a_page_that_the_parser_would_cut_off_is_an_error(extractor):
    with pytest.raises(ExtractionError, match="cut the page off") as error:
        main_text("<html><body>" + "<div>x" * 3000, extractor, LIMIT)
    assert error.value.reason == "extraction_failed"


def test_each_thread_gets_the_text_of_its_own_page():
    with ThreadPoolExecutor(4) as pool:
        texts = pool.map(lambda n: main_text(page(f"<p>page number {n}.</p>"), "resiliparse", LIMIT), range(100))
    assert [f"page number {n}." in text for n, text in enumerate(texts)] == [True] * 100


def process_id(extractor: Extractor) -> int:
    worker = extraction._worker(extractor, LIMIT, os.getpid())
    assert worker._process is not None
    return worker._process.pid


@pytest.mark.slow
def test_a_crash_is_an_error_and_the_next_page_is_extracted():
    main_text(page(""), "resiliparse", LIMIT)
    Timer(0.3, os.kill, (process_id("resiliparse"), signal.SIGSEGV)).start()
    with pytest.raises(ExtractionError, match=r"resiliparse crashed \(SIGSEGV\)") as error:
        main_text(LONG_TAG, "resiliparse", LIMIT)
    assert error.value.reason == "extraction_failed"
    assert "heart pumps blood" in main_text(page(""), "resiliparse", LIMIT)


@pytest.mark.slow
def test_a_process_that_was_killed_between_pages_is_started_again():
    main_text(page(""), "resiliparse", LIMIT)
    os.kill(pid := process_id("resiliparse"), signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert "heart pumps blood" in main_text(page(""), "resiliparse", LIMIT)


@pytest.mark.slow
def test_after_an_interruption_the_next_page_gets_its_own_text():
    main_text(page(""), "resiliparse", LIMIT)
    Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
    with pytest.raises(KeyboardInterrupt):
        main_text(LONG_TAG, "resiliparse", LIMIT)
    assert "The second page" in main_text(page("<p>The second page.</p>"), "resiliparse", LIMIT)


def test_an_extractor_that_cannot_be_started_is_an_error_that_names_it():
    with pytest.raises(ConfigError, match="nothing cannot be started"):
        main_text(page(""), "nothing", LIMIT)
