"""Settings as secrets in a real ZenML store."""

from __future__ import annotations

import pytest

from ml_filter.config import Settings
from tools.document_settings import variable_of
from tools.settings_secrets import SERVICES, main, settings_of

pytestmark = [pytest.mark.zenml, pytest.mark.filterwarnings("ignore")]  # warnings of ZenML itself


@pytest.fixture
def unset(monkeypatch, tmp_path):
    """No setting of the environment or of a file `.env`."""
    monkeypatch.chdir(tmp_path)
    for name in Settings.model_fields:
        monkeypatch.delenv(variable_of(name), raising=False)
    return tmp_path


def stored() -> dict[str, dict[str, str]]:
    from zenml.client import Client

    client = Client()
    names = [secret.name for secret in client.list_secrets(name="startswith:ml_filter_").items]
    return {name: client.get_secret(name).secret_values for name in names}


def test_each_service_has_a_secret_with_what_is_set_and_no_value_is_printed(store, unset, monkeypatch, capsys):
    (unset / ".env").write_text("ML_FILTER_MONGODB_PASSWORD=planted-1\nCOMET_API_KEY=\n")
    monkeypatch.setenv("ML_FILTER_API_KEY", "planted-2")
    monkeypatch.setenv("ML_FILTER_MODEL", "some/model")
    monkeypatch.setenv("HF_TOKEN", "planted-3")
    assert main(["export"]) == 0
    assert stored() == {
        "ml_filter_endpoint": {"ML_FILTER_MODEL": "some/model", "ML_FILTER_API_KEY": "planted-2"},
        "ml_filter_hub": {"HF_TOKEN": "planted-3"},
        "ml_filter_mongodb": {"ML_FILTER_MONGODB_PASSWORD": "planted-1"},
    }
    printed = capsys.readouterr()
    assert "ml_filter_endpoint: created with ML_FILTER_MODEL, ML_FILTER_API_KEY" in printed.out
    assert "ml_filter_comet: nothing is set" in printed.out
    assert "planted" not in printed.out + printed.err

    monkeypatch.delenv("ML_FILTER_MODEL")
    monkeypatch.delenv("HF_TOKEN")
    assert main(["export"]) == 0
    assert stored()["ml_filter_endpoint"] == {"ML_FILTER_API_KEY": "planted-2"}
    printed = capsys.readouterr().out
    assert "ml_filter_endpoint: updated with ML_FILTER_API_KEY; removed ML_FILTER_MODEL" in printed
    assert "ml_filter_mongodb: unchanged" in printed
    assert "ml_filter_hub: nothing is set; the secret from an earlier export stays" in printed

    assert main(["delete"]) == main(["delete"]) == 0
    assert stored() == {}
    assert "ml_filter_hub: nothing to delete" in capsys.readouterr().out


def test_every_secret_setting_belongs_to_one_service():
    secret = [name for name, field in Settings.model_fields.items() if "SecretStr" in str(field.annotation)]
    assert {name: sum(name in settings_of(service) for service in SERVICES) for name in secret} == dict.fromkeys(
        secret, 1
    )
