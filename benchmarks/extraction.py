"""Speed and quality of the extractors of main text, on pages whose main text people have marked.

    git clone https://github.com/scrapinghub/article-extraction-benchmark news        # 181 English news pages
    git clone https://github.com/Murrough-Foley/web-content-extraction-benchmark types   # pages of seven types
    git clone https://github.com/adbar/trafilatura snippets                           # pages of many languages
    python benchmarks/extraction.py --news news --types types --snippets snippets \
        --warc ../shared/data/commoncrawl_2020-34.warc.gz [--head HEAD_DIR]

`news` and `types` have the whole main text of each page: quality is the F1 of its words (of its characters in scripts
without spaces), the mean over pages. `snippets` has about three passages of the main text and three of the rest for
each page: a passage counts if the extracted text contains it. They are the test set of trafilatura's own authors.
Pages in Chinese and Arabic have no reference: there each word of the news pages and of their main text is replaced by
characters of that script, which shows how an extractor depends on spaces, on word lists and on the length of a text.
`warc` has no reference at all: only agreement between the extractors is measured. Times are CPU times.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np
from fastwarc.warc import ArchiveIterator, WarcRecordType
from lxml.html import HTMLParser, document_fromstring, tostring
from trafilatura.utils import decode_file

from ml_filter.documents.extraction import EXTRACTORS, Extractor, main_text
from ml_filter.logs import configure_logging

TOKEN = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|\w+")
HTML_LANGUAGE = re.compile(r"""<html[^>]*?\slang\s*=\s*["']?\s*([a-zA-Z]{2})""")
LANGUAGES = ("de", "en", "es", "fr", "pl")
ARABIC = dict(zip("abcdefghijklmnopqrstuvwxyz", "ابثدهفجحيزكلمنوقرستعوظشغىذ", strict=True))


class Page(NamedTuple):
    group: str
    html: str
    text: str | None = None
    inside: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("news", "types", "snippets", "warc", "head"):
        parser.add_argument(f"--{name}", type=Path)
    options = parser.parse_args()
    configure_logging(level="CRITICAL")
    news = list(news_pages(options.news)) if options.news else []
    kinds = list(typed_pages(options.types)) if options.types else []
    snippets = list(snippet_pages(options.snippets)) if options.snippets else []
    crawled = list(warc_pages(options.warc)) if options.warc else []
    pages = news + kinds + snippets + crawled
    texts, rows = {}, []
    for name in EXTRACTORS:
        texts[name], seconds = extracted(name, pages)
        p50, p99, slowest = (1000 * np.quantile(seconds, q) for q in (0.5, 0.99, 1))
        cost = f"{1000 * process_cost(name, pages[:200]):.2f}"
        rows.append([name, f"{1 / np.mean(seconds):,.0f}", f"{p50:.1f}", f"{p99:.0f}", f"{slowest:.0f}", cost])
    print_table(["extractor", "pages/s", "p50, ms", "p99, ms", "slowest, ms", "own process, ms a page"], rows)
    offset = 0
    for title, pages in (("news", news), ("types", kinds), ("snippets", snippets), ("warc", crawled)):
        part = {name: texts[name][offset : offset + len(pages)] for name in EXTRACTORS}
        offset += len(pages)
        if not pages:
            continue
        print(f"\n{title}: {len(pages)} pages")
        if title == "snippets":
            snippet_table(pages, part)
        elif title == "warc":
            agreement_table(part)
        else:
            quality_table(pages, part)
            if options.head:
                score_table(pages, part, options.head)
    for script, translate in {"Latin": str, "Chinese": chinese, "Arabic": arabic}.items():
        if news:
            pages = [in_script(page, translate) for page in news]
            print(f"\nnews in {script} script")
            quality_table(pages, {name: extracted(name, pages)[0] for name in EXTRACTORS})


def print_table(header: list[str], rows: list[list[str]]) -> None:
    print(f"\n| {' | '.join(header)} |\n{'|---' * len(header)}|", flush=True)
    for row in rows:
        print(f"| {' | '.join(row)} |")


