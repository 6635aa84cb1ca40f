"""What a sensible model answers to the prompts of instruction data; some of it is bad on purpose."""

from __future__ import annotations

import json
import re
from typing import Any

from tests.annotation.misbehaving import Request, chat

PAGES = [
    {
        "id": f"page{number}",
        "url": f"https://example.org/{number}",
        "text": f"{plant} grow in {place}, where the soil keeps the water of the spring rain. Their roots reach the "
        f"gravel below, and gardeners cut {plant} after {month}. Birds carry the seeds of {plant} to other valleys, "
        f"so that whole slopes near {place} turn green within a few years.",
    }
    for number, (plant, place, month) in enumerate(
        [
            ("Ferns", "shaded ravines", "October"),
            ("Lilies", "sunny meadows", "August"),
            ("Thistles", "stony pastures", "September"),
            ("Orchids", "damp forests", "July"),
        ]
    )
]


def sensible(request: Request) -> dict[str, Any]:
    """The answer to a request, by its prompt."""
    return chat(answer_to(request.body["messages"][-1]["content"], request.body["temperature"]))


def answer_to(question: str, temperature: float = 0.0) -> str:
    """The text of the answer."""
    material = re.split(r"\n={10}\n", question)
    if '{"triples"' in question:
        return json.dumps({"triples": written(material[1])})
    if '"score"' in question:
        is_poor = "grow fast" in material[1]
        return json.dumps({"reason": "Vague." if is_poor else "Clear.", "score": 1 if is_poor else 4})
    if '"winner"' in question:
        first, second = material[1].split("Answer A:\n")[1].split("\n\nAnswer B:\n")
        better = len(set(first.split())) - len(set(second.split()))
        return json.dumps({"reason": "It says more.", "winner": "A" if better > 0 else "B" if better < 0 else "tie"})
    if '"answer"' in question:
        short = "It keeps all of the water."
        return json.dumps({"answer": short if temperature else f"{short} The roots reach the gravel below."})
    return json.dumps(evolved(question, material[1]))


def written(passage: str) -> list[dict[str, str]]:
    """Three instructions: a good one, a vague one, and one with an invented number or a refusal."""
    plant, place = passage.split(maxsplit=1)[0], re.search(r"in (\w+ \w+),", passage)[1]
    sentences = re.split(r"(?<=\.) ", passage)
    bad = "Sorry, I cannot answer that question for you." if plant == "Ferns" else f"{sentences[0]} It began in 1987."
    return [
        {"instruction": f"Explain where {plant} grow and why they do well there.", "input": "", "output": sentences[0]},
        {
            "instruction": f"Do {plant} grow fast, and where?",
            "input": "",
            "output": f"{plant} turn {place} green within years.",
        },
        {"instruction": f"When did {plant} first grow in {place}?", "input": "", "output": bad},
    ]


def evolved(question: str, material: str) -> dict[str, str]:
    """A good evolution, except that the way `deepen` returns what it was given."""
    passage, task = material.removeprefix("Passage:\n").split("\n\nTask:\n")
    instruction = task.removeprefix("Instruction: ").split("\n\n")[0]
    sentences = re.split(r"(?<=\.) ", passage)
    if "more depth" in question:
        return {"instruction": instruction, "input": "", "output": sentences[1]}
    way = "in one sentence for young gardeners" if "constraints" in question else "step by step, from soil to seeds"
    return {
        "instruction": f"{instruction[:-1]} {way}, and name what carries their seeds.",
        "input": "",
        "output": " ".join(sentences),
    }
