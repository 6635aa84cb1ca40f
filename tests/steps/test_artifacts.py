"""How ZenML stores the outputs of steps."""

import importlib
import pkgutil
import typing

import pytest

steps = importlib.import_module("steps")


def all_steps():
    from zenml.steps import BaseStep

    result = {}
    for module in pkgutil.walk_packages(steps.__path__, "steps."):
        for name, value in vars(importlib.import_module(module.name)).items():
            if isinstance(value, BaseStep):
                result[name] = value
    return result


@pytest.mark.zenml
@pytest.mark.filterwarnings("ignore")
def test_no_step_output_is_cloudpickled():
    from zenml.materializers.cloudpickle_materializer import CloudpickleMaterializer
    from zenml.materializers.materializer_registry import materializer_registry

    checked = 0
    for name, step in all_steps().items():
        for output, annotation in step.entrypoint_definition.outputs.items():
            kind = annotation.resolved_annotation
            for item in typing.get_args(kind) if typing.get_origin(kind) is typing.Union else (kind,):
                materializer = materializer_registry[item]
                assert not issubclass(materializer, CloudpickleMaterializer), f"{name}.{output} would be pickled"
                checked += 1
    assert checked >= 9
