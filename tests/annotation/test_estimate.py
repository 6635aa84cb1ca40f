"""The bill before the run: what it says, what it rests on, and that the pilot is not paid twice."""

import json
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from pydantic import SecretStr

from ml_filter.annotation.annotate import annotate_documents
from ml_filter.annotation.config import AnnotateConfig, EstimateConfig
from ml_filter.annotation.estimate import ESTIMATE_NAME, Estimate, Range, estimate_bill
from ml_filter.cli import main
from ml_filter.config import Settings
from ml_filter.documents.config import SourceConfig
from ml_filter.errors import ConfigError, TooManyFailures
from ml_filter.pipeline.bill import annotator_runs, estimate_pipeline
from ml_filter.prepare.config import SampleConfig
from ml_filter.prepare.sampling import sample_documents
from tests.annotation.misbehaving import Reply, Request, chat, refused

SETTINGS = Settings(_env_file=None, endpoint=None, model=None, api_key=SecretStr("sk-the-key"))
PRICES = {"usd_per_million_prompt_tokens": 100.0, "usd_per_million_completion_tokens": 1000.0}


def usage(prompt: int, completion: int) -> dict[str, int]:
    return {"prompt_tokens": prompt, "completion_tokens": completion}


def tokens_of(document: str) -> int:
    """Between 100 and 199, different for the documents."""
    return 100 + int(document[1:]) * 37 % 100


def uneven(request: Request) -> dict[str, Any]:
    return chat("Score: 3", usage=usage(tokens_of(request.document), 5))


def pilot(documents: int, **changes: Any) -> EstimateConfig:
    return EstimateConfig(pilot=documents, **changes)


def test_the_estimate_extrapolates_the_pilot_to_all_documents(serve, pages, asking):
    server = serve(lambda request: chat("Score: 3", usage=usage(200, 10)))
    estimate = estimate_bill(pages(40), asking(server, **PRICES), pilot(10), settings=SETTINGS)
    assert (estimate.documents, estimate.pilot.documents, len(server.requests)) == (40, 10, 10)
    assert estimate.requests == Range(value=40, low=40, high=40)
    assert estimate.prompt_tokens == Range(value=8000, low=8000, high=8000)
    assert estimate.completion_tokens == Range(value=400, low=400, high=400)
    assert estimate.usd is not None
    assert estimate.usd.value == pytest.approx(8000 * 100e-6 + 400 * 1000e-6)
    assert estimate.pilot.usd == pytest.approx(estimate.usd.value / 4)


def test_the_interval_contains_what_the_run_uses(serve, pages, asking, tmp_path):
    server = serve(uneven)
    config = asking(server, max_concurrency=16, **PRICES)
    estimate = estimate_bill(pages(200), config, pilot(50), output=tmp_path / "out", settings=SETTINGS)
    counts = annotate_documents(pages(200), config, tmp_path / "out", SETTINGS).counts
    assert estimate.prompt_tokens is not None
    assert estimate.usd is not None
    assert estimate.prompt_tokens.low < counts["prompt_tokens"] < estimate.prompt_tokens.high
    assert estimate.usd.low < config.usd(counts["prompt_tokens"], counts["completion_tokens"]) < estimate.usd.high
    assert estimate.prompt_tokens.high - estimate.prompt_tokens.low < 0.2 * estimate.prompt_tokens.value


@pytest.mark.parametrize("where", ["output", "ledger"])
def test_the_run_reuses_the_answers_of_the_pilot(where, serve, pages, asking, tmp_path):
    server = serve(uneven)
    config = asking(server, **({"ledger": str(tmp_path / "shared.sqlite")} if where == "ledger" else {}))
    output = tmp_path / "annotations" if where == "output" else None
    estimate = estimate_bill(pages(12), config, pilot(5), output=output, settings=SETTINGS)
    assert estimate.pilot.ledger == str(
        tmp_path / ("shared.sqlite" if where == "ledger" else "annotations/ledger.sqlite")
    )
    assert len(server.requests) == 5
    annotations = annotate_documents(pages(12), config, tmp_path / "annotations", SETTINGS)
    assert annotations.counts["scored"] == 12
    assert set(server.asked.values()) == {1}


def test_the_pilot_is_random_and_reproducible_by_seed(serve, pages, asking):
    drawn = []
    for seed in (1, 1, 2):
        server = serve(uneven)
        estimate_bill(pages(50), asking(server), pilot(10, seed=seed), settings=SETTINGS)
        drawn.append(set(server.asked))
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != {f"d{i}" for i in range(10)}


