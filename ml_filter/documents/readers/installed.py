"""The default corpus: real documents that every machine with this environment has.

Python's reference topics, the docstrings of its standard modules, and the long descriptions and licences of the
installed packages. They are English, technical and of very different quality: enough to run the full pipeline without a
network.
"""

from __future__ import annotations

import ast
import importlib.metadata
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from ml_filter.documents.manifest import digest_of
from ml_filter.documents.readers.base import Row

URI = "installed:"
_LICENCE_NAMES = ("LICENSE", "LICENCE", "COPYING", "NOTICE", "AUTHORS")
_MIN_DOCSTRING_CHARACTERS = 200


def fingerprint() -> str:
    """Digest of what the corpus depends on: the Python version and the installed packages."""
    return digest_of([sys.version, sorted(f"{d.name}=={d.version}" for d in importlib.metadata.distributions())])


def read_installed() -> Iterator[Row]:
    """Rows with `id`, `text`, `language`, `source` (the sort of document) and `url` (its host is the package or
    module)."""
    yield from _reference_topics()
    yield from _standard_library()
    yield from _packages()


def _row(sort: str, name: str, text: str) -> Row:
    return {
        "id": f"{sort}/{name}",
        "text": text,
        "url": f"{URI}//{name.partition('/')[0]}/{sort}/{name}",
        "language": "en",
        "source": sort,
    }


def _reference_topics() -> Iterator[Row]:
    from pydoc_data.topics import topics

    for name in sorted(topics):
        yield _row("reference", name, topics[name])


def _standard_library() -> Iterator[Row]:
    """Docstrings of the standard modules, read from their source without importing them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    for name in sorted(sys.stdlib_module_names):
        if name.startswith("_"):
            continue
        path = root / name / "__init__.py" if (root / name).is_dir() else root / f"{name}.py"
        if path.is_file() and (text := _docstrings(path)):
            yield _row("module", name, text)


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return ""
    parts = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            doc = ast.get_docstring(node)
            if doc:
                parts.append(doc if isinstance(node, ast.Module) else f"{node.name}: {doc}")
    text = "\n\n".join(parts)
    return text if len(text) >= _MIN_DOCSTRING_CHARACTERS else ""


def _packages() -> Iterator[Row]:
    seen = set()
    for distribution in sorted(importlib.metadata.distributions(), key=lambda d: d.name.lower()):
        name = distribution.name.lower()
        if name in seen:
            continue
        seen.add(name)
        description = distribution.metadata.get_payload()  # type: ignore[attr-defined]
        if isinstance(description, str) and description.strip():
            yield _row("description", name, description)
        for file in sorted(distribution.files or [], key=str):
            if file.name.split(".")[0].upper() in _LICENCE_NAMES and file.parts[0].endswith(".dist-info"):
                path = Path(str(file.locate()))
                if path.is_file():
                    licence = "/".join(file.parts[1:])
                    yield _row("licence", f"{name}/{licence}", path.read_text("utf-8", errors="replace"))
