"""How good is each kind of head, on documents that it has not seen?

Cross-validation over edu_human_gold_dev.jsonl: each head is trained on the 1000 documents of
fineweb_edu_llm_scored_1000.jsonl and on the gold documents of the other folds, with Llama-3-70B's scores as labels
(never the humans'), and scores the fold that is left. Penalties, calibration and the weights of a stack are chosen
inside the training documents, so the cross-validation is nested. Intervals: 95%, bootstrap over documents.

    python benchmarks/head_quality.py ../shared/data [--only NAME ...]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import Ridge, RidgeCV
from sklearn.metrics import f1_score
from sklearn.model_selection import KFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from ml_filter.heads.calibration import fit_calibration
from ml_filter.heads.info import Criterion
from ml_filter.heads.members import EncoderMember, open_member
from ml_filter.heads.ridge import ALPHAS
from ml_filter.settings import HeadSettings, Settings, TrainConfig

FOLDS, REPEATS, RESAMPLES = 10, 3, 2000
CRITERION = Criterion(name="educational_value", low=0, high=5, threshold=3)
HEADS = {
    "hashing": TrainConfig(engine="hashing"),
    "static": TrainConfig(engine="static"),
    "encoder, linear, last layer": TrainConfig(layers=1, head=HeadSettings(kind="linear")),
    "encoder, linear": TrainConfig(head=HeadSettings(kind="linear")),
    "encoder, kernel, all layers": TrainConfig(layers="all"),
    "encoder, kernel, balance 0": TrainConfig(head=HeadSettings(balance=0)),
    "encoder, kernel (default)": TrainConfig(),
    "encoder, mlp": TrainConfig(head=HeadSettings(kind="mlp", size=256)),
    "encoder, ordinal": TrainConfig(head=HeadSettings(kind="linear", task="ordinal")),
    "stack": TrainConfig(engine="stack"),
}
BASELINES = ("ridge on the last layer", "TF-IDF with ridge")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--only", nargs="+", choices=[*BASELINES, *HEADS], default=[*BASELINES, *HEADS])
    options = parser.parse_args()
    rows = [
        json.loads(line)
        for name in ("fineweb_edu_llm_scored_1000.jsonl", "edu_human_gold_dev.jsonl")
        for line in (options.data / name).read_text().splitlines()
    ]
    texts = [row["text"] for row in rows]
    llm = np.array([float(row["llama3_70b_score"]) for row in rows])
    human = np.array([row["human_score"] for row in rows if "human_score" in row])
    first = len(rows) - len(human)
    print("| head | Spearman, LLM | Spearman, humans | macro-F1 at 3, LLM | macro-F1 at 3, humans | s a fit |")
    print("|---|---|---|---|---|---|")
    for name in options.only:
        started = time.monotonic()
        scores, good = (baseline if name in BASELINES else head)(name, texts, llm, first)
        seconds = (time.monotonic() - started) / FOLDS / REPEATS
        cells = [interval(spearman, scores, wanted) for wanted in (llm[first:], human)]
        cells += [interval(macro_f1, good, wanted >= CRITERION.threshold - 0.5) for wanted in (llm[first:], human)]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.1f} |", flush=True)


def splits(documents: int, first: int) -> list[list[tuple[np.ndarray, np.ndarray]]]:
    """For each repeat its folds: places to train on, places to score."""
    made = []
    for repeat in range(REPEATS):
        folds = KFold(FOLDS, shuffle=True, random_state=repeat).split(np.arange(first, documents))
        made.append([(np.concatenate([np.arange(first), first + a]), first + b) for a, b in folds])
    return made


def head(name: str, texts: list[str], llm: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores [repeats, gold] and whether int_score reaches the threshold."""
    config = HEADS[name]
    scores, good = np.empty((REPEATS, len(texts) - first)), np.empty((REPEATS, len(texts) - first), bool)
    inner = np.random.default_rng(0).integers(0, 5, len(texts))
    with open_member(config, [CRITERION], Settings().embedding_dir) as member:
        member.add(texts)
        for repeat, folds in enumerate(splits(len(texts), first)):
            for train, test in folds:
                labels, weights = llm[train, None], np.ones((len(train), 1))
                crossed = member.cross_fit(train, labels, weights, inner[train])[:, 0]
                criterion = calibrated(crossed, llm[train])
                member.fit(train, labels, weights)
                made = np.clip(member.predict(test)[:, 0], 0, 5)
                scores[repeat, test - first] = made
                good[repeat, test - first] = criterion.integer_scores(made) >= CRITERION.threshold
    return scores, good


def calibrated(scores: np.ndarray, labels: np.ndarray) -> Criterion:
    calibration = fit_calibration(
        np.clip(scores, 0, 5), labels, low=0, high=5, threshold=CRITERION.threshold, fitted_on="cross-fitting"
    )
    return CRITERION.model_copy(update={"calibration": calibration})


def baseline(name: str, texts: list[str], llm: np.ndarray, first: int) -> tuple[np.ndarray, np.ndarray]:
    scores = np.empty((REPEATS, len(texts) - first))
    x = last_layer(texts) if name != "TF-IDF with ridge" else np.empty(0)
    for repeat, folds in enumerate(splits(len(texts), first)):
        for train, test in folds:
            if name == "TF-IDF with ridge":
                made = make_pipeline(TfidfVectorizer(sublinear_tf=True, min_df=2, ngram_range=(1, 2)), Ridge(1.0))
                made.fit([texts[place] for place in train], llm[train])
                scores[repeat, test - first] = made.predict([texts[place] for place in test])
            else:
                made = make_pipeline(StandardScaler(), RidgeCV(alphas=ALPHAS)).fit(x[train], llm[train])
                scores[repeat, test - first] = made.predict(x[test])
    return scores, scores >= CRITERION.threshold - 0.5


def last_layer(texts: list[str]) -> np.ndarray:
    with EncoderMember(TrainConfig(layers=1), [CRITERION], Settings().embedding_dir) as member:
        member.add(texts)
        return member.embeddings(np.arange(len(texts)))[:]


def spearman(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(spearmanr(made, wanted).statistic)


def macro_f1(made: np.ndarray, wanted: np.ndarray) -> float:
    return float(f1_score(wanted, made, average="macro"))


def interval(figure, made: np.ndarray, wanted: np.ndarray) -> str:
    """The mean over repeats, with the interval of the first."""
    value = np.mean([figure(of, wanted) for of in made])
    random = np.random.default_rng(0)
    drawn = [random.integers(0, len(wanted), len(wanted)) for _ in range(RESAMPLES)]
    low, high = np.percentile([figure(made[0][rows], wanted[rows]) for rows in drawn], [2.5, 97.5])
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
