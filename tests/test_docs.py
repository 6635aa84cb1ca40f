"""Links, anchors and commands in the documentation exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from ml_filter.cli import main

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md", *sorted((ROOT / "docs").glob("*.md"))]


def anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_existing_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(((?!https?:)[^)\s]+)\)", page.read_text()):
        file, _, anchor = link.partition("#")
        target = page.parent / file if file else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in sorted(set(re.findall(r"(?:`|^\$? ?)ml-filter ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))):
        assert main([command, "--help"]) == 0, command


@pytest.mark.slow
def test_the_site_has_every_page_the_python_api_and_diagrams_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)]
    done = subprocess.run(
        command, check=False, cwd=ROOT, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    pages = {path.parent.name: path.read_text() for path in tmp_path.glob("*/index.html")}
    assert {page.stem.lower() for page in PAGES} - {"readme"} <= {*pages}
    assert 'id="ml_filter.scoring.run.score_corpus"' in pages["api"]
    assert '<pre class="mermaid">' in pages["architecture"]
    assert not re.findall(r"""(?:src|<link[^>]*href)=["']?https?://""", "".join(pages.values()))
