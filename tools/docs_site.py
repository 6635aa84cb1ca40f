"""Pages of the documentation site that are not in docs/: MkDocs calls these hooks (mkdocs.yml)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
_LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages at the root of the repository."""
    root = Path(config.config_file_path).parent
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, content=(root / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Make links that are right in the repository right on the site, where all pages are in one directory."""
    return _LINK.sub(lambda link: f"]({_on_site(link[1])}", markdown)


def _on_site(link: str) -> str:
    return _PAGES.get(link.removeprefix("../"), link.removeprefix("docs/"))
