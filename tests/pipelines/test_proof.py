"""The whole loop: from documents over a filter and its ablation to a tuned model, and one page about it."""

import json

import pytest

from ml_filter.downstream.proof.page import Proof
from tests.annotation.conftest import serve  # noqa: F401 - a fixture
from tests.annotation.misbehaving import chat
from tests.downstream.ablation.corpora import text_of, write_gold
from tests.downstream.tuning.tiny import write_tiny_base

pytestmark = [
    pytest.mark.zenml,
    pytest.mark.slow,
    pytest.mark.model,
    pytest.mark.filterwarnings("ignore"),  # ZenML's own warnings
]

TRAINING = "{depth: 1, passes: 1, seeds: 2, control_seeds: 2, workers: 1, learning_rates: [1.0]}"


def llm(request):
    """Annotates, writes instructions, rates, answers and compares; documents with `x`, `v` and `w` are bad."""
    question = request.body["messages"][-1]["content"]
    if "to which this text is a good answer" in question:
        first, second = question.split()[1:3]
        return chat(json.dumps({"instruction": f"What comes after {first} {second} in this old song?"}))
    if '"winner"' in question:
        return chat('{"reason": "The first is clear.", "winner": "A"}')
    if '"score"' in question:
        return chat('{"reason": "Clear.", "score": 4}')
    if "Score: <" in question:
        document = question.partition("==========")[2].partition("==========")[0]
        return chat("Score: 0" if "xa" in document or "zo" in document else "Score: 4")
    return chat(f"{request.body['model']} knows the song of {len(question)} verses.")


def test_one_run_goes_from_documents_to_a_page_that_answers_every_question(run, store, serve, tmp_path):  # noqa: F811
    rows = [{"id": f"{kind}{n}", "text": text_of(kind, n)} for kind in ("good", "bad") for n in range(40)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_gold(tmp_path / "gold.jsonl")
    write_tiny_base(tmp_path / "base", [row["text"] for row in rows])
    url = serve(llm).url
    prices = "usd_per_million_prompt_tokens: 1000, usd_per_million_completion_tokens: 1000"
    asked = f"endpoints: [{url}], model: m, max_concurrency: 4, {prices}"
    asked_tuned = asked.replace("model: m", "model: tuned")
    code, printed = run(
        "proof",
        f"output={tmp_path / 'runs'}",
        f"source.paths=[{tmp_path / 'corpus.jsonl'}]",
        "sample.size=80",
        f"annotate={{prompts: [educational_value], {asked}}}",
        "train={kind: hashing}",
        "filter={min_score: 2, dropped: true}",
        f"ablate={{gold: {{paths: [{tmp_path / 'gold.jsonl'}]}}, arm_tokens: 1500, training: {TRAINING}}}",
        f"instruct={{write: {{prompt: instruct_for_passage, {asked}}}, evolve: {{generations: 0}},"
        " publish: {validation_share: 0.3}}",
        f"tune={{base: {tmp_path / 'base'}, max_steps: 2, max_tokens: 64}}",
        f"judge={{size: 5, base: {{{asked}}}, tuned: {{{asked_tuned}}}, judge: {{{asked}}}}}",
    )
    assert code == 0, printed
    (page,) = (tmp_path / "runs").glob("proof-*/proof.html")
    proof = Proof.model_validate_json(page.with_name("proof.json").read_bytes())
    answers = dict(proof.summary)
    assert answers["What was kept?"] == "40 of 80 documents"
    assert proof.instructions.instructions > 20
    assert proof.judgement.verdict == "no verdict"
    assert proof.judgement.comparison.verdicts == {"inconsistent": 5}, "both have answered, and the judge says A"
    tokens = sum(cost.tokens or 0 for cost in proof.costs)
    assert f"{tokens:,} tokens of LLMs, {tokens / 1000:.2f} USD" in answers["What did it cost?"]
    assert all(f"{answer}." in page.read_text() for answer in answers.values() if "'" not in answer)

    from zenml.client import Client

    steps = Client().list_pipeline_runs(pipeline="proof")[0].steps
    assert steps["write_proof"].outputs["proof_page"][0].load() == page.read_text()