def test_an_estimate_is_repeated_only_with_other_settings(serve, pages, asking, tmp_path):
    server, source = serve(uneven), pages(20)
    first = estimate_bill(source, asking(server), pilot(5), output=tmp_path, settings=SETTINGS)
    assert estimate_bill(source, asking(server), pilot(5), output=tmp_path, settings=SETTINGS) == first
    assert len(server.requests) == 5
    assert Estimate.model_validate_json((tmp_path / ESTIMATE_NAME).read_text()) == first
    priced = estimate_bill(source, asking(server, **PRICES), pilot(5), output=tmp_path, settings=SETTINGS)
    assert len(server.requests) == 5
    assert priced.usd is not None
    assert priced.hours == first.hours
    elsewhere = estimate_bill(source, asking(server, ledger=first.pilot.ledger), pilot(5), settings=SETTINGS)
    assert elsewhere.hours is None
    assert any("already in the ledger" in note for note in elsewhere.notes)


def test_votes_and_windows_count_as_requests(serve, pages, asking, prompt_file):
    server = serve(lambda request: chat("Score: 3", usage=usage(10, 1)))
    config = asking(
        server,
        prompts=[prompt_file(max_text_chars=20)],
        votes=2,
        temperature=0.5,
        long_documents="windows",
        max_windows=2,
    )
    estimate = estimate_bill(pages(30), config, pilot(10), settings=SETTINGS)
    assert estimate.requests.value == 30 * 2 * 2
    assert estimate.prompt_tokens is not None
    assert estimate.prompt_tokens.value == 1200


def test_failed_requests_are_reported_and_do_not_lower_the_means(serve, pages, asking):
    def answer(request: Request) -> Reply:
        number = int(request.document[1:])
        if number % 4 == 0:
            return refused(400, "maximum context length exceeded")
        return Reply(chat("no idea" if number % 4 == 1 else "Score: 3", usage=usage(100, 7)))

    estimate = estimate_bill(pages(40), asking(serve(answer)), pilot(40), settings=SETTINGS)
    assert estimate.pilot.errors == {"context_too_long": 10, "unparsable_score": 10}
    assert (estimate.pilot.requests, estimate.pilot.answered) == (40, 30)
    assert estimate.prompt_tokens is not None
    assert estimate.prompt_tokens.value == pytest.approx(40 * 100)
    assert estimate.pilot.prompt_tokens == 30 * 100
    [note] = [note for note in estimate.notes if "failed" in note]
    assert note == "20 of 40 requests of the pilot failed: context_too_long 10, unparsable_score 10"


def test_a_pilot_without_any_answer_gives_no_estimate(serve, pages, asking, tmp_path):
    server = serve(lambda request: refused(400, "no"))
    with pytest.raises(TooManyFailures, match=r"none of the pilot's 4 requests was answered: bad_request 4"):
        estimate_bill(pages(9), asking(server), pilot(4), output=tmp_path, settings=SETTINGS)
    assert not (tmp_path / ESTIMATE_NAME).exists()


def test_hours_are_measured_with_their_concurrency(serve, pages, asking):
    server = serve(lambda request: Reply(uneven(request), delay_s=0.1))
    estimate = estimate_bill(pages(100), asking(server, max_concurrency=2), pilot(20), settings=SETTINGS)
    assert estimate.hours is not None
    assert estimate.pilot.in_flight == pytest.approx(2, abs=0.3)
    assert estimate.hours.value == pytest.approx(estimate.pilot.seconds / 20 * 100 / 3600)
    assert estimate.pilot.seconds >= 1.0
    assert estimate.hours.low <= estimate.hours.value <= estimate.hours.high
    assert not any("upper bound" in note for note in estimate.notes)


def test_hours_of_a_small_pilot_are_called_an_upper_bound(serve, pages, asking):
    estimate = estimate_bill(pages(9), asking(serve(uneven), max_concurrency=100), pilot(5), settings=SETTINGS)
    assert any("upper bound" in note and "100" in note for note in estimate.notes)


def test_unknown_figures_are_none_and_explained(serve, pages, asking):
    silent = {**chat("Score: 3"), "usage": None}
    estimate = estimate_bill(pages(9), asking(serve(lambda request: silent), **PRICES), pilot(5), settings=SETTINGS)
    assert (estimate.prompt_tokens, estimate.completion_tokens, estimate.usd) == (None, None, None)
    assert any("no token counts" in note for note in estimate.notes)
    estimate = estimate_bill(pages(9), asking(serve(uneven)), pilot(5), settings=SETTINGS)
    assert estimate.usd is None
    assert any("usd_per_million_prompt_tokens" in note for note in estimate.notes)
    assert any("not kept" in note for note in estimate.notes)


