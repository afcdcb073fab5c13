"""An S3 server of one's own behind a proxy, and each of the two libraries that read from it."""

from __future__ import annotations

import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import fsspec
import pytest

from in_memory_datasets.fetch import Fetcher, obstore_s3
from in_memory_datasets.schema import FetchOptions
from tests.lacking import needed_package
from tests.sources.s3_proxy import S3Proxy

KEY_ID, SECRET = "AKIATESTINGTESTING12", "geheim/with+signs/in-it=="

Upload = Callable[[dict[str, bytes]], None]


@pytest.fixture(scope="module")
def moto() -> Iterator[str]:
    """Serve a real S3 API, and give its address."""
    from fsspec.asyn import get_loop
    from moto.server import ThreadedMotoServer

    get_loop()  # its thread, and the sockets that wake it, stay for as long as the process
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    # What it serves is the whole process's, and other modules make their own buckets.
    urllib.request.urlopen(urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")).close()
    server.stop()


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """Give what fsspec is told of S3, which is nothing yet, in an environment that says nothing of it either."""
    import s3fs

    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    options: dict[str, Any] = {}
    monkeypatch.setitem(fsspec.config.conf, "s3", options)
    monkeypatch.setattr(obstore_s3, "_stores", {})
    monkeypatch.setattr(obstore_s3, "_pid", None)
    yield options
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def proxy(moto: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Proxy]:
    """Put a proxy before the server, and lead s3:// URLs there as users do: by the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY_ID)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with S3Proxy(moto) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def upload(moto: str) -> Upload:
    """Put objects into the bucket "pictures", past the proxy."""
    import boto3

    client = boto3.client(
        "s3", endpoint_url=moto, region_name="us-east-1", aws_access_key_id="x", aws_secret_access_key="x"
    )
    client.create_bucket(Bucket="pictures")

    def put(objects: dict[str, bytes]) -> None:
        for key, data in objects.items():
            client.put_object(Bucket="pictures", Key=key, Body=data, ACL="public-read")

    return put


@pytest.fixture(params=["s3fs", "obstore"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Read S3 with each library in turn."""
    name = str(request.param)
    if name == "s3fs":
        monkeypatch.setitem(sys.modules, "obstore", None)
    else:
        needed_package("obstore")
    return name


@pytest.fixture
def make_fetcher() -> Iterator[Callable[..., Fetcher]]:
    """Give fetchers under the default address guard, and close them after the test."""
    with ExitStack() as stack:

        def make(**options: Any) -> Fetcher:
            return stack.enter_context(Fetcher(FetchOptions(**{"retries": 0, "timeout": 30.0, **options})))

        yield make
