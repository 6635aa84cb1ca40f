"""Does the annotator work with a real vLLM server, and as fast as vLLM's own benchmark client?

Called by benchmarks/vllm_check.sh, which starts the server. Prints as Markdown:

1. Greedy answers of vLLM and of llama.cpp with the same weights: a wrong conversion gives nonsense.
2. Real documents through `ml-filter annotate`, once for each answer mode, each time with an empty prefix cache.
3. Requests per second of `ml-filter annotate` and of `vllm bench serve`: the same requests at the same concurrency, in
   turn, both timed from the first request to the last answer.

The exit code is 1 if an answer is lost, the conversion is wrong or the annotator is slower than the limit.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pyarrow.parquet as pq
import yaml

from ml_filter.annotation.embedded import embedded_endpoint
from ml_filter.annotation.prompts import Prompt, load_prompt
from ml_filter.config import Settings
from ml_filter.documents.manifest import read_manifest

MODEL = "smollm2"
MAX_CHARS = 1000
MIN_RATIO = 0.95
REPEATS = 2
TOKENS = ("prompt tokens", "completion tokens")
CACHED = "prompt tokens from the prefix cache"
STRUCTURED = ("written_choice", "json")
QUESTIONS = [
    "What is the capital of Germany?",
    "How many days are in a week?",
    "What is H2O commonly called?",
    "What is the opposite of hot?",
    "Write one sentence about the sea.",
]
RUBRIC = load_prompt("educational_value").text.partition("{text}")[0] + "{text}\n==========\n\n"
DIGITS = {str(score): score for score in range(6)}
WAYS: dict[str, dict[str, Any]] = {
    "generate": {
        "text": RUBRIC + "Answer with the score, one digit from 0 to 5, and nothing else.",
        "pattern": r"([0-5])",
        "max_tokens": 8,
    },
    "choice": {
        "mode": "choice",
        "text": RUBRIC + "Answer with the score, one digit from 0 to 5, and nothing else.",
        "choices": DIGITS,
    },
    "written_choice": {
        "mode": "choice",
        "text": RUBRIC + "Is it good for teaching? Answer yes or no.",
        "choices": {"yes": 5, "no": 0},
        "top_logprobs": 0,
        "max_tokens": 8,
    },
    "json": {
        "mode": "json",
        "max_reason_chars": 200,
        "text": RUBRIC + 'Answer in JSON: {"reason": a few words, "score": a whole number from 0 to 5}.',
        "max_tokens": 128,
    },
}
BENCHMARK = (
    "from vllm.utils.argparse_utils import FlexibleArgumentParser\n"
    "from vllm.benchmarks.serve import add_cli_args, main\n"
    "parser = FlexibleArgumentParser()\n"
    "add_cli_args(parser)\n"
    "main(parser.parse_args())\n"
)


@dataclass
class Annotated:
    """What one run of `ml-filter annotate` gave."""

    rows: list[dict[str, Any]]
    counts: dict[str, int]

    @property
    def tokens(self) -> tuple[int, int]:
        """Tokens of all prompts and of all answers."""
        return self.counts["prompt_tokens"], self.counts["completion_tokens"]

    @property
    def seconds(self) -> float:
        """From the start of the first request to the end of the last."""
        ends = [datetime.fromisoformat(row["created_at"]).timestamp() for row in self.rows]
        return max(ends) - min(end - (row["latency_s"] or 0) for end, row in zip(ends, self.rows, strict=True))

    @property
    def per_second(self) -> float:
        """Requests a second."""
        return len(self.rows) / self.seconds

    @property
    def in_flight(self) -> float:
        """Requests at the server, on average; short of the concurrency by what the client leaves idle."""
        return sum((row["latency_s"] or 0) for row in self.rows) / self.seconds


class Check:
    """The server, its benchmark client and the folder that everything is written to."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.url, self.work = options.url.rstrip("/"), options.work
        self.vllm_python, self.model_dir, self.concurrency = options.vllm_python, options.model_dir, options.concurrency
        self.failures: list[str] = []

    def expect(self, holds: bool, otherwise: str) -> None:
        """Note what the exit code has to say."""
        if not holds:
            self.failures.append(otherwise)

    def conversion(self) -> None:
        """Compare greedy answers of vLLM and llama.cpp."""
        head("question", "vLLM", "llama.cpp")
        equal = 0
        with embedded_endpoint(Settings()) as (llama,):
            for question in QUESTIONS:
                ours, theirs = say(f"{self.url}/v1", MODEL, question), say(llama.base_url, llama.model, question)
                equal += words(ours)[:4] == words(theirs)[:4]
                line(question, cell(ours), cell(theirs))
        # llama.cpp multiplies by 4-bit weights in 8-bit integers, so a late word may differ
        self.expect(equal >= len(QUESTIONS) - 1, f"only {equal} of {len(QUESTIONS)} answers begin like llama.cpp's")

    def annotate(self, name: str, way: dict[str, Any], documents: Path) -> Annotated:
        """Run the command line on the documents, in a fresh folder."""
        prompt, output = self.work / f"{name}.yaml", self.work / f"annotations_{name}"
        shutil.rmtree(output, ignore_errors=True)
        prompt.write_text(yaml.safe_dump(prompt_of(name, way)))
        command = [sys.executable, "-m", "ml_filter.cli", "annotate", str(documents), "--output", str(output)]
        command += ["--prompt", str(prompt), "--endpoint", f"{self.url}/v1", "--model", MODEL, "--structured", "on"]
        command += ["--max-concurrency", str(self.concurrency), "--max-failed-share", "1"]
        run(command)
        manifest = read_manifest(str(output))
        rows = [row for shard in manifest.shard_paths() for row in pq.read_table(shard).to_pylist()]
        return Annotated(rows, manifest.counts)

    def ways(self, documents: Path) -> None:
        """Annotate in each way and say what came of it."""
        columns = ("documents", "scored", "failed", "expected score", "form as asked", "cut off", "documents/s")
        head("way", *columns, *TOKENS, CACHED)
        for name, way in WAYS.items():
            self.forget()
            before = self.metrics()
            done = self.annotate(name, way, documents)
            cached = self.cached_since(before)
            codes = Counter(row["error"] for row in done.rows if row["error"])
            scored = sum(row["status"] == "scored" for row in done.rows)
            expected = sum(row["expected_score"] is not None for row in done.rows)
            formed = sum(is_as_asked(row, way) for row in done.rows)
            cut = sum(is_cut(row, way) for row in done.rows)
            failed = ", ".join(f"{count} {code}" for code, count in codes.items()) or "0"
            rate = f"{done.per_second:.2f}"
            line(name, len(done.rows), scored, failed, expected, formed, cut, rate, *done.tokens, cached)
            self.expect(codes.keys() <= {"unparsable_score"}, f"{name}: {dict(codes)}")
            self.expect(cached != "0%", f"{name}: nothing came from the prefix cache")
            if way.get("top_logprobs") != 0:
                self.expect(expected >= 0.9 * scored > 0, f"{name}: {expected} of {scored} scores have an expected one")
            if name in STRUCTURED:
                other = len(done.rows) - formed - cut
                self.expect(other == 0, f"{name}: {other} whole answers do not have the form that the server was given")

    def speed(self, documents: Path, rounds: int) -> None:
        """Time the annotator and vLLM's benchmark in turns, on the same requests."""
        # from the cache the server answers some ten times as fast, so more requests fill the same time
        rows = [json.loads(line) for line in documents.read_text().splitlines()]
        often = self.work / "documents_often.jsonl"
        write_lines(often, [{**row, "id": f"{row['id']} {k}"} for k in range(REPEATS) for row in rows])
        columns = ("in flight", "ml-filter annotate, requests/s", "vllm bench serve, requests/s", "ratio", "of rounds")
        head("requests", CACHED, *columns)
        self.compare("choice", documents, rounds, cold=True)
        self.compare("choice", often, rounds, cold=False)
        self.compare("generate", often, rounds, cold=False)

    def compare(self, name: str, documents: Path, rounds: int, *, cold: bool) -> None:
        """One line of the comparison; `cold`: each run begins with an empty prefix cache, else with a filled one."""
        prompt = Prompt.model_validate(prompt_of(name, WAYS[name]))
        requests = self.work / f"requests_{name}.jsonl"
        texts = [json.loads(line)["text"] for line in documents.read_text().splitlines()]
        write_lines(requests, [{"prompt": prompt.render(text)} for text in texts])
        if not cold:
            self.benchmark(prompt, requests, len(texts))
        before = self.metrics()
        ours, theirs = [], []
        for turn in range(rounds):
            for annotator in (turn % 2 == 0, turn % 2 == 1):
                if cold:
                    self.forget()
                if annotator:
                    done = self.annotate(name, WAYS[name], documents)
                    ours.append(done.per_second)
                else:
                    told = self.benchmark(prompt, requests, len(texts))
                    theirs.append(told["request_throughput"])
            tokens = (told["total_input_tokens"], told["total_output_tokens"])
            self.expect(
                all(abs(a - b) <= 0.01 * b for a, b in zip(done.tokens, tokens, strict=True)),
                f"{name}: not the same work: {done.tokens} tokens in and out, {tokens} in vLLM's benchmark",
            )
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        ratio = statistics.median(ratios)
        what = f"{len(texts)} of {tokens[0] / len(texts):.0f} tokens, {tokens[1] / len(texts):.1f} written ({name})"
        rates = [f"{statistics.median(rates):.2f}" for rates in (ours, theirs)]
        rounds_told = ", ".join(f"{r:.3f}" for r in ratios)
        line(what, self.cached_since(before), f"{done.in_flight:.1f}", *rates, f"{ratio:.3f}", rounds_told)
        self.expect(ratio >= MIN_RATIO, f"{name}: {ratio:.3f} times the requests/s of vLLM's benchmark")

    def benchmark(self, prompt: Prompt, requests: Path, count: int) -> dict[str, Any]:
        """Run `vllm bench serve` with the fields that the annotator sends."""
        result = self.work / "bench.json"
        result.unlink(missing_ok=True)
        length = 1 if prompt.mode == "choice" else prompt.max_tokens
        body = {"seed": 0, "logprobs": True, "top_logprobs": prompt.top_logprobs}
        command = [self.vllm_python, "-c", BENCHMARK, "--backend", "openai-chat", "--base-url", self.url]
        command += ["--endpoint", "/v1/chat/completions", "--model", MODEL, "--tokenizer", str(self.model_dir)]
        command += ["--dataset-name", "custom", "--dataset-path", str(requests), "--custom-output-len", str(length)]
        command += ["--skip-chat-template", "--disable-shuffle", "--disable-tqdm", "--ready-check-timeout-sec", "0"]
        command += ["--num-prompts", str(count), "--max-concurrency", str(self.concurrency), "--temperature", "0"]
        command += ["--extra-body", json.dumps(body), "--save-result", "--result-dir", str(result.parent)]
        command += ["--result-filename", result.name]
        run(command)
        told: dict[str, Any] = json.loads(result.read_text())
        self.expect(told["completed"] == count, f"vLLM's benchmark finished {told['completed']} of {count} requests")
        return told

    def forget(self) -> None:
        """Empty the server's prefix cache."""
        ask("POST", f"{self.url}/reset_prefix_cache")

    def metrics(self) -> dict[str, float]:
        """The server's counters."""
        text = ask("GET", f"{self.url}/metrics").decode()
        found = re.findall(r"^vllm:(\w+)_total\{[^}]*\} (\S+)$", text, re.MULTILINE)
        return {name: float(value) for name, value in found}

    def cached_since(self, before: dict[str, float]) -> str:
        """The share of prompt tokens that were found in the prefix cache."""
        now = self.metrics()
        hits, queries = (now[name] - before[name] for name in ("prefix_cache_hits", "prefix_cache_queries"))
        return f"{hits / queries:.0%}"


