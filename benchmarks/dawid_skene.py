"""How close do Dawid-Skene and the mean come to a known truth? Simulated juries, by documents and smoothing.

Prints the mean absolute error and Pearson's correlation with the true score for each jury, averaged over six seeds.
"""

import numpy as np

from ml_filter.agreement.dawid_skene import dawid_skene

SMOOTHINGS = (1e-10, 0.01, 0.1, 0.5, 1, 2)
JURIES = {  # annotators' standard deviation and bias, in points of the 0 to 5 scale
    "three unequal": ([0.4, 0.7, 1.2], [0, 0, 0]),
    "three equal": ([0.5, 0.5, 0.5], [0, 0, 0]),
    "one biased, one noisy": ([0.4, 0.6, 2.0], [0, 0.7, 0]),
    "five": ([0.4, 0.6, 0.8, 1.0, 1.5], [0, 0.5, -0.5, 0, 0]),
}


def errors(size, spread, bias, seed):
    """Error and correlation of the mean, then of Dawid-Skene with each smoothing, [1 + smoothings, 2]."""
    draw = np.random.default_rng(seed)
    truth = draw.choice(6, size, p=[0.25, 0.3, 0.2, 0.15, 0.07, 0.03])
    document, annotator = (axis.ravel() for axis in np.indices((size, len(spread))))
    noise = np.array(bias)[annotator] + draw.normal(0, 1, len(document)) * np.array(spread)[annotator]
    answer = np.clip(np.floor(truth[document] + noise + 0.5), 0, 5).astype(int)
    found = [answer.reshape(size, -1).mean(axis=1)]
    found += [dawid_skene(document, annotator, answer, 6, smoothing=s).posterior @ np.arange(6) for s in SMOOTHINGS]
    return [(np.abs(score - truth).mean(), np.corrcoef(score, truth)[0, 1]) for score in found]


if __name__ == "__main__":
    names = ["mean", *(f"smoothing {s:g}" for s in SMOOTHINGS)]
    for size in (60, 250, 1000, 5000):
        for jury, (spread, bias) in JURIES.items():
            result = np.mean([errors(size, spread, bias, seed) for seed in range(6)], axis=0)
            figures = "  ".join(f"{name} {e:.2f}/{r:.3f}" for name, (e, r) in zip(names, result, strict=True))
            print(f"{size:>5} documents, {jury}: {figures}")
