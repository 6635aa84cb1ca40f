"""Pages that keep extractors busy, and mutated real pages: what becomes of each, and does the process stay alive?

    python benchmarks/extraction_limits.py [--fuzz 20000 --pages DIR_OR_WARC...] [--extractors trafilatura resiliparse]

The first table has made-up pages of each kind that was reported as slow or fatal for an HTML parser or extractor, under
the default limit. With --fuzz, pieces of the real pages are cut, repeated, nested, exchanged and overwritten.
"""

from __future__ import annotations

import argparse
import gzip
import random
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from fastwarc.warc import ArchiveIterator, WarcRecordType
from trafilatura.utils import decode_file

from ml_filter.documents.config import SourceConfig
from ml_filter.documents.extraction import EXTRACTORS, ExtractionError, Extractor, main_text

PROSE = "The heart pumps blood through the body, and the lungs bring oxygen into it with every breath we take. "
ARTICLE = f"<article><h1>Blood</h1><p>{PROSE * 5}</p></article>"
LIMIT = SourceConfig().max_extraction_seconds
PAGES = {
    "200,000 table rows": lambda: "<table>" + f"<tr><td>1</td><td>{PROSE}</td></tr>" * 200_000 + "</table>",
    "20,000 nested tables": lambda: "<table><tr><td>" * 20_000 + ARTICLE,
    "100,000 nested divs": lambda: "<div>" * 100_000 + ARTICLE + "</div>" * 100_000,
    "50,000 nested lists": lambda: "<ul><li>item" * 50_000 + ARTICLE,
    "20,000 unclosed fonts": lambda: f"<p><font>{PROSE}" * 20_000,
    "100,000 unclosed paragraphs": lambda: f"<p>{PROSE}" * 100_000,
    "one text of 40 MB": lambda: f"<p>{PROSE * 400_000}</p>",
    "1,000,000 empty elements": lambda: "<i></i>" * 1_000_000 + ARTICLE,
    "1,000,000 spans in a paragraph": lambda: "<p>" + "<span>a</span>" * 1_000_000 + ARTICLE,
    "1,000,000 line breaks": lambda: "<p>" + "word<br>" * 1_000_000 + ARTICLE,
    "100,000 links": lambda: "<a href='/'>a link</a> " * 100_000 + ARTICLE,
    "50,000 headings and lists": lambda: "<h2>Heading</h2><ul><li>one <b>two</b></ul>" * 50_000,
    "300,000 options": lambda: "<select>" + "<option>x" * 300_000 + "</select>" + ARTICLE,
    "an attribute of 30 MB": lambda: f"<div title='{'a' * 30_000_000}'>" + ARTICLE,
    "300,000 attributes": lambda: "<div " + " ".join(f"a{n}" for n in range(300_000)) + ">" + ARTICLE,
    "a script of 20 MB only": lambda: "<script>" + "let a = 1;" * 2_000_000 + "</script>",
    "JSON-LD nested 500,000 deep": lambda: f"<script type='application/ld+json'>{'[' * 500_000}</script>{ARTICLE}",
    "5,000,000 <": lambda: "<" * 5_000_000,
    "1,000,000 comments": lambda: "<!-- x -->" * 1_000_000 + ARTICLE,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--extractors", nargs="+", default=list(EXTRACTORS), choices=EXTRACTORS)
    parser.add_argument("--fuzz", type=int, default=0, help="mutated pages for each extractor")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pages", type=Path, nargs="+", default=[], help="directories of HTML files, WARC files")
    parser.add_argument("--seconds", type=float, default=1, help="limit for a mutated page")
    options = parser.parse_args()
    if options.fuzz:
        for extractor in options.extractors:
            fuzz(extractor, list(real_pages(options.pages)), options)
        return
    print(f"| page | {' | '.join(options.extractors)} |\n{'|---' * (1 + len(options.extractors))}|")
    for name, make in PAGES.items():
        html = f"<html><body>{make()}</body></html>"
        outcomes = []
        for extractor in options.extractors:
            outcome, seconds = outcome_of(html, extractor, LIMIT)
            outcomes.append(f"{outcome}, {seconds:.1f} s")
            main_text(ARTICLE, extractor, LIMIT)
        print(f"| {name} ({len(html) / 1e6:.1f} MB) | {' | '.join(outcomes)} |", flush=True)


def outcome_of(html: str, extractor: Extractor, limit: float) -> tuple[str, float]:
    """What becomes of a page, and after how many seconds."""
    started = time.perf_counter()
    try:
        text = main_text(html, extractor, limit)
        outcome = f"{len(text):,} characters" if text else "no text"
    except ExtractionError as error:
        outcome = error.reason if error.reason == "extraction_timeout" else str(error)
    return outcome, time.perf_counter() - started


def fuzz(extractor: Extractor, pages: list[str], options: argparse.Namespace) -> None:
    rng = random.Random(options.seed)  # noqa: S311
    outcomes: Counter[str] = Counter()
    slowest = 0.0
    for number in range(1, options.fuzz + 1):
        outcome, seconds = outcome_of(mutated(rng.choice(pages), rng, pages), extractor, options.seconds)
        outcomes["text" if outcome.endswith("characters") else outcome] += 1
        slowest = max(slowest, seconds)
        if number % 1000 == 0:  # the next page must get its own text
            assert str(number) in main_text(ARTICLE.replace("Blood", str(number)), extractor, options.seconds)
            print(f"{extractor}: {number:,} pages, slowest {slowest:.1f} s: {dict(outcomes.most_common())}", flush=True)


def mutated(html: str, rng: random.Random, pages: list[str]) -> str:
    for _ in range(rng.randint(1, 4)):
        start = rng.randrange(len(html) + 1)
        end = min(len(html), start + int(rng.expovariate(1 / 500)))
        html = html[:start] + replacement(html[start:end], rng, rng.choice(pages)) + html[end:]
    return html


def replacement(piece: str, rng: random.Random, other: str) -> str:
    match rng.randrange(7):
        case 0:
            return piece * rng.choice([2, 10, 300])
        case 1:
            start = rng.randrange(len(other) + 1)
            return other[start : start + rng.randint(1, 5000)]
        case 2:
            return "".join(rng.choices("\x00\x01\t\f\x1b\x80\x85\ud800\ufffe\U0001f600", k=len(piece)))
        case 3:
            return "".join(rng.sample(piece, len(piece)))
        case 4:
            tags = ["<div>", "<table><tr><td>", "<ul><li>", "<b>", "<blockquote>"]
            return rng.choice(tags) * rng.randint(1, 3000)
        case 5:
            return rng.choice(["&#", "<!--", "<![CDATA[", "<script>", "<plaintext>", "<svg>", "<template>", "'\">"])
    return ""


def real_pages(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        if path.is_file():
            for record in ArchiveIterator(path.open("rb"), record_types=WarcRecordType.response):
                yield decode_file(record.reader.read())
        else:
            for file in sorted(path.glob("*.html*")):
                content = file.read_bytes()
                yield decode_file(gzip.decompress(content) if file.suffix == ".gz" else content)


if __name__ == "__main__":
    main()
