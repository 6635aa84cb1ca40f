"""The verdict follows from the bits of the models, and from the target high alone."""

import numpy as np
import pytest

from ml_filter.documents.config import SourceConfig
from ml_filter.downstream.ablation.config import AblateConfig
from ml_filter.downstream.ablation.result import Arm, compare_arms, verdict_of, warnings_about
from ml_filter.downstream.ablation.training import TrainedModel


def arm_of(name: str, size: float) -> Arm:
    return Arm(name=name, available_documents=1, available_bytes=1, documents=1, bytes=size, tokens=1)


CONFIG = AblateConfig(gold=SourceConfig(paths=["gold.jsonl"]))
ARMS = [arm_of("filtered", 1e6), arm_of("random", 1.02e6)]
SIZES = {"high": [1000] * 40, "low": [1000] * 40}


def model(arm: str, seed: int, high: float, low: float, rate: float = 1.0) -> TrainedModel:
    """A model with these bits per byte; documents differ from each other, and a little from arm to arm."""
    difficulty = np.random.default_rng(0).normal(0, 0.3, 40)
    own = np.random.default_rng([seed, len(arm)]).normal(0, 0.01, (2, 40))
    bits = {
        name: (1000 * (bpb + difficulty + noise)).tolist()
        for name, bpb, noise in zip(SIZES, (high, low), own, strict=True)
    }
    return TrainedModel(
        name=f"{arm}-{seed}", arm=arm, seed=seed, rate=rate, steps=1, final_loss=1, cpu_seconds=1, curve=[], bits=bits
    )


def judged(gain: float, *, low_gain: float = 0.0, shuffled: float = 0.0, by_seed: tuple[float, ...] = (0, 0, 0, 0)):
    """Filtered against random, with a gain that differs by seed; the learning rates take turns."""
    models = []
    for seed, extra in enumerate(by_seed):
        rate = (1.0, 0.5)[seed % 2]
        models += [
            model("random", seed, 2.3, 2.3, rate),
            model("filtered", seed, 2.3 - gain - extra, 2.3 - low_gain, rate),
            model("shuffled", seed, 2.3 - shuffled, 2.3, rate),
        ]
    return verdict_of(compare_arms(models, SIZES, CONFIG), ARMS, CONFIG)


def test_filter_helps_if_its_models_need_fewer_bits():
    verdict, reason, warnings = judged(0.05)
    assert verdict == "helps"
    assert reason.startswith("models trained on filtered documents need 0.05")
    assert (
        "fewer bits per byte than models trained on random ones on the target high (40 documents, 95% interval"
        in reason
    )
    assert not warnings


def test_filter_hurts_if_its_models_need_more_bits():
    verdict, reason, _ = judged(-0.05)
    assert verdict == "hurts"
    assert "more bits per byte than models" in reason


def test_difference_inside_the_noise_is_not_shown():
    assert judged(0.0)[0] == "no difference shown"


@pytest.mark.parametrize("low_gain", [-0.2, 0.2])
def test_target_low_has_no_say(low_gain):
    assert judged(0.05, low_gain=low_gain)[0] == "helps"
    assert judged(0.0, low_gain=low_gain)[0] == "no difference shown"


def test_gain_that_varies_between_seeds_is_not_shown():
    assert judged(0.02, by_seed=(0.05, -0.05, 0.04, -0.03))[0] == "no difference shown"


def test_gain_whose_sign_depends_on_the_learning_rate_is_not_shown():
    models = [model("random", seed, 2.3, 2.3, rate) for seed, rate in enumerate((1.0, 0.5) * 20)]
    models += [model("shuffled", seed, 2.3, 2.3, rate) for seed, rate in enumerate((1.0, 0.5) * 20)]
    models += [
        model("filtered", seed, 2.3 - (0.08 if rate == 1 else -0.02), 2.3, rate)
        for seed, rate in enumerate((1.0, 0.5) * 20)
    ]
    verdict, _, warnings = verdict_of(compare_arms(models, SIZES, CONFIG), ARMS, CONFIG)
    assert verdict == "no difference shown"
    assert warnings[0].startswith("the sign of the gain depends on the learning rate (1: +0.0")


def test_shuffled_control_that_differs_from_random_is_a_warning():
    verdict, _, warnings = judged(0.05, shuffled=0.05)
    assert verdict == "helps"
    assert warnings == [
        "the shuffled control is better than random, though it has random documents: expect this in 5% of all "
        "ablations, and repeat this one with other seeds"
    ]


def test_arms_of_different_bytes_are_a_warning():
    models = [model(arm, seed, 2.3, 2.3) for arm in ("random", "filtered", "shuffled") for seed in range(3)]
    arms = [arm_of("filtered", 1e6), arm_of("random", 1.3e6)]
    assert verdict_of(compare_arms(models, SIZES, CONFIG), arms, CONFIG)[2] == [
        "with the same number of tokens, the arm random has 1.30 times the bytes of filtered: the tokenizer suits its "
        "text better"
    ]


def test_models_that_are_worse_than_guessing_bytes_are_a_warning():
    models = [model("random", 0, 2.3, 2.3), model("filtered", 0, 7.5, 9.0), model("filtered", 1, 8.6, 2.3)]
    [warning] = warnings_about(models, SIZES)
    assert warning.startswith("1 of 3 models need more than 8 bits per byte on the target high (filtered-1: 8.")
    assert warnings_about(models[:2], SIZES) == []
