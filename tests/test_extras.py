"""The message about a missing extra, and the extras that messages name."""

import re
import sys
import tomllib
from pathlib import Path

import pytest

from ml_filter.errors import ConfigError, InputError
from ml_filter.extras import how_to_install, require_extra
from ml_filter.location import Location

ROOT = Path(__file__).parents[1]


def test_a_missing_package_is_named_with_the_command_that_installs_its_extra():
    require_extra("tune", "tuning", "json")
    with pytest.raises(ConfigError) as error:
        require_extra("tune", "tuning", "json", "no_such_package")
    assert str(error.value) == "tuning needs no_such_package; install the extra tune with `make setup EXTRAS=tune`"
    assert how_to_install("s3", "aws") == 'install the extras s3 aws with `make setup EXTRAS="s3 aws"`'


def test_a_url_without_its_driver_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(InputError, match=r"gs://bucket/file: .*; install the extra gcs with `make setup EXTRAS=gcs`"):
        Location("gs://bucket/file").exists()


def test_every_extra_that_code_names_exists():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [
        name
        for path in (ROOT / "ml_filter").rglob("*.py")
        for name in re.findall(r'(?:require_extra|how_to_install)\("(\w+)"|needs the extra (\w+)', path.read_text())
    ]
    assert len(named) > 5
    assert {first or second for first, second in named} <= set(extras)