def is_as_asked(row: dict[str, Any], way: dict[str, Any]) -> bool:
    """Whether the raw answer has the form that the prompt asks for, and nothing else."""
    raw: str = row["raw"] or ""
    if way.get("mode") == "choice":
        return raw in way["choices"]
    if way.get("mode") != "json":
        return bool(re.fullmatch(way["pattern"], raw.strip()))
    try:
        answer = json.loads(raw)
    except ValueError:
        return False
    return answer.keys() == {"reason", "score"} and answer["score"] in range(6)


def is_cut(row: dict[str, Any], way: dict[str, Any]) -> bool:
    """Whether the answer ran into `max_tokens` before it had its form; a small model may repeat itself in a reason."""
    return "max_tokens" in way and row["completion_tokens"] == way["max_tokens"] and not is_as_asked(row, way)


def prompt_of(name: str, way: dict[str, Any]) -> dict[str, Any]:
    """A whole prompt."""
    common = {"name": name, "criterion": "educational_value", "language": "en", "score": {"min": 0, "max": 5}}
    return {**common, "max_text_chars": MAX_CHARS, **way}


def say(base_url: str, model: str, question: str) -> str:
    """A greedy answer of at most 24 tokens."""
    body = {"model": model, "messages": [{"role": "user", "content": question}], "max_tokens": 24, "temperature": 0}
    return str(json.loads(ask("POST", f"{base_url}/chat/completions", body))["choices"][0]["message"]["content"])