def news_pages(root: Path) -> Iterator[Page]:
    for name, truth in json.loads((root / "ground-truth.json").read_text()).items():
        yield Page("news", decode_file((root / "html" / f"{name}.html.gz").read_bytes()), truth["articleBody"])


def typed_pages(root: Path) -> Iterator[Page]:
    for path in sorted((root / "test" / "ground-truth").iterdir()):
        truth = json.loads(path.read_text())
        html = root / "test" / "html" / f"{path.stem}.html.gz"
        if text := truth["ground_truth"].get("main_content"):
            yield Page(
                truth["_internal"]["page_type"]["primary"], decode_file(gzip.decompress(html.read_bytes())), text
            )


def snippet_pages(root: Path) -> Iterator[Page]:
    tests = root / "tests"
    for truth in json.loads((tests / "evaldata.json").read_text()).values():
        path = next(path for path in (tests / "cache" / truth["file"], tests / "eval" / truth["file"]) if path.exists())
        html = decode_file(path.read_bytes())
        language = HTML_LANGUAGE.search(html)
        group = language[1].lower() if language else ""
        yield Page(group if group in LANGUAGES else "other", html, None, tuple(truth["with"]), tuple(truth["without"]))


def warc_pages(path: Path) -> Iterator[Page]:
    for record in ArchiveIterator(path.open("rb"), record_types=WarcRecordType.response):
        yield Page("crawled", decode_file(record.reader.read()))


def extracted(name: Extractor, pages: list[Page]) -> tuple[list[str], list[float]]:
    """The texts of the pages and the CPU seconds of each."""
    extract = EXTRACTORS[name]()
    extract(pages[0].html)
    texts, seconds = [], []
    for page in pages:
        started = time.process_time()
        texts.append(extract(page.html) or "")
        seconds.append(time.process_time() - started)
    return texts, seconds


def process_cost(name: Extractor, pages: list[Page]) -> float:
    """CPU seconds of this process for a page that another one extracts: to start it, send pages and receive texts."""
    started = time.process_time()
    for page in pages:
        main_text(page.html, name, 60)
    return (time.process_time() - started) / len(pages)


def quality_table(pages: list[Page], texts: dict[Extractor, list[str]]) -> None:
    groups = groups_of(pages)
    rows = []
    for name, extracts in texts.items():
        figures = np.array([word_match(page.text or "", text) for page, text in zip(pages, extracts, strict=True)])
        precision, recall, f1 = figures.mean(axis=0)
        low, high = bootstrap(figures[:, 2])
        empty = sum(not text.strip() for text in extracts)
        of_groups = [f"{figures[members, 2].mean():.3f}" for members in groups.values()]
        quality = [f"{precision:.3f}", f"{recall:.3f}", f"{f1:.3f} ({low:.3f} to {high:.3f})", str(empty)]
        rows.append([name, *quality, *of_groups])
    print_table(["extractor", "precision", "recall", "F1 (95% interval)", "empty", *groups], rows)


def groups_of(pages: list[Page]) -> dict[str, list[int]]:
    """The pages of each group, by the group's name and size, if there are several."""
    counts = Counter(page.group for page in pages)
    groups = {
        f"{group} ({count})": [index for index, page in enumerate(pages) if page.group == group]
        for group, count in sorted(counts.items())
    }
    return groups if len(groups) > 1 else {}


def word_match(truth: str, text: str) -> tuple[float, float, float]:
    """Precision, recall and F1 of the words of a text, each as often as it occurs."""
    expected, actual = Counter(TOKEN.findall(truth.lower())), Counter(TOKEN.findall(text.lower()))
    common = (expected & actual).total()
    precision, recall = common / max(actual.total(), 1), common / max(expected.total(), 1)
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-9)


