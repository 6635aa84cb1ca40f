"""Commands that fine-tune language models."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ml_filter.cli.command import Output, Sources, command
from ml_filter.cli.output import show_table
from ml_filter.downstream.tuning.config import TuneConfig

if TYPE_CHECKING:
    from ml_filter.downstream.tuning.result import TunedModel


@command(
    "ml-filter tune runs/instruct/data-DIGEST --output runs/tuned",
    "ml-filter tune runs/instruct/data-DIGEST --method dpo --base runs/tuned --output runs/preferred",
    "ml-filter tune hf://datasets/OWNER/NAME --base meta-llama/Llama-3.2-1B --weights qlora --template llama3 "
    "--packing --epochs 2 --output runs/tuned",
    "ml-filter tune runs/instruct/data-DIGEST --set lora.rank=64 --license apache-2.0 --push OWNER/NAME "
    "--output runs/tuned",
)
def tune(source: Sources, output: Output, tune: TuneConfig) -> None:
    """Fine-tune a language model on instruction data (SFT) or preference pairs (DPO).

    Needs the extra tune. Run the command again to resume.
    """
    from ml_filter.downstream.tuning.tune import tune_model

    show_tuned(tune_model(source, tune, output))


def show_tuned(model: TunedModel) -> None:
    """The counts of the data, the held-out figures, and where the model is."""
    show_table("tuned model", model.root, model.result.data.counts, model.values)
