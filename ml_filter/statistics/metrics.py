"""The names of the figures: which of them a gate, a promotion or a search can use, and how reports call them."""

from __future__ import annotations

from typing import Literal, get_args

ComparisonMetric = Literal[
    "spearman",
    "pearson",
    "kappa_quadratic",
    "exact_agreement",
    "macro_f1",
    "agreement_at_threshold",
    "f1_at_threshold",
    "macro_f1_at_threshold",
]
"""What promotion and search compare heads by: more is better, and two raters have a paired difference."""
GateMetric = Literal[
    ComparisonMetric, "kendall", "kappa", "kappa_linear", "precision_at_threshold", "recall_at_threshold"
]
"""What a gate can require of a rater: more is better."""

PAIR_FIGURES = {
    "spearman": "Spearman",
    "kendall": "Kendall tau-b",
    "pearson": "Pearson",
    "kappa": "Cohen's kappa",
    "kappa_linear": "Cohen's kappa, linear weights",
    "kappa_quadratic": "Cohen's kappa, quadratic weights",
    "exact_agreement": "exact agreement",
    "macro_f1": "macro-F1",
    "agreement_at_threshold": "agreement at the threshold",
    "precision_at_threshold": "precision at the threshold",
    "recall_at_threshold": "recall at the threshold",
    "f1_at_threshold": "F1 at the threshold",
    "macro_f1_at_threshold": "macro-F1 at the threshold",
    "mae": "mean absolute error",
    "mse": "mean squared error",
    "mean_difference": "mean difference, rater minus reference",
}
TABLE_FIGURES = ("kappa", "kappa_linear", "kappa_quadratic", "exact_agreement", "macro_f1")
"""The figures of pairs that come from the table of classes."""
COMPARED_FIGURES = dict.fromkeys(get_args(ComparisonMetric), True) | {"mae": False, "mse": False}
"""The figures that show which of two raters is better, and whether more is better."""
GROUP_FIGURES = {
    "fleiss_kappa": "Fleiss' kappa",
    "alpha_nominal": "Krippendorff's alpha, nominal",
    "alpha_ordinal": "Krippendorff's alpha, ordinal",
    "alpha_interval": "Krippendorff's alpha, interval",
    "icc_1_1": "ICC(1,1): one rater, raters differ by document",
    "icc_2_1": "ICC(2,1): one rater, raters drawn at random",
    "icc_3_1": "ICC(3,1): one rater, only these raters",
    "icc_1_k": "ICC(1,k): mean of the raters, raters differ by document",
    "icc_2_k": "ICC(2,k): mean of the raters, raters drawn at random",
    "icc_3_k": "ICC(3,k): mean of the raters, only these raters",
}
