"""Deploy the serving pipeline on the active ZenML stack."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ml_filter.errors import ConfigError
from ml_filter.pipeline.config import ServingPipelineConfig
from tools.run import merged_config
from tools.task import run_task

_ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Deploy; returns the exit code: 0 it runs, 2 bad input."""
    return run_task(_parser(), lambda given: print(_deploy(given.name, given.config, given.values)), arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poetry poe deploy-serving-pipeline",
        description="Deploy a head with ZenML: each document that it is asked about is a run of the serving pipeline.",
        epilog="example: poetry poe deploy-serving-pipeline head=runs/head-1a2b3c4d --name educational-value",
    )
    sections = ", ".join(ServingPipelineConfig.model_fields)
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help=f"a setting of the YAML; of: {sections}")
    parser.add_argument("--config", type=Path, metavar="FILE", default=_ROOT / "configs" / "serving.yaml")
    parser.add_argument("--name", default="serving", help="of the deployment; one of that name is replaced")
    return parser


def _deploy(name: str, config: Path, values: Sequence[str]) -> str:
    """Deploy, wait until it runs; says where it is.

    Raises:
        InputError: there is no such head.
        ConfigError: a setting is wrong, or the stack has no deployer.
    """
    content = merged_config(config, values, ServingPipelineConfig)
    parameters = content["parameters"]
    from ml_filter.heads.load import resolve_head
    from ml_filter.heads.train import head_parent

    directory = resolve_head(parameters["head"]).resolve()  # the deployment may be started from elsewhere
    head_parent(directory)
    parameters["head"] = str(directory)

    from zenml.client import Client
    from zenml.utils.source_utils import set_custom_source_root

    set_custom_source_root(str(_ROOT))
    stack = Client().active_stack
    if stack.deployer is None:
        raise ConfigError(
            f"the ZenML stack {stack.name!r} has no deployer; add one: zenml deployer register local -f local && zenml "
            f"stack update {stack.name} -D local"
        )
    from pipelines.serving import serving_pipeline

    pipeline = serving_pipeline.with_options(on_init_kwargs=parameters, settings=content.get("settings"))
    deployment = pipeline.deploy(deployment_name=name)
    return f"{deployment.name} runs at {deployment.url}; zenml deployment delete {deployment.name} ends it"


if __name__ == "__main__":
    sys.exit(main())