def test_a_single_document_has_no_interval(serve, pages, asking):
    estimate = estimate_bill(pages(9), asking(serve(uneven)), pilot(1), settings=SETTINGS)
    assert estimate.prompt_tokens is not None
    assert (estimate.prompt_tokens.low, estimate.prompt_tokens.high) == (None, None)


def test_the_budget_also_limits_the_pilot(serve, pages, asking):
    server = serve(lambda request: chat("Score: 3", usage=usage(100, 10)))
    estimate = estimate_bill(
        pages(50), asking(server, budget_tokens=2000, max_concurrency=1), pilot(40), settings=SETTINGS
    )
    assert estimate.pilot.documents == len(server.requests) < 19
    assert estimate.prompt_tokens is not None
    assert estimate.prompt_tokens.value == pytest.approx(5000)
    with pytest.raises(TooManyFailures, match=r"budget of 10 tokens .* before one document"):
        estimate_bill(pages(50), asking(server, budget_tokens=10), pilot(4), settings=SETTINGS)


def test_a_pipelines_sample_is_drawn_where_the_pipeline_finds_it(pages, tmp_path):
    source, sample = pages(30), SampleConfig(size=20, seed=3)
    parameters = {"source": source.model_dump(), "sample": sample.model_dump(), "output": str(tmp_path / "runs")}
    first = AnnotateConfig(model="m")
    [run] = annotator_runs(parameters, first, output=None, settings=SETTINGS)
    [path] = run.source.paths
    drawn = sample_documents(source, sample, f"{tmp_path}/runs/sample-{{digest}}")
    assert path == drawn.root
    assert pq.read_table(drawn.shard_paths()[0]).num_rows == 20
    [run] = annotator_runs({"source": source.model_dump()}, first, output=None, settings=SETTINGS)
    assert run.source == source
    with pytest.raises(ConfigError, match="give DOCS"):
        annotator_runs({"prompts": ["x"]}, first, output=None, settings=SETTINGS)


@pytest.fixture
def pipeline(serve, asking, prompt_file, tmp_path):
    """Parameters of a pipeline with a jury of one and a gate, whose annotators use 100 and 30 tokens a document."""
    first = asking(serve(lambda _: chat("Score: 3", usage=usage(90, 10))), **PRICES, budget_tokens=5000)
    second = asking(serve(lambda _: chat("Score: 3", usage=usage(20, 10))), **PRICES, model="n", budget_tokens=2000)
    (tmp_path / "gold.jsonl").write_text(
        "".join(json.dumps({"id": f"g{i}", "text": f"[g{i}] gold", "human_score": 3}) + "\n" for i in range(10))
    )
    return {
        "sample": {"size": 20},
        "output": str(tmp_path / "runs"),
        "annotate": first.model_dump(mode="json"),
        "jury": [second.model_dump(mode="json")],
        "gate": {"gold": {"paths": [str(tmp_path / "gold.jsonl")]}},
    }


def test_a_pipelines_estimate_covers_all_annotators_over_sample_and_gold(pipeline, pages):
    parameters = {**pipeline, "source": pages(30).model_dump()}
    first = AnnotateConfig.model_validate(pipeline["annotate"])
    runs = annotator_runs(parameters, first, output=None, settings=SETTINGS)
    bill = estimate_pipeline(runs, pilot(5), SETTINGS)
    tokens = {name: one.prompt_tokens and one.prompt_tokens.value for name, one in bill.runs.items()}
    assert tokens == {"annotate": 1800, "jury-1": 400, "gold-annotate": 900, "gold-jury-1": 200}
    assert bill.requests == Range(value=60, low=60, high=60)
    assert (bill.prompt_tokens and bill.prompt_tokens.value) == 3300
    assert (bill.usd and bill.usd.value) == pytest.approx(3300 * 100e-6 + 600 * 1000e-6)
    assert (bill.most_tokens, bill.most_usd) == (14_000, None)


