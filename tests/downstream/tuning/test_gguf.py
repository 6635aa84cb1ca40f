"""GGUF from tuned weights: the same weights, and the same answers from the embedded annotator's server."""

import json
import urllib.request

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from ml_filter.annotation.embedded import embedded_endpoint, embedded_name
from ml_filter.config import Settings
from ml_filter.downstream.tuning.chat import set_template
from ml_filter.downstream.tuning.export import export_gguf
from ml_filter.errors import EndpointError
from tests.downstream.tuning.tiny import write_tiny_gguf


@pytest.fixture
def written(tiny_base, tmp_path):
    """The file, the model that it is of, and its tokenizer."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_base), AutoTokenizer.from_pretrained(tiny_base)
    set_template(tokenizer, "chatml")
    with torch.no_grad():
        model.model.embed_tokens.weight *= 4  # so that no two tokens are nearly as likely
    write_tiny_gguf(tiny_base, tmp_path / "base.gguf")
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    export_gguf(tmp_path / "base.gguf", tmp_path / "model", tmp_path / "model.gguf")
    return tmp_path / "model.gguf", model, tokenizer


@pytest.mark.model
def test_transformers_reads_the_same_weights_back(written):
    path, model, tokenizer = written
    again = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor.half().float() if tensor.ndim > 1 else tensor), name
    assert AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).chat_template == tokenizer.chat_template


@pytest.mark.slow
@pytest.mark.model
def test_the_embedded_server_answers_like_the_model(written):
    path, model, tokenizer = written
    settings = Settings(embedded_model=path)
    messages = [{"role": "user", "content": "What is a module?"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    answer = model.half().float().generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=1)[0, ids.shape[1] :]
    with embedded_endpoint(settings) as [endpoint]:
        assert endpoint.model == embedded_name(settings)
        body = {"messages": messages, "temperature": 0, "max_tokens": 12, "logprobs": True}
        headers = {
            "Content-Type": "application/json",
            "Authorization": f"Bearer {endpoint.api_key.get_secret_value()}",
        }
        request = urllib.request.Request(f"{endpoint.base_url}/chat/completions", json.dumps(body).encode(), headers)
        [choice] = json.load(urllib.request.urlopen(request))["choices"]
    tokens = [item["id"] for item in choice["logprobs"]["content"]]
    assert tokens == answer.tolist()[: len(tokens)]
    assert len(tokens) >= 3


def test_a_chosen_file_that_is_missing_is_an_error(tmp_path):
    with pytest.raises(EndpointError, match=r"ML_FILTER_EMBEDDED_MODEL: .*absent.gguf is not a file"):
        embedded_name(Settings(embedded_model=tmp_path / "absent.gguf"))
