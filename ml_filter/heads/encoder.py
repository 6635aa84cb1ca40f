"""Load encoders by name: a Hub model, a local directory, or an installed Python package that contains one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ml_filter.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Pooling = Literal["mean", "cls"]


@dataclass(frozen=True)
class Encoder:
    """A transformers encoder with its tokenizer and the pooling it was trained with.

    Attributes:
        name: as returned by `shown_name`.
        model: in float32.
        tokenizer: of the model.
        pooling: how token states become one vector.
        text_prefix: the prefix of documents in its training, according to its files.
        query_prefix: that of queries.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    pooling: Pooling
    text_prefix: str = ""
    query_prefix: str = ""

    @property
    def depth(self) -> int:
        """Number of transformer layers, which is also the index of the last hidden state."""
        return int(self.model.config.num_hidden_layers)

    @property
    def max_tokens(self) -> int:
        """How many tokens it reads, including special tokens, according to its files."""
        return max_tokens(self.model, self.tokenizer)


_DOCUMENT_PROMPTS, _QUERY_PROMPTS = ("document", "passage", "corpus"), ("query", "question")


def max_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """How many tokens both can read, including special tokens; a very large number if neither has a limit."""
    limits = [int(tokenizer.model_max_length), int(getattr(model.config, "max_position_embeddings", None) or 10**30)]
    for part, module in model.named_modules():
        # RoBERTa numbers positions after the padding index, and so has 514 positions for 512 tokens.
        if part.endswith("position_embeddings") and getattr(module, "padding_idx", None) is not None:
            limits.append(int(module.num_embeddings) - int(module.padding_idx) - 1)
    return min(limits)


def weights_digest(encoder: Encoder) -> str:
    """SHA-256 of an encoder's weights and vocabulary. It does not depend on where the encoder was loaded from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(encoder.model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().numpy().tobytes())
    digest.update(json.dumps(sorted(encoder.tokenizer.get_vocab().items())).encode())
    return digest.hexdigest()


def load_encoder(name: str) -> Encoder:
    """Load an encoder in float32.

    Args:
        name: directory, Hub name, or name of an installed package that contains a `model` directory.

    Raises:
        ConfigError: the encoder does not exist, cannot be downloaded, or needs its own code.
    """
    from transformers import AutoModel, AutoTokenizer

    steady_arithmetic()
    path = encoder_path(name)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
            model = AutoModel.from_pretrained(path, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot load encoder {name!r}; give a directory, an installed package or a Hub name, without code "
            f"of its own: {str(error).strip().splitlines()[0]}"
        ) from error
    prefixes = [_prompt(path, names) for names in (_DOCUMENT_PROMPTS, _QUERY_PROMPTS)]
    return Encoder(shown_name(name), model.float().eval(), tokenizer, _pooling(path), *prefixes)


def steady_arithmetic() -> None:
    """Make MKL return the same bits with any number of threads, in this process and in those it starts.

    MKL reads the variable when it is first used, so call this before a model is loaded. In its strict mode each element
    is summed in one order (Intel oneMKL Developer Guide, Conditional Numerical Reproducibility), at no measurable cost.
    """
    os.environ.setdefault("MKL_CBWR", "AUTO,STRICT")


def shown_name(name: str) -> str:
    """An encoder's name as it is saved: only the last part of a directory, so that no local path is published."""
    return Path(name).absolute().name if Path(name).is_dir() else name


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Load and save models without the progress bars of transformers."""
    from transformers.utils import logging

    if not logging.is_progress_bar_enabled():
        yield
        return
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.enable_progress_bar()


def encoder_path(name: str) -> str:
    """The `model` directory of an installed package, which is not imported; every other name unchanged."""
    if "/" in name or Path(name).exists():
        return name
    spec = importlib.util.find_spec(name.replace("-", "_"))
    directories = (Path(location) / "model" for location in (spec.submodule_search_locations or [] if spec else []))
    return next((str(directory) for directory in directories if (directory / "config.json").exists()), name)


def _pooling(path: str) -> Pooling:
    """The pooling in the files of sentence-transformers; the mean by default."""
    return "cls" if _read_json(path, "1_Pooling/config.json").get("pooling_mode_cls_token") else "mean"


def _prompt(path: str, known: Sequence[str]) -> str:
    """The prompt that sentence-transformers' `encode_document` or `encode_query` would use; empty by default."""
    config = _read_json(path, "config_sentence_transformers.json")
    prompts = config.get("prompts") or {}
    names = [name for name in known if prompts.get(name)]
    return str(prompts.get(names[0] if names else config.get("default_prompt_name")) or "")


def _read_json(path: str, name: str) -> dict[str, Any]:
    """A JSON file beside a model, local or on the Hub; empty without such a file."""
    from transformers.utils.hub import cached_file

    file = cached_file(
        path,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    content: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8")) if file is not None else {}
    return content


def pool(states: torch.Tensor, mask: torch.Tensor, pooling: Pooling) -> torch.Tensor:
    """Token states [batch, tokens, width] to one float32 vector per document [batch, width]."""
    if pooling == "cls":
        return states[:, 0].float()
    # A matrix product sums in float32 even if the states are bfloat16; `sum` would not.
    summed = (mask.unsqueeze(1).to(states.dtype) @ states).squeeze(1)
    return summed.float() / mask.sum(1, keepdim=True).clamp(min=1).float()
