"""A ZenML store for the tests of a module."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from ml_filter.logs import configure_logging


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A ZenML store for this module."""
    from zenml.client import Client
    from zenml.config.global_config import GlobalConfiguration
    from zenml.utils.source_utils import set_custom_source_root

    set_custom_source_root(str(Path(__file__).resolve().parents[2]))  # xdist workers have no main file to find it by

    kept = {name: os.environ[name] for name in os.environ if name.startswith("ZENML")}
    for name in kept:
        del os.environ[name]
    directory = tmp_path_factory.mktemp("zenml")
    os.environ |= {"ZENML_CONFIG_PATH": str(directory), "ZENML_ANALYTICS_OPT_IN": "false"}
    GlobalConfiguration._reset_instance()
    Client._reset_instance()
    yield directory
    del os.environ["ZENML_CONFIG_PATH"], os.environ["ZENML_ANALYTICS_OPT_IN"]
    os.environ |= kept
    GlobalConfiguration._reset_instance()
    Client._reset_instance()
    configure_logging()  # a pipeline redirects it to ZenML