def bootstrap(values: np.ndarray) -> tuple[float, float]:
    rows = np.random.default_rng(0).integers(0, len(values), (2000, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [0.025, 0.975])
    return float(low), float(high)


def snippet_table(pages: list[Page], texts: dict[Extractor, list[str]]) -> None:
    groups = groups_of(pages)
    rows = []
    for name, extracts in texts.items():
        hits = np.array([snippet_hits(page, text) for page, text in zip(pages, extracts, strict=True)])
        figures = [*snippet_figures(hits), *(snippet_figures(hits[members])[2] for members in groups.values())]
        rows.append([name, *(f"{figure:.3f}" for figure in figures)])
    print_table(["extractor", "precision", "recall", "F1", *groups], rows)


def snippet_hits(page: Page, text: str) -> tuple[int, int, int]:
    """How many passages of the main text were found and were missed, and how many of the rest were found."""
    words = " ".join(text.split())
    found = sum(" ".join(passage.split()) in words for passage in page.inside)
    return found, len(page.inside) - found, sum(" ".join(passage.split()) in words for passage in page.outside)


def snippet_figures(hits: np.ndarray) -> tuple[float, float, float]:
    found, missed, wrong = hits.sum(axis=0)
    return found / (found + wrong), found / (found + missed), 2 * found / (2 * found + missed + wrong)


def agreement_table(texts: dict[Extractor, list[str]]) -> None:
    sizes = {name: sum(len(TOKEN.findall(text)) for text in extracts) for name, extracts in texts.items()}
    rows = []
    for name, extracts in texts.items():
        matches = (zip(other, extracts, strict=True) for other in texts.values())
        agreement = [f"{mean(word_match(b, a)[2] for b, a in pairs):.2f}" for pairs in matches]
        empty = sum(not text.strip() for text in extracts)
        rows.append([name, *agreement, str(empty), f"{sizes[name] / sizes['text']:.0%}"])
    print_table(["F1 of words with", *texts, "empty", "share of all words"], rows)


def score_table(pages: list[Page], texts: dict[Extractor, list[str]], directory: Path) -> None:
    """How much the score of the extracted text differs from that of the reference."""
    from scipy.stats import spearmanr

    from ml_filter.heads.kinds import load_head
    from ml_filter.scoring.config import ScoreConfig

    head = load_head(directory, ScoreConfig())
    threshold = head.info.criteria[0].threshold
    truth = head.score([page.text or "" for page in pages])[:, 0]
    rows = []
    for name, extracts in texts.items():
        scores = head.score([text or " " for text in extracts])[:, 0]
        changed = ((scores >= threshold) != (truth >= threshold)).mean()
        difference = scores - truth
        correlation = spearmanr(scores, truth).statistic
        figures = [f"{difference.mean():+.2f}", f"{np.abs(difference).mean():.2f}", f"{correlation:.3f}"]
        rows.append([name, *figures, f"{changed:.1%}"])
    header = ["score of the extracted text, against the main text's", "difference", "absolute", "Spearman"]
    print_table([*header, f"other side of {threshold:g}"], rows)


def in_script(page: Page, translate: Callable[[str], str]) -> Page:
    """The page and its main text with all words in another script."""
    tree = document_fromstring(page.html.encode("utf-8", "replace"), parser=HTMLParser(encoding="utf-8"))
    for element in tree.iter():
        if isinstance(element.tag, str) and element.tag not in ("script", "style"):
            element.text = element.text and translate(element.text)
        element.tail = element.tail and translate(element.tail)
    return Page(page.group, tostring(tree, encoding="unicode"), translate(page.text or ""))


def chinese(text: str) -> str:
    """Each word as one or two Chinese characters, without spaces."""
    text = re.sub(r"[A-Za-z]+", lambda word: chinese_word(word[0].lower()), text)
    text = text.replace(", ", "\uff0c").replace(". ", "\u3002")
    return re.sub(r"(?<=[\u3400-\u9fff]) (?=[\u3400-\u9fff])", "", text)


def chinese_word(word: str) -> str:
    digest = hashlib.blake2b(word.encode(), digest_size=4).digest()
    characters = [chr(0x4E00 + int.from_bytes(digest[i : i + 2], "big") % 3000) for i in (0, 2)]
    return "".join(characters[: 1 if len(word) <= 4 else 2])


def arabic(text: str) -> str:
    """Each Latin letter as an Arabic one."""
    return "".join(ARABIC.get(letter.lower(), letter) for letter in text)


if __name__ == "__main__":
    main()
