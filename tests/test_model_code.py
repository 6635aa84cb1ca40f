"""A model whose directory has Python code, which transformers offers to run."""

import io
import json

import pytest

from ml_filter.annotation.windows import LocalTokenizer
from ml_filter.downstream.retrieval.encoding import CrossEncoder
from ml_filter.downstream.tuning.base import Base, find_base, load_model, load_tokenizer
from ml_filter.downstream.tuning.config import TuneConfig
from ml_filter.errors import ConfigError
from ml_filter.heads.config import EngineConfig
from ml_filter.heads.encoder import load_encoder
from ml_filter.heads.model import load_model as load_head
from ml_filter.prepare.tokens import TokenCounter

LOADERS = {
    "base": lambda path: find_base(str(path)),
    "language model": load_model,
    "tokenizer of a base": lambda path: load_tokenizer(Base("base", path, "0"), TuneConfig()),
    "encoder": lambda path: load_encoder(str(path)),
    "head": load_head,
    "cross-encoder": lambda path: CrossEncoder(str(path), EngineConfig()),
    "tokenizer for windows": lambda path: LocalTokenizer(str(path)),
    "tokenizer for counts": lambda path: TokenCounter(str(path)),
}


@pytest.mark.parametrize("load", LOADERS.values(), ids=LOADERS)
def test_its_code_is_not_run_although_the_user_would_say_yes(load, tmp_path, monkeypatch, capsys):
    classes = ("Config", "Model", "ModelForCausalLM", "ModelForSequenceClassification")
    auto_map = {f"Auto{name}": f"own.{name}" for name in classes}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto_map}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"auto_map": {"AutoTokenizer": ["own.T", None]}}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ConfigError) as error:
        load(tmp_path)
    assert not (tmp_path / "ran").exists()
    assert "contains custom code" in str(error.value)
    assert "\n" not in str(error.value)
    assert "Do you wish" not in capsys.readouterr().out
