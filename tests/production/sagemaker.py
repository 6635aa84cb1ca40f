"""Runs the steps of pipelines that SageMaker's orchestrator submitted to moto, which runs nothing itself."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tests.production.boxes import Box, Boxes


@dataclass(frozen=True)
class Execution:
    """An executed pipeline: the box of each step that ran, their exit codes, and the steps that did not run."""

    boxes: Mapping[str, Box]
    codes: Mapping[str, int]
    skipped: list[str]


class SageMaker:
    """The emulator. `client` is boto3's."""

    def __init__(self, client: Any, boxes: Boxes) -> None:
        self.client, self.boxes = client, boxes

    def definition(self, pipeline: str) -> dict[str, Any]:
        """The definition that was submitted."""
        definition: dict[str, Any] = json.loads(
            self.client.describe_pipeline(PipelineName=pipeline)["PipelineDefinition"]
        )
        return definition

    def newest(self) -> str:
        """The pipeline that was submitted last."""
        pipelines = self.client.list_pipelines()["PipelineSummaries"]
        return str(max(pipelines, key=lambda pipeline: pipeline["CreationTime"])["PipelineName"])

    def start(self, pipeline: str) -> str:
        """Start another execution, as a schedule does; returns its ARN."""
        return str(self.client.start_pipeline_execution(PipelineName=pipeline)["PipelineExecutionArn"])

    def run(self, pipeline: str | None = None, execution: str | None = None) -> Execution:
        """Run the steps of an execution one after the other; by default of the only one of the newest pipeline.

        The steps after a failed one do not run, as with SageMaker's failure policy.
        """
        pipeline = pipeline or self.newest()
        if execution is None:
            [summary] = self.client.list_pipeline_executions(PipelineName=pipeline)["PipelineExecutionSummaries"]
            execution = summary["PipelineExecutionArn"]
        steps = {step["Name"]: step for step in self.definition(pipeline)["Steps"]}
        result = Execution({}, {}, [])
        while steps:
            name = next(name for name, step in steps.items() if not steps.keys() & {*step.get("DependsOn", [])})
            step = steps.pop(name)
            if any(result.codes.get(earlier, 1) for earlier in step.get("DependsOn", [])):
                result.skipped.append(name)
                continue
            box = self.start_step(step, execution)
            result.boxes[name], result.codes[name] = box, box.wait()
        return result

    def start_step(self, step: Mapping[str, Any], execution: str) -> Box:
        """Start the container of a step."""
        algorithm = step["Arguments"]["AlgorithmSpecification"]
        command = [*algorithm["ContainerEntrypoint"], *algorithm["ContainerArguments"]]
        environment = {
            name: execution if value == {"Get": "Execution.PipelineExecutionArn"} else value
            for name, value in step["Arguments"]["Environment"].items()
        }
        return self.boxes.start(step["Name"], command, environment)
