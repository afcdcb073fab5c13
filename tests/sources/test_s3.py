"""Datasets whose samples lie in S3, read by either library from a server that misbehaves."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in_memory_datasets import FetchOptions, InMemoryImageTextDataset
from in_memory_datasets.errors import FetchError, LoadError
from in_memory_datasets.fetch import Fetched, Fetcher
from in_memory_datasets.schema import Source
from tests.lacking import needed_package
from tests.sources.conftest import KEY_ID, SECRET, Upload
from tests.sources.s3_proxy import Answer, S3Proxy
from tests.unit.rows.media import png

MakeFetcher = Callable[..., Fetcher]

DENIED = (
    f"<Error><Code>AccessDenied</Code><Message>{KEY_ID} may not, with {SECRET}</Message>"
    f"<AWSAccessKeyId>{KEY_ID}</AWSAccessKeyId></Error>"
).encode()
FORBIDDEN = Answer(status=403, body=DENIED)
MOVED = Answer(status=301, body=b"<Error><Code>PermanentRedirect</Code></Error>")


def fetch(fetcher: Fetcher, key: str) -> Fetched:
    return fetcher.fetch(Source("fsspec", f"s3://pictures/{key}"))


def fail(fetcher: Fetcher, key: str) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(fetcher, key)
    return caught.value


def test_a_bucket_of_good_and_bad_objects_is_a_dataset_with_a_report(
    reader: str, proxy: S3Proxy, upload: Upload
) -> None:
    """Whichever library reads, the samples are those of the same bytes inline, and each failure has its reason."""
    good = {f"good/{i}.png": png(40 * i) for i in range(6)}
    noise = np.random.default_rng(0).bytes(3000)
    upload({**good, "empty.png": b"", "large.png": noise * 2, "corrupt.png": png(9)[:45], "page.png": b"<html></html>"})
    upload({"dir/inside.png": b"x"})
    proxy.always["/pictures/forbidden.png"] = FORBIDDEN
    proxy.once["/pictures/good/2.png"] = [Answer(), Answer(status=500, body=b"")]
    keys = [*good, "missing.png", "forbidden.png", "empty.png", "large.png", "corrupt.png", "page.png", "dir"]
    rows = [{"image_url": f"s3://pictures/{key}", "caption": key} for key in keys]
    options = FetchOptions(max_bytes=5000, retries=3)
    with (
        InMemoryImageTextDataset(rows, image_size=(6, 6), fetch=options, progress=False) as dataset,
        InMemoryImageTextDataset([{"image_url": data, "caption": ""} for data in good.values()], image_size=(6, 6),
                                 progress=False) as inline,
    ):  # fmt: skip
        assert [dataset[i]["caption"] for i in range(len(dataset))] == keys
        for i in range(len(good)):
            assert dataset[i]["image"].equal(inline[i]["image"])
        assert {rows[f.index]["caption"]: f.reason for f in dataset.report.failures} == {
            "missing.png": "not_found",
            "forbidden.png": "permission",
            "empty.png": "empty",
            "large.png": "too_large",
            "corrupt.png": "truncated",
            "page.png": "not_media",
            "dir": "unreadable",
        }
        assert {f.attempts for f in dataset.report.failures if f.stage == "fetch"} == {1}
    assert reader in proxy.clients()
    assert proxy.requests["GET /pictures/large.png"] == 0


def test_every_failure_is_told_alike_by_both_libraries(
    proxy: S3Proxy, upload: Upload, make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed_package("obstore")
    from in_memory_datasets.fetch import obstore_s3

    upload({"a.png": b"whole", "cut.png": b"0123456789", "large.png": b"x" * 100, "dir/x": b"x"})
    proxy.always |= {
        "/pictures/forbidden": FORBIDDEN,
        "/pictures/nobody": Answer(status=401, body=b""),
        "/pictures/moved": MOVED,
        "/pictures/bad": Answer(status=400, body=b"<Error><Code>InvalidToken</Code></Error>"),
        "/pictures/busy": Answer(),
        "/pictures/often": Answer(status=429, body=b""),
        "/pictures/broken": Answer(status=500, body=b""),
        "/pictures/reset": Answer("reset"),
        "/pictures/cut.png": Answer("cut"),
        "/pictures/stalled": Answer("stall"),
    }
    keys = ["none", "dir", "a//b", "../a", "large.png", *(path.removeprefix("/pictures/") for path in proxy.always)]
    told: dict[str, list[tuple[str, str, str]]] = {}
    for name in ("obstore", "s3fs"):
        if name == "s3fs":
            monkeypatch.setitem(sys.modules, "obstore", None)
            monkeypatch.setattr(obstore_s3, "_pid", None)
        fetcher = make_fetcher(max_bytes=50, timeout=2.0)
        told[name] = [(key, (error := fail(fetcher, key)).reason, str(error.attempts)) for key in keys]
    assert told["obstore"] == told["s3fs"]
    assert {reason for _, reason, _ in told["s3fs"]} == {
        "not_found", "unreadable", "too_large", "permission", "redirect", "http_status", "http_429", "reset",
        "truncated", "timeout",
    }  # fmt: skip


def test_what_is_throttled_is_asked_for_again_as_often_as_was_said_and_no_oftener(
    reader: str, proxy: S3Proxy, upload: Upload, make_fetcher: MakeFetcher
) -> None:
    """The attempts are ours alone: neither library adds attempts of its own."""
    upload({"recovers.png": b"well again", "never.png": b"x"})
    proxy.once["/pictures/recovers.png"] = [Answer(), Answer()]
    proxy.always["/pictures/never.png"] = Answer()
    fetched = fetch(make_fetcher(retries=3), "recovers.png")
    assert (fetched.data, fetched.num_attempts) == (b"well again", 3)
    assert proxy.requests["HEAD /pictures/recovers.png"] == 3
    assert proxy.requests["GET /pictures/recovers.png"] == 1
    error = fail(make_fetcher(retries=2), "never.png")
    assert (error.reason, error.attempts) == ("http_status", 3)
    assert "503 (Service Unavailable)" in str(error)
    assert sum(number for path, number in proxy.requests.items() if "never" in path) == 3
    assert proxy.clients() == {reader}


def test_keys_of_any_spelling_name_the_same_object(
    reader: str, proxy: S3Proxy, upload: Upload, make_fetcher: MakeFetcher
) -> None:
    keys = ["a b+ü.jpg", "50%25.jpg", "what?.jpg", "a#b.jpg", "~[x]|{y}", "a:b@c=d&e,f;g", "..a", "dir//x.jpg", "𝄞"]
    upload({key: key.encode() for key in keys})
    fetcher = make_fetcher()
    assert [fetch(fetcher, key).data for key in keys] == [key.encode() for key in keys]
    assert reader in proxy.clients()


def test_no_message_shows_a_key(reader: str, proxy: S3Proxy, upload: Upload, tmp_path: Path) -> None:
    """Neither those in URLs, nor those of the environment that a server repeats; not even on the disk."""
    upload({"good.png": png(1)})
    proxy.always["/pictures/forbidden.png"] = FORBIDDEN
    rows = [
        {"image_url": f"s3://{place}", "caption": ""}
        for place in (
            "pictures/good.png",
            "pictures/forbidden.png",
            f"{KEY_ID}:{SECRET.replace('/', '%2F')}@pictures/good.png",
            "me:geheimnis@pictures/good.png",
        )
    ]
    with InMemoryImageTextDataset(rows, image_size=(6, 6), progress=False, fetch=FetchOptions(retries=0)) as dataset:
        assert dataset.failed_indices == [1, 2, 3]
        dataset.save(tmp_path / "saved")
        shown = f"{dataset.report!r} {dataset.report.failures!r} {dataset.report}"
    written = b"".join(file.read_bytes() for file in (tmp_path / "saved").iterdir())
    with pytest.raises(LoadError) as caught:
        InMemoryImageTextDataset(rows[2:], image_size=(6, 6), progress=False)
    for text in (shown.encode(), written, str(caught.value).encode()):
        for secret in (KEY_ID, SECRET, SECRET.replace("/", "%2F"), "geheimnis"):
            assert secret.encode() not in text


def test_a_login_that_is_only_in_fsspecs_configuration_is_used(
    reader: str, proxy: S3Proxy, upload: Upload, settings: dict[str, Any], make_fetcher: MakeFetcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    upload({"a.png": b"a"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ENDPOINT_URL", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name)
    settings.update(key="KEYOFCONFIG", secret="s", endpoint_url=proxy.url)
    assert fetch(make_fetcher(), "a.png").data == b"a"
    assert {headers["authorization"].partition("/")[0] for headers in proxy.seen} == {
        "AWS4-HMAC-SHA256 Credential=KEYOFCONFIG"
    }
    assert proxy.clients() == {reader}


def test_a_login_of_a_profile_is_used(
    reader: str, proxy: S3Proxy, upload: Upload, settings: dict[str, Any], make_fetcher: MakeFetcher,
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    upload({"a.png": b"a"})
    (tmp_path / "logins").write_text("[team]\naws_access_key_id = KEYOFTEAM\naws_secret_access_key = s\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "logins"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    settings["profile"] = "team"
    assert fetch(make_fetcher(), "a.png").data == b"a"
    assert {headers["authorization"].partition("/")[0] for headers in proxy.seen} == {
        "AWS4-HMAC-SHA256 Credential=KEYOFTEAM"
    }
    assert proxy.clients() == {reader}


def test_who_asks_without_a_login_asks_so(
    reader: str, proxy: S3Proxy, upload: Upload, settings: dict[str, Any], make_fetcher: MakeFetcher
) -> None:
    upload({"a.png": b"a"})
    settings["anon"] = True
    assert fetch(make_fetcher(), "a.png").data == b"a"
    assert [headers.get("authorization") for headers in proxy.seen] == [None, None]
    assert proxy.clients() == {reader}


def test_no_login_at_all_is_a_failure_that_says_so(
    reader: str, proxy: S3Proxy, upload: Upload, make_fetcher: MakeFetcher, monkeypatch: pytest.MonkeyPatch
) -> None:
    upload({"a.png": b"a"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    error = fail(make_fetcher(retries=2), "a.png")
    assert (error.reason, error.attempts) == ("permission", 1)
    assert "no login for this storage was found" in str(error)


def test_a_storage_that_is_away_is_tried_again(
    reader: str, settings: dict[str, Any], make_fetcher: MakeFetcher
) -> None:
    settings.update(key="k", secret="s", endpoint_url="http://127.0.0.1:9")
    error = fail(make_fetcher(retries=1), "a.png")
    assert (error.reason, error.attempts) == ("refused", 2)


@pytest.mark.parametrize(
    "setting",
    [{"requester_pays": True}, {"config_kwargs": {"s3": {"addressing_style": "path"}}}, {"version_aware": True}],
    ids=lambda setting: next(iter(setting)),
)
def test_a_setting_that_obstore_is_not_told_leaves_the_bucket_to_s3fs(
    setting: dict[str, Any], proxy: S3Proxy, upload: Upload, settings: dict[str, Any], make_fetcher: MakeFetcher
) -> None:
    needed_package("obstore")
    upload({"a.png": b"a"})
    settings.update(setting)
    assert fetch(make_fetcher(), "a.png").data == b"a"
    assert proxy.clients() == {"s3fs"}


def test_an_endpoint_of_the_environment_that_obstore_would_prefer_leaves_the_bucket_to_s3fs(
    proxy: S3Proxy, upload: Upload, settings: dict[str, Any], make_fetcher: MakeFetcher,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    upload({"a.png": b"a"})
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    settings["endpoint_url"] = proxy.url
    assert fetch(make_fetcher(), "a.png").data == b"a"
    assert proxy.clients() == {"s3fs"}


def test_a_bucket_that_only_s3fs_can_read_is_left_to_it(
    proxy: S3Proxy, upload: Upload, make_fetcher: MakeFetcher
) -> None:
    """A refusal that obstore alone meets costs one request, and not one for each object."""
    needed_package("obstore")
    upload({"a.png": b"a", "b.png": b"b"})
    proxy.once["/pictures/a.png"] = [MOVED]
    fetcher = make_fetcher()
    assert fetch(fetcher, "a.png").data == b"a"
    assert fetch(fetcher, "b.png").data == b"b"
    agents = ["obstore" if "object_store" in headers["user-agent"] else "s3fs" for headers in proxy.seen]
    assert agents == ["obstore", "s3fs", "s3fs", "s3fs", "s3fs"]


FORKED = """
import faulthandler, os, sys
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.schema import FetchOptions, Source
source = Source("fsspec", "s3://pictures/a.png")
with Fetcher(FetchOptions(retries=0, timeout=60)) as fetcher:
    assert fetcher.fetch(source).data == b"a"
