"""A ZenML server, object storage, and two clusters in which each step runs in its own box."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
import yaml
from s3fs import S3FileSystem

from ml_filter.logs import configure_logging
from tests.pipelines.conftest import _reset_zenml, _source_root, run  # noqa: F401 - fixtures
from tests.production.boxes import ROOT, Boxes, can_make_boxes
from tests.production.kubernetes_api import KubernetesApi
from tests.production.sagemaker import SageMaker
from tests.production.zenml_server import zenml_server
from tools.stack import main as change_stack

BUCKET = "corpora"
IMAGE = "123456789012.dkr.ecr.eu-central-1.amazonaws.com/ml-filter@sha256:" + "0" * 64


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """All of these start servers and run pipelines."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.slow)
            item.add_marker(pytest.mark.zenml)
            item.add_marker(pytest.mark.filterwarnings("ignore"))  # of ZenML and the SDKs


@pytest.fixture(scope="session")
def cloud(s3_url: str) -> dict[str, str]:
    """moto with an empty bucket; the environment that leads to it."""
    environment = {
        "AWS_ENDPOINT_URL": s3_url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-central-1",
    }
    region = {"LocationConstraint": environment["AWS_DEFAULT_REGION"]}
    aws_client(environment, "s3").create_bucket(Bucket=BUCKET, CreateBucketConfiguration=region)
    return environment


def aws_client(cloud: dict[str, str], service: str) -> Any:
    """A client of boto3, whatever the environment says."""
    return boto3.client(
        service,
        endpoint_url=cloud["AWS_ENDPOINT_URL"],
        aws_access_key_id=cloud["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=cloud["AWS_SECRET_ACCESS_KEY"],
        region_name=cloud["AWS_DEFAULT_REGION"],
    )


@pytest.fixture(scope="session")
def boxes(cloud: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boxes]:
    """Makes boxes that can reach the object storage."""
    if not can_make_boxes():
        pytest.skip("needs its own mounts: root, or user namespaces and a directory /app")
    result = Boxes(tmp_path_factory.mktemp("boxes"), cloud)
    yield result
    result.close()


@pytest.fixture(scope="session")
def server(boxes: Boxes, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """A ZenML server; the environment of its clients."""
    with zenml_server(tmp_path_factory.mktemp("zenml-server")) as environment:
        yield environment


@pytest.fixture(scope="module")
def store(server: dict[str, str], cloud: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """This process as a client of the server."""
    path = tmp_path_factory.mktemp("zenml-client")
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("ZENML")]:
            patch.delenv(name)
        own = {"ZENML_CONFIG_PATH": str(path), "ZENML_ANALYTICS_OPT_IN": "false", "ML_FILTER_IMAGE": IMAGE}
        for name, value in {**server, **cloud, **own}.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # they keep the credentials of an earlier test
        _reset_zenml()
        yield path
    S3FileSystem.clear_instance_cache()
    _reset_zenml()
    configure_logging()


@pytest.fixture(scope="session")
def sagemaker(boxes: Boxes, cloud: dict[str, str]) -> SageMaker:
    """The emulator of SageMaker."""
    return SageMaker(aws_client(cloud, "sagemaker"), boxes)


@pytest.fixture(scope="session")
def kubernetes(boxes: Boxes) -> Iterator[KubernetesApi]:
    """The cluster, with the roles of deploy/kubernetes."""
    api = KubernetesApi(boxes, roles_of_service_accounts())
    yield api
    api.shutdown()
    api.server_close()


def roles_of_service_accounts() -> dict[str, list[dict]]:
    """The rules that deploy/kubernetes gives each service account."""
    objects = [
        item
        for path in sorted((ROOT / "deploy/kubernetes/base").glob("*.yaml"))
        for item in yaml.safe_load_all(path.read_text())
        if item
    ]
    roles = {item["metadata"]["name"]: item["rules"] for item in objects if item["kind"] == "Role"}
    return {
        subject["name"]: roles[item["roleRef"]["name"]]
        for item in objects
        if item["kind"] == "RoleBinding"
        for subject in item["subjects"]
    }


@pytest.fixture
def aws_stack(store: Path, cloud: dict[str, str]) -> Iterator[str]:
    """The AWS stack, active."""
    role = "arn:aws:iam::123456789012:role"
    yield from _stack(
        "aws",
        f"--bucket={BUCKET}",
        f"--region={cloud['AWS_DEFAULT_REGION']}",
        f"--execution-role={role}/ml-filter-steps",
        f"--scheduler-role={role}/ml-filter-schedules",
        f"--registry={IMAGE.partition('/')[0]}",
    )


@pytest.fixture
def kubernetes_stack(store: Path, cloud: dict[str, str], kubernetes: KubernetesApi) -> Iterator[str]:
    """The Kubernetes stack, active."""
    from kubernetes import config

    (store / "kubeconfig").write_text(kubernetes.kubeconfig("ml-filter-submitter"))
    with pytest.MonkeyPatch.context() as patch:
        # kubernetes read $KUBECONFIG when it was imported.
        patch.setattr(config.kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(store / "kubeconfig"))
        yield from _stack(
            "kubernetes",
            "--context=cluster",
            "--namespace=ml-filter",
            f"--artifact-store=s3://{BUCKET}/zenml",
            f"--registry={IMAGE.partition('/')[0]}",
            f"--s3-endpoint={cloud['AWS_ENDPOINT_URL']}",
        )


def _stack(name: str, *options: str) -> Iterator[str]:
    """A stack that is active for a while."""
    assert change_stack([name, *options]) == 0
    yield name
    assert change_stack([name, "--delete"]) == 0