def ask(method: str, url: str, body: dict[str, Any] | None = None) -> bytes:
    """What a server on this machine answers."""
    parts = urlsplit(url)
    connection = HTTPConnection(parts.netloc, timeout=300)
    data = None if body is None else json.dumps(body)
    connection.request(method, parts.path, data, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    if answer.status != 200:
        sys.exit(f"{method} {url}: {answer.status} {content.decode(errors='replace')[:1000]}")
    return content


def words(text: str) -> list[str]:
    """Lower-case words without signs."""
    return re.findall(r"\w+", text.lower())


def cell(text: str) -> str:
    """Text that may stand in a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def head(*columns: str) -> None:
    """The first two lines of a Markdown table."""
    line()
    line(*columns)
    line(*["---"] * len(columns))


def line(*cells: object) -> None:
    """A line of a Markdown table; an empty one without cells."""
    print("| " + " | ".join(map(str, cells)) + " |" if cells else "", flush=True)


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def run(command: list[str]) -> None:
    """Run a command; its output is shown where it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nended with {done.returncode}:\n{done.stdout[-3000:]}")


def first_documents(source: Path, count: int) -> list[dict[str, Any]]:
    """The first documents of a JSONL or Parquet file, cut to what a prompt takes of them."""
    if source.suffix == ".parquet":
        rows = pq.read_table(source, columns=["id", "text"]).slice(0, count).to_pylist()
    else:
        rows = [json.loads(line) for line in source.read_text().splitlines()[:count]]
    return [{"id": row["id"], "text": row["text"].strip()[:MAX_CHARS]} for row in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, help="JSONL or Parquet with id and text")
    parser.add_argument("--url", required=True, help="of the vLLM server")
    parser.add_argument("--model-dir", type=Path, required=True)
    parser.add_argument("--vllm-python", required=True, help="Python of vLLM's environment, for its benchmark")
    parser.add_argument("--work", type=Path, required=True, help="folder for everything that is written")
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    documents = options.work / "documents.jsonl"
    write_lines(documents, first_documents(options.source, options.count))
    check = Check(options)
    check.conversion()
    check.ways(documents)
    check.speed(documents, options.rounds)
    for failure in check.failures:
        print(f"FAILED: {failure}")
    sys.exit(1 if check.failures else 0)


if __name__ == "__main__":
    main()
