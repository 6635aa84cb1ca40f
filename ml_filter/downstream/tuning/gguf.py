"""Write tuned weights as a GGUF file for the embedded annotator."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase

_NOT_COPIED = ("general.architecture", "general.alignment", "general.quantization_version")


def write_gguf(
    base: Path, weights: Mapping[str, torch.Tensor], tokenizer: PreTrainedTokenizerBase, target: Path
) -> None:
    """Write a Llama model with the metadata and vocabulary of a base in GGUF.

    Matrices become float16, vectors float32. llama.cpp rotates pairs of neighbours where transformers rotates halves,
    so the rows of q and k are permuted, as in llama.cpp's own conversion.

    Args:
        base: GGUF file of the same architecture.
        weights: by their names in transformers.
        tokenizer: its chat template and end of text replace those of the base.
        target: the file.
    """
    import gguf

    reader = gguf.GGUFReader(base)
    arch = str(_value(reader, "general.architecture"))
    blocks, heads = int(_value(reader, f"{arch}.block_count")), int(_value(reader, f"{arch}.attention.head_count"))
    heads_of = {"q_proj": heads, "k_proj": int(_value(reader, f"{arch}.attention.head_count_kv"))}
    writer = gguf.GGUFWriter(target, arch)
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name in _NOT_COPIED:
            continue
        kind, value = field.types[0], field.contents()
        if name == "tokenizer.chat_template":
            value = tokenizer.chat_template
        elif name == "tokenizer.ggml.eos_token_id":
            value = tokenizer.eos_token_id
        elif name == "general.file_type":
            value = int(gguf.LlamaFileType.MOSTLY_F16)
        writer.add_key_value(name, value, kind, sub_type=field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, blocks)
    known = {tensor.name for tensor in reader.tensors}
    for name, tensor in weights.items():
        new_name = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if new_name not in known:  # the output layer, where it is the embedding itself
            continue
        array: NDArray[Any] = tensor.detach().float().cpu().numpy()
        for part, count in heads_of.items():
            if f".{part}." in name:
                array = permuted(array, count)
        writer.add_tensor(new_name, np.ascontiguousarray(array, np.float16 if array.ndim > 1 else np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def permuted(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows [heads * 2 * half, ...] in the order of llama.cpp: in each head, the two halves row by row in turn."""
    halves = rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:])
    return halves.swapaxes(1, 2).reshape(rows.shape)


def _value(reader: Any, name: str) -> Any:
    return reader.get_field(name).contents()
