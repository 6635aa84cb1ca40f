"""Records of an XML document that may be huge, broken or hostile: no tree is built, and no entity is expanded.

trafilatura's helpers for feeds and sitemaps are not used: they fetch by themselves, without robots.txt or limits, and
find links in feeds by regular expressions, without dates, titles or anything that tells what is new.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lxml import etree

_MAX_ELEMENTS = 5_000_000
_MAX_FIELDS = 10_000
"""Of a record. A paper of a large collaboration has thousands of authors, each a field."""
_MAX_TEXT = 2**16
_PIECE = 2**16
_TAIL = 2**10
"""Bytes in which the end tag of the document must be, if the parser has not found it."""


@dataclass
class Field:
    """A child of a record: its name without a namespace, its attributes and all text in it."""

    name: str
    attributes: Mapping[str, str]
    text: str = ""


@dataclass
class Record:
    """An element of a chosen name, with its children; `text` is what it holds itself."""

    name: str
    fields: list[Field] = field(default_factory=list)
    text: str = ""

    def first(self, *names: str) -> str:
        """The text of the first child with one of these names, in the order of the names; "" without one."""
        return next((f.text.strip() for name in names for f in self.fields if f.name == name and f.text.strip()), "")


class TooManyElements(Exception):
    """A document, or a record of it, with more elements than any list needs."""


class _Target:
    """Receives the events of the parser."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self.root = ""
        self.finished: list[Record] = []
        self._record: Record | None = None
        self._depth = self._elements = self._open = 0
        self.is_closed = False

    def start(self, tag: str, attributes: Mapping[str, str]) -> None:
        name = tag.rpartition("}")[2]
        self.root = self.root or name
        self._elements += 1
        self._open += 1
        if self._elements > _MAX_ELEMENTS:
            raise TooManyElements
        if self._record is None:
            if name in self._names:
                self._record, self._depth = Record(name), 0
        else:
            self._depth += 1
            if self._depth == 1:
                if len(self._record.fields) == _MAX_FIELDS:
                    raise TooManyElements
                self._record.fields.append(Field(name, dict(attributes)))

    def data(self, text: str) -> None:
        if self._record is None:
            return
        holder = self._record.fields[-1] if self._depth else self._record
        if len(holder.text) < _MAX_TEXT:
            holder.text += text[:_MAX_TEXT]

    def end(self, tag: str) -> None:
        self._open -= 1
        self.is_closed |= not self._open
        if self._record is not None:
            if self._depth == 0:
                self.finished.append(self._record)
                self._record = None
            self._depth -= 1

    def close(self) -> None:
        return None


class Reader:
    """Reads the elements of these names from an XML document.

    Attributes:
        root: the name of the outermost element; "" before it is read, or if there is none.
    """

    def __init__(self, names: Collection[str], encoding: str | None = None) -> None:
        self._target = _Target(names)
        self._tail = b""
        self._parser = etree.XMLParser(
            target=self._target,
            encoding=encoding,
            recover=True,
            resolve_entities=False,
            load_dtd=False,
            no_network=True,
            huge_tree=False,
            remove_comments=True,
            remove_pis=True,
        )

    @property
    def root(self) -> str:
        """See above."""
        return self._target.root

    @property
    def problem(self) -> str | None:
        """Why the end of the document is missing; None: it is there, perhaps with tags that do not match."""
        if self._target.is_closed or re.search(rf"</([\w.-]+:)?{re.escape(self.root)}\s*>".encode(), self._tail):
            return None
        return f"</{self.root}> is missing"

    def records(self, pieces: Iterable[bytes]) -> Iterator[Record]:
        """The elements in the order in which they end; of a broken document, those before the damage.

        Raises:
            TooManyElements: the document is not a list that anyone needs. The elements before were given.
        """
        try:
            for piece in pieces:
                self._tail = (self._tail + piece)[-_TAIL:]
                for start in range(0, len(piece), _PIECE):
                    self._parser.feed(piece[start : start + _PIECE])
                    yield from self._finished()
            self._parser.close()
        except (etree.LxmlError, ValueError):
            pass
        except TooManyElements:
            yield from self._finished()
            raise
        yield from self._finished()

    def _finished(self) -> list[Record]:
        records, self._target.finished = self._target.finished, []
        return records