def test_gold_shared_by_gates_is_estimated_once(pipeline, pages, tmp_path):
    (tmp_path / "other.jsonl").write_text(json.dumps({"id": "o", "text": "[o] gold", "human_score": 3}) + "\n")
    one, other = pipeline["gate"], {"gold": {"paths": [str(tmp_path / "other.jsonl")]}}
    parameters = {**pipeline, "gate": [one, {**one, "min_agreement": 0.1}, other], "source": pages(30).model_dump()}
    first = AnnotateConfig.model_validate(pipeline["annotate"])
    names = [run.name for run in annotator_runs(parameters, first, output=None, settings=SETTINGS)]
    assert names == ["annotate", "jury-1", "gold-annotate", "gold-jury-1", "gold-2-annotate", "gold-2-jury-1"]


def test_the_pipeline_reuses_the_answers_of_the_pilot_on_the_gold(pipeline, pages):
    parameters = {**pipeline, "source": pages(30).model_dump()}
    first = AnnotateConfig.model_validate(pipeline["annotate"])
    runs = annotator_runs(parameters, first, output=None, settings=SETTINGS)
    estimate_pipeline(runs, pilot(5), SETTINGS)
    gold = SourceConfig.model_validate(pipeline["gate"]["gold"])
    manifest = annotate_documents(gold, first, f"{pipeline['output']}/annotations-{{digest}}", SETTINGS)
    assert (manifest.counts["scored"], manifest.counts["prompt_tokens"]) == (10, 900)
    assert manifest.root == runs[2].output


def test_the_command_shows_a_line_for_each_run_of_a_pipeline_and_what_the_budgets_allow(
    pipeline, pages, tmp_path, capsys
):
    config = tmp_path / "annotation.yaml"
    config.write_text(yaml.safe_dump({"parameters": {**pipeline, "source": pages(30).model_dump()}}))
    assert main(["estimate", "--pilot", "3", "--config", str(config)]) == 0
    shown = capsys.readouterr().out
    for words in ("4 annotator runs", "jury-1", "gold-jury-1", "3,300", "0.9300", "together at most 14,000 tokens"):
        assert words in shown


def test_the_command_estimates_a_pipelines_configuration_and_annotate_shows_the_cost(
    serve, pages, asking, tmp_path, capsys
):
    server = serve(lambda request: chat("Score: 3", usage=usage(1000, 100)))
    source = pages(30)
    annotate = asking(server, **PRICES).model_dump(mode="json")
    parameters = {"source": source.model_dump(), "sample": {"size": 20}, "output": str(tmp_path / "runs")}
    config = tmp_path / "annotation.yaml"
    config.write_text(yaml.safe_dump({"parameters": {**parameters, "annotate": annotate}}))
    output = str(tmp_path / "annotations")

    def ml_filter(*arguments: str) -> str:
        assert main([*arguments, "--config", str(config), "--output", output]) == 0
        return capsys.readouterr().out

    shown = ml_filter("estimate", "--pilot", "5")
    assert "estimate from 5 of 20 documents" in shown
    assert "4.00" in shown
    assert json.loads((tmp_path / "annotations" / ESTIMATE_NAME).read_text())["usd"]["value"] == pytest.approx(4.0)
    [sample] = (tmp_path / "runs").glob("sample-*")
    shown = ml_filter("annotate", str(sample))
    assert "USD" in shown
    assert "4.000" in shown
    assert len(server.requests) == 20


def test_only_documents_that_can_be_annotated_are_counted(serve, asking, tmp_path):
    lines = [json.dumps({"id": f"d{i}", "text": f"[d{i}] page"}) for i in range(8)] + ["not json", '{"text": ""}']
    (tmp_path / "mixed.jsonl").write_text("\n".join(lines))
    source = SourceConfig(paths=[str(tmp_path / "mixed.jsonl")])
    assert estimate_bill(source, asking(serve(uneven)), pilot(3), settings=SETTINGS).documents == 8


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("parameters:\n", "no documents to annotate"),
        ("parameters: {source: 3}\n", "source: Input should be"),
        ("parameters: {source: {paths: [nowhere.jsonl]}, jury: 3}\n", "jury: Input should be a valid list"),
        ("parameters: {source: {paths: [nowhere.jsonl]}}\n", "nowhere.jsonl does not exist"),
        ("parameters: {sorce: {paths: [nowhere.jsonl]}}\n", "wrong.yaml: unknown key 'sorce'"),
    ],
)
def test_errors_in_a_pipelines_file_are_reported(content, says, tmp_path, monkeypatch, capsys):
    (tmp_path / "wrong.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", "--config", "wrong.yaml"]) == 2
    assert says in capsys.readouterr().err
