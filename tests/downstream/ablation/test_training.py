"""One model: what it is measured on, and that a killed training ends with the same model."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from ml_filter.documents.manifest import Manifest
from ml_filter.downstream.ablation.benchmarks import figures_of, measure_model
from ml_filter.downstream.ablation.dial import Dial
from ml_filter.downstream.ablation.model import build_model
from ml_filter.downstream.ablation.targets import TargetText, read_targets, text_bits, write_targets
from ml_filter.downstream.ablation.training import train_model
from ml_filter.downstream.benchmarks.config import BenchmarkConfig
from ml_filter.downstream.benchmarks.measure import Benchmarks, language_model_at
from ml_filter.errors import ConfigError, InputError
from tests.downstream.ablation.corpora import small_config, text_of, write_gold

pytestmark = pytest.mark.model

DIAL = Dial(1)
TEXTS = [
    TargetText("short", "a"),
    TargetText("two windows", text_of("good", 7) * 2),
    TargetText("one", text_of("bad", 1)),
]


class Killed(Exception):
    pass


def kill_after(steps: int):
    done = 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if done >= steps:
            raise Killed

    return advance


@pytest.mark.parametrize("steps", [1, 4, 10])
def test_killed_training_ends_with_the_same_weights_and_bits(job, tmp_path, steps):
    undisturbed = train_model(job)
    killed = replace(job, scratch=tmp_path / "again", model=tmp_path / "models" / "again")
    with pytest.raises(Killed):
        train_model(killed, kill_after(steps))
    repeated = []
    resumed = train_model(killed, repeated.append)
    assert repeated[0] == steps - steps % 3 if steps < 10 else 10  # at most checkpoint_steps are repeated
    weights, again = load_file(job.model / "model.safetensors"), load_file(killed.model / "model.safetensors")
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    same = {"cpu_seconds"}
    assert resumed.model_dump(exclude=same) == undisturbed.model_dump(exclude=same)


def test_training_lowers_the_bits_of_texts_like_those_it_read(job):
    trained = train_model(job)
    assert trained.curve[-1].bits_per_byte < trained.curve[0].bits_per_byte
    assert [point.tokens for point in trained.curve] == [256, 640, 1024, 1280]
    sizes = {name: sum(text.bytes for text in read_targets(path)) for name, path in job.targets.items()}
    assert sum(trained.bits["high"]) / sizes["high"] < sum(trained.bits["low"]) / sizes["low"]


def test_training_that_diverges_ends_with_an_error_that_names_the_learning_rates(job):
    steps = []
    with pytest.raises(ConfigError, match=r"filtered-0 has diverged.*1e\+30 times.*training\.learning_rates"):
        train_model(replace(job, rate=1e30, passes=200), steps.append)
    assert len(steps) < 20, "it does not end its 1,000 steps first"
    assert not job.model.exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others():
    first, again, other = (build_model(DIAL, 300, seed).state_dict() for seed in (0, 0, 1))
    name = "model.embed_tokens.weight"
    assert torch.equal(first[name], again[name])
    assert not torch.equal(first[name], other[name])


def test_bits_are_those_of_every_token_given_the_ones_before_it_in_its_window(job):
    tokenizer = Tokenizer.from_file(str(job.tokenizer))
    model = build_model(DIAL, job.vocabulary, 0)
    for text in TEXTS:
        ids = [0, *tokenizer.encode(text.text).ids]
        expected = 0.0
        for number in range(1, len(ids)):
            end = min(-(-number // DIAL.context) * DIAL.context, len(ids) - 1)
            before = ids[max(0, end - DIAL.context) : number]
            with torch.no_grad():
                row = model(input_ids=torch.tensor([before])).logits[0, -1].double().log_softmax(0)
            expected -= float(row[ids[number]]) / math.log(2)
        assert next(text_bits(model, tokenizer, iter([text]), DIAL.context)) == pytest.approx(expected, rel=1e-5)
    together = list(text_bits(model, tokenizer, iter(TEXTS), DIAL.context))
    alone = [next(text_bits(model, tokenizer, iter([text]), DIAL.context)) for text in TEXTS]
    assert together == pytest.approx(alone, rel=1e-5)


def test_many_texts_give_a_figure_each_in_their_order(job):
    tokenizer = Tokenizer.from_file(str(job.tokenizer))
    model = build_model(DIAL, job.vocabulary, 0)
    texts = [TargetText(str(n), text_of("good", n, words=1 + 17 * n % 90)) for n in range(40)]
    bits = list(text_bits(model, tokenizer, iter(texts), DIAL.context))
    alone = [next(text_bits(model, tokenizer, iter([text]), DIAL.context)) for text in texts]
    assert bits == pytest.approx(alone, rel=1e-5)


@pytest.mark.filterwarnings("ignore")  # lm-eval's own warnings
def test_lm_eval_finds_the_same_bits_per_byte_in_the_saved_model_and_runs_benchmarks_on_it(job, tmp_path):
    from lm_eval.api.instance import Instance

    trained = train_model(job)
    texts = list(read_targets(job.targets["high"]))
    own = sum(trained.bits["high"]) / sum(text.bytes for text in texts)
    requests = [Instance("loglikelihood_rolling", {}, (text.text,), number) for number, text in enumerate(texts)]
    likelihoods = language_model_at(job.model, "cpu").loglikelihood_rolling(requests, disable_tqdm=True)
    bits = -sum(likelihoods) / math.log(2)
    assert bits / sum(text.bytes for text in texts) == pytest.approx(own, abs=1e-4)
    choices = [[text_of("good", 300 + n, 4), text_of("bad", n, 4)] for n in range(4)]
    rows = [{"question": text_of("good", n), "choices": pair, "answer": 0} for n, pair in enumerate(choices)]
    (tmp_path / "goes_on.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks = Benchmarks(BenchmarkConfig(multiple_choice=[str(tmp_path / "goes_on.jsonl")]))
    arms, place = Manifest(kind="ablation-arms", root=str(tmp_path)), str(tmp_path / "lm-eval-{digest}")
    measured = measure_model(benchmarks, arms, job.name, place, "cpu")
    assert figures_of(measured)["goes_on/acc"] == 1.0, "it was trained on this language"
    assert measure_model(benchmarks, arms, job.name, place, "cpu") == measured


def test_targets_are_the_gold_documents_with_high_and_low_scores_up_to_a_size(tmp_path):
    config = small_config(write_gold(tmp_path / "gold.jsonl"), target_bytes=256)
    targets = {name: list(read_targets(path)) for name, path in write_targets(config, tmp_path).items()}
    assert {name: {text.id.partition("-")[0] for text in texts} for name, texts in targets.items()} == {
        "high": {"good"},
        "low": {"bad"},
    }
    assert np.mean([text.bytes for text in targets["high"]]) == 256


def test_a_text_counts_once_however_often_it_is_in_the_gold(tmp_path):
    gold = write_gold(tmp_path / "gold.jsonl")
    once = write_targets(small_config(gold), tmp_path / "once")
    rows = (tmp_path / "gold.jsonl").read_text().splitlines()
    (tmp_path / "gold.jsonl").write_text(
        "".join(row.replace('"id": "', f'"id": "{copy}-') + "\n" for copy in range(4) for row in rows)
    )
    four_times = write_targets(small_config(gold), tmp_path / "four times")
    counts = [len(list(read_targets(paths["high"]))) for paths in (once, four_times)]
    assert counts[0] == counts[1] > 0


def test_text_is_cut_between_characters():
    assert TargetText("a", "aä").beginning(2).text == "a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"high": 5}, "high has only 0 different documents with a human_score of at least 5"),
        ({"gold_column": "no"}, r"gold\.jsonl, --gold-column: no column 'no'; there are .*human_score"),
        ({"gold_column": "text"}, r"gold\.jsonl, --gold-column: column 'text' does not hold numbers"),
    ],
)
def test_gold_without_a_target_is_an_error(changes, message, tmp_path):
    config = small_config(write_gold(tmp_path / "gold.jsonl"), **changes)
    with pytest.raises(InputError, match=message):
        write_targets(config, tmp_path)
