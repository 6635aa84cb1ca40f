"""Answers per second with a ledger in a local file, and with one at a URL of an S3 service (moto, in its own process).

`record`: the ledger alone. `annotate`: whole runs against a server that answers after 50 ms. The rounds alternate, and
the time includes saving the last answers.

    python benchmarks/ledger.py [--answers 5000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

from chat_server import PROMPT, Behaviour, ChatServer, write_documents

SERVER = """
from moto.server import ThreadedMotoServer
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(server.get_host_and_port()[1], flush=True)
input()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    line = [sys.executable, "-c", SERVER]
    with subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        assert server.stdout is not None
        os.environ["AWS_ENDPOINT_URL"] = f"http://127.0.0.1:{int(server.stdout.readline())}"
        os.environ |= {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
        import boto3

        boto3.client("s3").create_bucket(Bucket="ledgers")
        with tempfile.TemporaryDirectory() as scratch, ChatServer(Behaviour(latency_s=0.05), Path(scratch)) as chat:
            documents, prompt = Path(scratch) / "documents.jsonl", Path(scratch) / "prompt.yaml"
            write_documents(documents, options.answers)
            prompt.write_text(PROMPT)
            for name, measure in (
                ("record", lambda ledger: recorded(ledger, options.answers)),
                ("annotate", lambda ledger: annotated(ledger, options.answers, documents, prompt, chat.url)),
            ):
                rates: dict[str, list[float]] = {"local": [], "s3": []}
                for _ in range(options.rounds):
                    rates["local"].append(measure(str(Path(scratch) / uuid.uuid4().hex)))
                    rates["s3"].append(measure(f"s3://ledgers/{uuid.uuid4().hex}"))
                medians = {where: statistics.median(values) for where, values in rates.items()}
                for where, values in rates.items():
                    all_rates = ", ".join(f"{value:,.0f}" for value in values)
                    print(f"{name}, {where}: median {medians[where]:,.0f} answers/s ({all_rates})")
                print(f"{name}, s3 over local: {medians['s3'] / medians['local']:.2f}")
        server.communicate(b"\n")


def annotated(ledger: str, answers: int, documents: Path, prompt: Path, url: str) -> float:
    from ml_filter.annotation.annotate import annotate_documents
    from ml_filter.annotation.config import AnnotateConfig
    from ml_filter.documents.config import SourceConfig

    config = AnnotateConfig(prompts=[str(prompt)], endpoints=[url], model="m", ledger=ledger)
    began = time.perf_counter()
    annotate_documents(SourceConfig(paths=[str(documents)]), config, documents.parent / uuid.uuid4().hex)
    return answers / (time.perf_counter() - began)


def recorded(location: str, answers: int) -> float:
    from ml_filter.annotation.config import AskConfig
    from ml_filter.annotation.ledger import Key, open_ledger
    from ml_filter.documents.schema import ANNOTATION_SCHEMA

    row = dict.fromkeys(ANNOTATION_SCHEMA.names) | {
        "status": "scored", "windows": 1, "prompt_tokens": 700, "completion_tokens": 60, "raw": "It explains. " * 30
    }  # fmt: skip
    ledger = open_ledger(location, AskConfig())
    began = time.perf_counter()
    for number in range(answers):
        ledger.wait_for_room()
        ledger.record(Key(f"d{number}", "text", "question", 0), 0, row)
    ledger.close()
    return answers / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
