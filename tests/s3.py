"""An S3 service on this machine, over HTTP: requests, conditions on them and errors are real, the storage is not."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import boto3
import pytest


class Bucket(NamedTuple):
    """A bucket, and the environment in which every client finds it: pass it on to the processes that a test starts."""

    name: str
    environment: dict[str, str]

    @property
    def url(self) -> str:
        return f"s3://{self.name}"

    def keys(self, prefix: str = "") -> list[str]:
        """The objects in the bucket."""
        listed = boto3.client("s3").list_objects_v2(Bucket=self.name, Prefix=prefix)
        return [item["Key"] for item in listed.get("Contents", [])]


@contextmanager
def s3_server() -> Iterator[str]:
    """Run moto's server; gives its URL."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@contextmanager
def new_bucket(server: str) -> Iterator[Bucket]:
    """An empty bucket; this process finds it too."""
    from s3fs import S3FileSystem

    environment = {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        S3FileSystem.clear_instance_cache()  # they keep the server of an earlier test
        bucket = Bucket(f"test-{uuid.uuid4().hex}", environment)
        boto3.client("s3").create_bucket(Bucket=bucket.name)
        yield bucket
    S3FileSystem.clear_instance_cache()
