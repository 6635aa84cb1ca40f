"""The text of a web page or a PDF, extracted in a separate process that the kernel ends when it takes too long.

Every extractor has pages that keep it busy for minutes: 300,000 attributes, 100,000 nested elements, a table of 200,000
rows. No limit on bytes or elements finds them all, and the extractors run in C or Rust, which nothing in the same
process can interrupt. A separate process costs half a millisecond a page, and also turns crashes into rejects.

A page over the limit is a reject, not a document of all its text: taking all the text exceeds the limit on some of the
same pages, and four of ten words of a page are not its main text.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache, partial
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from threading import Lock
from typing import TYPE_CHECKING, Any, Literal

from ml_filter.documents.page import Page
from ml_filter.documents.pdf import Pdf
from ml_filter.errors import ConfigError
from ml_filter.extras import require_extra

if TYPE_CHECKING:
    from lxml.html import HtmlElement, HTMLParser

Extractor = Literal["trafilatura", "resiliparse", "justext", "text"]
_Extract = Callable[[str], str | None]
_Part = Literal["pdf", "page"]
"""What else the process does: read a PDF (pdf.py), or find the links and properties of a page (page.py)."""
_Answer = tuple[str, str | None]
"""The text of a page, and the error of the extractor."""
_MAX_MEMORY = 4 * 2**30
_NOT_TEXT = re.compile(
    r"[\x00-\x08\x0b\x0e-\x1f\ud800-\udfff\ufeff\ufffe\uffff]"
    r"|&#(?:0*(?:[0-8]|1[124-9]|2\d|3[01]|6553[45])|[xX]0*(?:[0-8bcefBCEF]|1[\da-fA-F]|[fF]{3}[efEF]))(?!\w);?"
)
"""Control characters, also as references, with which lxml refuses a page, and byte order marks."""


class ExtractionError(Exception):
    """A page whose text could not be extracted, with the reason of its reject."""

    def __init__(self, reason: Literal["extraction_timeout", "extraction_failed", "encrypted"], detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


def main_text(html: str, extractor: Extractor, seconds: float) -> str:
    """The main text of a page, or "" if it has none; its whole text with the extractor `text`.

    Args:
        seconds: most CPU time. CPU time, unlike elapsed time, is much the same on a busy machine.

    Raises:
        ExtractionError: the page took longer, or the extractor failed.
        ConfigError: the extractor cannot be started.
    """
    return _worker(extractor, seconds, os.getpid()).extract(html)


def read_pdf(content: bytes, seconds: float) -> Pdf:
    """Read a PDF in the extraction process; limit and errors as of `main_text`, and an error if it is encrypted.

    Raises:
        ConfigError: pypdf is not installed.
    """
    require_extra("fetch", "reading PDF files", "pypdf")
    answer = json.loads(_worker("pdf", seconds, os.getpid()).extract(content))
    if answer.get("encrypted"):
        raise ExtractionError("encrypted", "a password is needed to read the PDF")
    return Pdf(**answer)


def read_page(html: str, seconds: float) -> Page:
    """Find the properties and links of a page in the extraction process; limit and errors as of `main_text`."""
    return Page(**json.loads(_worker("page", seconds, os.getpid()).extract(html)))


@cache
def _worker(extractor: Extractor | _Part, seconds: float, _pid: int) -> _Worker:
    """The worker of this process; a forked process does not share that of its parent."""
    return _Worker(extractor, seconds)


class _Worker:
    """A process that extracts one page after the other, started when it is first needed."""

    def __init__(self, extractor: Extractor | _Part, seconds: float) -> None:
        self._extractor = extractor
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = Lock()
        atexit.register(self._stop)

    def extract(self, html: str | bytes) -> str:
        with self._lock:
            try:
                text, problem = self._answer(html)
            except BaseException:  # also if interrupted: the next page must not get the text of this one
                self._stop()
                raise
        if problem:
            raise ExtractionError("extraction_failed", f"{self._extractor}: {problem}")
        return text

    def _answer(self, html: str | bytes) -> _Answer:
        process = self._process
        if process is None or process.poll() is not None:
            process = self._start()
        try:
            self._connection.send(html)
            # Not recv, which unpickles: the process may have been taken over by a page.
            text, problem = json.loads(self._connection.recv_bytes())
            return text, problem
        except (EOFError, OSError):
            exit_code = process.wait()
        if exit_code == -signal.SIGPROF:
            raise ExtractionError("extraction_timeout", f"{self._extractor} took more than {self._seconds:g} s")
        name = signal.Signals(-exit_code).name if exit_code < 0 else f"exit code {exit_code}"
        raise ExtractionError("extraction_failed", f"{self._extractor} crashed ({name})")

    def _start(self) -> subprocess.Popen[bytes]:
        self._stop()
        self._connection, theirs = Pipe()
        code = "import sys; from ml_filter.documents.extraction import _serve; _serve(*sys.argv[1:])"
        with theirs:
            process = self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", code, self._extractor, str(self._seconds), str(theirs.fileno())],
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the parent, which may finish its work
            )
        try:
            problem = self._connection.recv()
        except EOFError:
            problem = f"its process ended with exit code {process.wait()}"
        if problem:
            raise ConfigError(f"the extractor {self._extractor} cannot be started: {problem}")
        return process

    def _stop(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def _serve(extractor: Extractor | _Part, seconds: str, descriptor: str) -> None:
    """Extract the pages that the connection brings, until its other end is closed."""
    import resource  # Unix only

    connection = Connection(int(descriptor))
    with suppress(OSError, ValueError):  # the system has no such limit, or a lower one
        resource.setrlimit(resource.RLIMIT_AS, (_MAX_MEMORY, _MAX_MEMORY))
    sys.setrecursionlimit(10_000)  # trees are up to 2,048 elements deep
    try:
        extract = _PARTS[extractor]()
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while True:
        try:
            content = connection.recv()
        except EOFError:
            return
        text, problem = "", None
        signal.setitimer(signal.ITIMER_PROF, float(seconds))  # SIGPROF ends a process that does not handle it
        try:
            text = extract(_cleaned(content) if isinstance(content, str) else content) or ""
        except BaseException as error:  # a panic in Rust is not an Exception
            problem = f"{type(error).__name__}: {error}"
        signal.setitimer(signal.ITIMER_PROF, 0)
        connection.send_bytes(json.dumps((text, problem)).encode())


def _cleaned(html: str) -> str:
    return _NOT_TEXT.sub("", html.replace("\f", " "))


def _trafilatura() -> _Extract:
    import trafilatura
    from trafilatura import utils

    utils.HTML_PARSER = _parser(huge=True)  # for parts of a page that it parses again

    def extract(html: str) -> str | None:
        # without comments: a little better on all three benchmarks (docs/performance.md)
        return trafilatura.extract(_tree_of(html, huge=True), include_comments=False)

    return extract


def _resiliparse(main_content: bool = True) -> _Extract:
    from resiliparse.extract.html2text import extract_plain_text

    return partial(extract_plain_text, main_content=main_content, alt_texts=False)


def _justext() -> _Extract:
    import justext

    words = frozenset().union(*map(justext.get_stoplist, justext.get_stoplists()))

    def extract(html: str) -> str:
        if not len(_tree_of(html, huge=False)):  # as jusText parses it
            return ""
        return "\n".join(part.text for part in justext.justext(html, words) if not part.is_boilerplate)

    return extract


def _tree_of(html: str, huge: bool) -> HtmlElement:
    """The tree of a page.

    Raises:
        ValueError: libxml2 has dropped a part: what is nested deeper than 256 elements (unclosed <font> elements are),
            or 2,048 in a huge tree.
    """
    from lxml.etree import ErrorTypes, ParserError
    from lxml.html import document_fromstring

    parser = _parser(huge)
    try:
        tree = document_fromstring(html.encode(), parser=parser)
    except ParserError:  # a page without elements and text
        return document_fromstring("<html/>")
    for entry in parser.error_log:
        if entry.type == ErrorTypes.ERR_RESOURCE_LIMIT:
            raise ValueError(f"libxml2 would cut the page off ({entry.message.partition(',')[0]})")
    return tree


def _parser(huge: bool) -> HTMLParser:
    from lxml.html import HTMLParser

    return HTMLParser(
        encoding="utf-8",
        huge_tree=huge,
        remove_comments=True,
        remove_pis=True,
        collect_ids=False,
        default_doctype=False,
    )


EXTRACTORS: dict[Extractor, Callable[[], _Extract]] = {
    "trafilatura": _trafilatura,
    "resiliparse": _resiliparse,
    "justext": _justext,
    "text": partial(_resiliparse, main_content=False),
}


def _pdf() -> Callable[[bytes], str]:
    from ml_filter.documents.pdf import extract

    return extract


def _page() -> _Extract:
    from ml_filter.documents.page import extract

    return lambda html: extract(_tree_of(html, huge=True))


_PARTS: Mapping[str, Callable[[], Callable[[Any], str | None]]] = {
    **{str(name): load for name, load in EXTRACTORS.items()},
    "pdf": _pdf,
    "page": _page,
}