pid = os.fork()
if pid == 0:
    faulthandler.dump_traceback_later(100, exit=True)  # a child that hangs says where
    try:
        with Fetcher(FetchOptions(retries=0, timeout=60)) as fetcher:
            assert fetcher.fetch(source).data == b"a"
    except BaseException:
        faulthandler.dump_traceback()
        os._exit(1)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


def test_a_forked_child_reads_what_its_parent_reads(reader: str, proxy: S3Proxy, upload: Upload) -> None:
    """obstore's threads do not survive a fork: there s3fs reads, and nothing hangs."""
    upload({"a.png": b"a"})
    block = 'import sys; sys.modules["obstore"] = None\n' if reader == "s3fs" else ""
    done = subprocess.run(
        [sys.executable, "-c", block + FORKED], capture_output=True, text=True, timeout=150, env=dict(os.environ)
    )
    assert (done.returncode, done.stderr) == (0, "")
    agents = ["obstore" if "object_store" in headers["user-agent"] else "s3fs" for headers in proxy.seen]
    assert agents == [reader, reader, "s3fs", "s3fs"]


def test_a_renewed_login_is_asked_for_when_it_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is handed on is what s3fs has at that moment, and is good for as long as is said."""
    import asyncio
    from datetime import datetime, timedelta, timezone
    from types import SimpleNamespace

    from in_memory_datasets.fetch import obstore_s3

    numbers = iter("12")

    async def get_frozen_credentials() -> Any:
        return SimpleNamespace(access_key=f"key {next(numbers)}", secret_key="secret", token="token")

    async def get_credentials() -> Any:
        return SimpleNamespace(get_frozen_credentials=get_frozen_credentials)

    monkeypatch.setattr(obstore_s3, "_on_loop", lambda loop, function: asyncio.run(function()))
    fs = SimpleNamespace(key=None, loop=None, session=SimpleNamespace(get_credentials=get_credentials))
    login = obstore_s3._login_of(fs)
    assert login is not None
    given = [login(), login()]
    assert [one["access_key_id"] for one in given] == ["key 1", "key 2"]
    left = given[0]["expires_at"] - datetime.now(timezone.utc)
    assert timedelta(minutes=5) < left <= timedelta(minutes=10)
