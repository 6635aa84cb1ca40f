"""Tune the embedded model on triples made from documents, and ask the result through the embedded annotator.

    python benchmarks/tuning.py ../shared/data/fineweb_edu_llm_scored_1000.jsonl /tmp/tuning [--steps 30]

Each of 120 documents makes a triple without any LLM: the instruction is to continue a text, the input its first two
sentences, the output the next two. The rejected answer of its pair has the words of the true one in random order. SFT,
DPO and QLoRA are run on them; figures are on documents that are held out. The tuned weights then answer in the embedded
annotator as GGUF, and beside transformers.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from ml_filter.annotation.embedded import embedded_endpoint
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.downstream.tuning.result import TunedModel
from ml_filter.downstream.tuning.tune import tune_model

DOCUMENTS = 120
ANSWER_TOKENS = 24


def triples(source: Path) -> Iterator[dict[str, str]]:
    """Continuations of the first documents that have four sentences of ordinary length."""
    made, shuffle = 0, random.Random(0).shuffle  # noqa: S311 - nothing secret
    for number, line in enumerate(source.open()):
        sentences = re.split(r"(?<=[.!?])\s+", json.loads(line)["text"])[:4]
        if len(sentences) < 4 or not all(30 < len(sentence) < 200 for sentence in sentences):
            continue
        start, answer = " ".join(sentences[:2]), " ".join(sentences[2:])
        words = answer.split()
        shuffle(words)
        prompt = {"instruction": "Continue this text.", "input": start}
        yield {
            "document_id": str(number),
            **prompt,
            "output": answer,
            "prompt": "\n\n".join(prompt.values()),
            "chosen": answer,
            "rejected": " ".join(words),
        }
        made += 1
        if made == DOCUMENTS:
            return


def tuned(name: str, data: Path, output: Path, **settings: object) -> TunedModel:
    """Tune, and print the figures and the time."""
    config = TuneConfig.model_validate(
        {
            "max_tokens": 256,
            "batch_size": 4,
            "gradient_accumulation": 1,
            "held_out_share": 0.25,
            "log_steps": 5,
            **settings,
        }
    )
    before, cpu = time.perf_counter(), time.process_time()
    model = tune_model(SourceConfig(paths=[str(data)]), config, output / name)
    seconds, cpu = time.perf_counter() - before, time.process_time() - cpu
    figures = ", ".join(f"{figure} {value.text}" for figure, value in model.result.figures.items())
    counts = model.result.data.counts
    print(f"{name}: {counts['train']} trained, {counts['held_out']} held out; {figures}", flush=True)
    print(f"{name}: {seconds:.0f} s, {cpu:.0f} s of CPU", flush=True)
    return model


async def asked(gguf: Path | None, prompts: list[str]) -> list[str]:
    """Greedy answers of the embedded annotator."""
    with embedded_endpoint(Settings(embedded_model=gguf)) as [endpoint]:
        headers = {"Authorization": f"Bearer {endpoint.api_key.get_secret_value()}"}
        answers = []
        async with aiohttp.ClientSession(headers=headers) as session:
            for prompt in prompts:
                body = {
                    "messages": [{"role": "user", "content": prompt}],
                    "temperature": 0,
                    "max_tokens": ANSWER_TOKENS,
                }
                async with session.post(f"{endpoint.base_url}/chat/completions", json=body) as response:
                    answers.append((await response.json())["choices"][0]["message"]["content"])
        return answers


def generated(model: Path, prompts: list[str]) -> list[str]:
    """Greedy answers of the same weights in transformers, rounded to float16 as in the GGUF file."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    loaded, tokenizer = AutoModelForCausalLM.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    loaded, answers = loaded.half().float(), []
    for prompt in prompts:
        messages = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            answer = loaded.generate(ids, max_new_tokens=ANSWER_TOKENS, do_sample=False)[0, ids.shape[1] :]
        answers.append(tokenizer.decode(answer, skip_special_tokens=True))
    return answers


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("documents", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    data = arguments.output / "triples.jsonl"
    if not data.exists():  # its digest is that of the file
        data.write_text("".join(json.dumps(row) + "\n" for row in triples(arguments.documents)))
    alpaca = arguments.output / "alpaca.jsonl"
    if not alpaca.exists():
        names = ("document_id", "instruction", "input", "output")
        rows = [{name: row[name] for name in names} for row in map(json.loads, data.open())]
        alpaca.write_text("".join(json.dumps(row) + "\n" for row in rows))
    steps = {"max_steps": arguments.steps, "checkpoint_steps": arguments.steps}
    sft = tuned("sft", alpaca, arguments.output, **steps)
    rows = [json.loads(line) for line in data.open()][:5]
    prompts = [row["prompt"] for row in rows]
    root = Path(sft.root)
    base, ours, reference = (
        asyncio.run(asked(None, prompts)),
        asyncio.run(asked(root / "model.gguf", prompts)),
        generated(root / "model", prompts),
    )
    print(f"GGUF and transformers: {sum(map(str.__eq__, ours, reference))} of {len(prompts)} answers are equal")
    for row, before, after in zip(rows, base, ours, strict=True):
        print(json.dumps({"prompt": row["prompt"], "base": before, "tuned": after, "true": row["output"]}, indent=1))
    tuned("qlora", alpaca, arguments.output, weights="qlora", max_steps=5, checkpoint_steps=5)
    pairs = {"batch_size": 2, "max_steps": arguments.steps // 2, "checkpoint_steps": arguments.steps}
    tuned("dpo", data, arguments.output, method="dpo", learning_rate=1e-4, **pairs)
    return 0


if __name__ == "__main__":
    sys.exit(main())
