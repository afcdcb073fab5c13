"""A report says what failed where, what the load took, and what was its limit; and goes into tables and files."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import pandas
import pytest
from PIL import Image

from in_memory_datasets import (
    ConfigError,
    Failure,
    FetchOptions,
    InMemoryImageTextDataset,
    LoadReport,
    MissingExtraError,
)
from in_memory_datasets.schema import HostTime, count_hosts
from tests.serving import LocalServer, QuietHandler

COLUMNS = ["index", "source", "stage", "reason", "detail", "host", "attempts"]
NASTY = 'a "quoted", text;\twith\r\nlines, \u2028 and café 🎵'


def make_report(failures: list[Failure] | None = None, **values: Any) -> LoadReport:
    failures = failures or []
    usual: dict[str, Any] = {
        "num_samples": 100,
        "num_ok": 100 - len(failures),
        "num_failed": len(failures),
        "num_empty_captions": 0,
        "by_reason": {"timeout": len(failures)} if failures else {},
        "failures": failures,
        "seconds": 10.0,
        "bytes_fetched": 5_000_000,
        "nbytes": 15_000_000,
        "num_decoded": 100,
        "num_encoded": 0,
        "num_on_disk": 0,
        "by_host": count_hosts(failures),
        "num_tried": 100,
    }
    return LoadReport(**{**usual, **values})


def make_failure(index: int, host: str = "a.example", detail: str = "no answer") -> Failure:
    return Failure(index, f"https://{host}/{index}.jpg", "fetch", "timeout", detail, host, 4)


def stages(fetch: float = 0.0, decode: float = 0.0, write: float = 0.0, waiting: float = 0.0) -> dict[str, float]:
    return {"fetch": fetch, "decode": decode, "write": write, "waiting": waiting}


@pytest.mark.parametrize(
    ("seconds", "hosts", "limit", "line"),
    [
        (
            stages(90, 5, 0.8, 14.2),
            True,
            "network",
            "the network was the limit: decode threads waited 71 % of the time",
        ),
        (stages(9, 5, 0.8, 14.2), False, "sources", "reading the sources was the limit: decode threads waited 71 %"),
        (
            stages(900, 18, 1, 1),
            True,
            "processor",
            "the processor was the limit: decode threads waited 5 % of the time",
        ),
        (stages(9, 4, 15, 1), True, "writing", "writing was the limit: decode threads waited 5 % of the time"),
    ],
)
def test_the_summary_says_what_the_limit_was(seconds: dict[str, float], hosts: bool, limit: str, line: str) -> None:
    slowest = (HostTime("a.example", 0.9, 100),) if hosts else ()
    report = make_report(seconds_by_stage=seconds, slowest_hosts=slowest)
    assert report.limited_by == limit
    first, second = str(report).splitlines()
    assert first == "100 of 100 samples loaded in 10.0 s (10/s); 5 MB fetched, 15 MB in memory"
    assert second.startswith(line)


def test_what_was_attached_has_no_limit_and_no_rate() -> None:
    report = make_report(num_tried=0, bytes_fetched=0, seconds=0.02)
    assert (report.limited_by, report.waiting_rate) == ("", 0.0)
    assert str(report) == "100 of 100 samples attached in 0.0 s; 15 MB in memory"


def test_a_load_that_went_on_counts_what_it_did_itself() -> None:
    """Ninety samples were in place from the load before; ten in ten seconds are one a second, and not ten."""
    report = make_report(num_tried=10)
    assert "100 of 100 samples loaded, 10 tried now, in 10.0 s (1/s); 5 MB fetched" in str(report)


def test_a_host_at_which_half_of_the_failures_happened_is_named() -> None:
    def last_line_but_failures(hosts: str) -> str:
        report = make_report([make_failure(i, f"{host}.example") for i, host in enumerate(hosts)])
        return next(line for line in str(report).splitlines() if " failed: " in line)

    assert last_line_but_failures("aaaa") == "4 failed: 4 timeout; all at a.example"
    assert last_line_but_failures("baab") == "4 failed: 4 timeout; 2 of them at b.example"
    assert last_line_but_failures("abcd") == "4 failed: 4 timeout"
    assert last_line_but_failures("a") == "1 failed: 1 timeout"


def test_hosts_are_counted_commonest_first_and_only_the_first_hundred() -> None:
    failures = [make_failure(i, f"{i % 150}.example") for i in range(400)]
    found = count_hosts(
        [*failures, make_failure(400, "7.example"), Failure(401, "/a.jpg", "fetch", "not_found", "gone")]
    )
    assert len(found) == 100
    assert next(iter(found.items())) == ("7.example", 4)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert "" not in found


def test_the_success_rate_is_a_share() -> None:
    assert make_report([make_failure(3)]).success_rate == 0.99
    assert make_report(num_samples=0, num_ok=0).success_rate == 1.0


def test_a_report_is_plain_values_but_for_its_failures() -> None:
    report = make_report([make_failure(3)], slowest_hosts=(HostTime("a.example", 1.5, 2),))
    values = json.loads(json.dumps(report.to_dict()))
    assert values["slowest_hosts"] == [{"host": "a.example", "mean_seconds": 1.5, "num_samples": 2}]
    assert (values["by_host"], values["success_rate"], values["limited_by"]) == ({"a.example": 1}, 0.99, "processor")
    assert set(values) == {name for name in dir(report) if not name.startswith("_")} - {
        "failures",
        "save",
        "to_dict",
        "to_pandas",
    }


def test_failures_are_a_table_of_pandas() -> None:
    failures = [make_failure(3), make_failure(70, "b.example", NASTY)]
    table = make_report(failures).to_pandas()
    assert list(table.columns) == COLUMNS
    assert table.to_dict("records") == [{name: getattr(each, name) for name in COLUMNS} for each in failures]
    empty = make_report().to_pandas()
    assert (list(empty.columns), len(empty)) == (COLUMNS, 0)
    assert empty["index"].dtype == table["index"].dtype == table["attempts"].dtype == "int64"


def test_a_table_without_pandas_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(MissingExtraError, match="pip install pandas"):
        make_report().to_pandas()


FAILURES = [
    make_failure(3),
    make_failure(5, "b.example", NASTY),
    Failure(7, "/no/caf\udce9.png", "fetch", "not_found", "there is no '/no/caf\udce9.png'", "", 1),
    Failure(9, "", "row", "empty", ""),
]
WRITTEN = [
    {name: getattr(each, name) for name in COLUMNS}
    | {name: getattr(each, name).replace("\udce9", "\\udce9") for name in ("source", "detail")}
    for each in FAILURES
]


def test_failures_are_saved_as_json_lines(tmp_path: Path) -> None:
    make_report(FAILURES).save(tmp_path / "failures.jsonl")
    text = (tmp_path / "failures.jsonl").read_text("utf-8")
    assert [json.loads(line) for line in text.removesuffix("\n").split("\n")] == WRITTEN
    table = pandas.read_json(io.StringIO(text), lines=True)
    assert table["detail"].tolist() == [each["detail"] for each in WRITTEN]


def test_failures_are_saved_as_csv(tmp_path: Path) -> None:
    make_report(FAILURES).save(str(tmp_path / "failures.CSV"))
    with open(tmp_path / "failures.CSV", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows == [{name: str(value) for name, value in each.items()} for each in WRITTEN]
    table = pandas.read_csv(tmp_path / "failures.CSV", keep_default_na=False)
    assert table.to_dict("records") == WRITTEN


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_no_failures_are_a_file_without_any(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none{suffix}"
    make_report().save(path)
    assert path.read_text() == ("" if suffix == ".jsonl" else "index,source,stage,reason,detail,host,attempts\n")


@pytest.mark.parametrize("name", ["failures.txt", "failures", "failures.json", "failures.csv.gz"])
def test_another_format_is_refused_with_those_there_are(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"\.jsonl' or '\.csv'"):
        make_report(FAILURES).save(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_report_that_cannot_be_written_whole_leaves_the_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "failures.csv"
    make_report().save(path)
    before = path.read_bytes()

    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="No space left on device"):
        make_report(FAILURES).save(path)
    monkeypatch.undo()
    assert [each.name for each in tmp_path.iterdir()] == ["failures.csv"]
    assert path.read_bytes() == before
    make_report(FAILURES).save(path)
    assert path.read_bytes().startswith(before)


def test_a_report_into_a_directory_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"failures\.csv"):
        make_report().save(tmp_path / "nowhere" / "failures.csv")


# --- of real loads --------------------------------------------------------------------------------------------------


class Pictures(LocalServer):
    """Serve a picture at every path, but for those that are broken."""

    def __init__(self) -> None:
        super().__init__(_Handler)
        self.broken: set[str] = set()


class _Handler(QuietHandler):
    server: Pictures

    def do_GET(self) -> None:
        file = io.BytesIO()
        Image.new("L", (10, 10), 7).save(file, "PNG")
        self.send_body(None if self.path in self.server.broken else file.getvalue())


HERE = FetchOptions(allow_private_addresses=True, retries=0)


def rows_of(server: Pictures, num_rows: int = 8) -> list[dict[str, Any]]:
    """Make rows of two hosts, every other one of the second, and two that need no host."""
    hosts = (server.url, server.url.replace("127.0.0.1", "user:secret@localhost"))
    rows: list[dict[str, Any]] = [{"image_url": f"{hosts[i % 2]}/{i}.png", "caption": "x"} for i in range(num_rows)]
    return [*rows, {"image_url": "/not/there.png", "caption": ""}, {"image_url": b"no picture", "caption": ""}]


def test_a_load_is_told_by_host_and_stage_and_goes_on_being_told_as_it_is_mended(tmp_path: Path) -> None:
    with Pictures() as server:
        server.broken = {"/1.png", "/3.png", "/5.png", "/4.png"}
        rows = rows_of(server)
        with InMemoryImageTextDataset(rows, image_size=(8, 8), fetch=HERE, num_threads=2, progress=False) as dataset:
            report = dataset.report
            assert report.by_host == {"localhost": 3, "127.0.0.1": 1}
            assert report.by_stage == {"fetch": 5, "decode": 1}
            assert (report.num_tried, report.success_rate) == (10, 0.4)
            assert {each.host: each.num_samples for each in report.slowest_hosts} == {"127.0.0.1": 4, "localhost": 4}
            assert all(each.mean_seconds > 0 for each in report.slowest_hosts)
            seconds = report.seconds_by_stage
            assert min(seconds[name] for name in ("fetch", "decode", "write")) > 0
            assert seconds["decode"] + seconds["write"] + seconds["waiting"] <= 2 * report.seconds
            assert report.limited_by
            assert "; 3 of them at localhost" in str(report)
            dataset.save(tmp_path / "saved")

            server.broken = {"/3.png"}
            mended = dataset.retry_failed(reasons={"http_404"})
            assert (mended.num_tried, mended.num_ok, mended.num_failed) == (4, 7, 3)
            assert mended.by_host == {"localhost": 1}
            assert mended.by_stage == {"fetch": 2, "decode": 1}
            assert {each.host: each.num_samples for each in mended.slowest_hosts} == {"127.0.0.1": 1, "localhost": 3}
            assert "7 of 10 samples loaded, 4 tried now," in str(mended)
            assert dataset.report == mended

            nothing = dataset.retry_failed(reasons={"timeout"})
            assert (nothing.num_tried, nothing.num_failed, nothing.limited_by) == (0, 3, "")
            assert nothing.by_host == {"localhost": 1}

        with InMemoryImageTextDataset.load(tmp_path / "saved", fetch=HERE) as loaded:
            report = loaded.report
            assert report.by_host == {"localhost": 3, "127.0.0.1": 1}
            assert report.by_stage == {"fetch": 5, "decode": 1}
            assert (report.num_tried, report.slowest_hosts, report.bytes_fetched) == (0, (), 0)
            assert set(report.seconds_by_stage.values()) == {0.0}
            assert str(report).startswith("4 of 10 samples attached in ")
            # Whose credentials were stripped, or whose bytes were inline, can be had no more.
            server.broken = set()
            mended = loaded.retry_failed()
            assert (mended.num_tried, mended.num_ok) == (2, 5)
            assert mended.by_host == {"localhost": 3}
            assert [each.host for each in mended.slowest_hosts] == ["127.0.0.1"]


def test_no_credentials_are_in_what_a_report_gives_out(tmp_path: Path) -> None:
    with Pictures() as server:
        server.broken = {"/1.png", "/3.png?token=hush"}
        rows = rows_of(server)
        rows[3]["image_url"] += "?token=hush"
        with InMemoryImageTextDataset(rows, image_size=(8, 8), fetch=HERE, progress=False) as dataset:
            report = dataset.report
    for suffix in (".jsonl", ".csv"):
        report.save(tmp_path / f"failures{suffix}")
    said = [str(report), repr(report.to_dict()), report.to_pandas().to_csv()]
    said += [path.read_text() for path in tmp_path.iterdir()]
    assert len(said) == 5
    for text in said:
        assert "localhost" in text
        assert "secret" not in text
        assert "hush" not in text


def test_a_cache_that_is_attached_to_has_no_timings(tmp_path: Path) -> None:
    with Pictures() as server:
        arguments: dict[str, Any] = {"image_size": (8, 8), "fetch": HERE, "cache_dir": tmp_path, "progress": False}
        with InMemoryImageTextDataset(rows_of(server), **arguments) as built:
            assert (built.report.num_tried, len(built.report.slowest_hosts)) == (10, 2)
        with InMemoryImageTextDataset(rows_of(server), **arguments) as attached:
            report = attached.report
    assert (report.num_tried, report.slowest_hosts, set(report.seconds_by_stage.values())) == (0, (), {0.0})
    assert report.seconds > 0
    assert str(report).startswith("8 of 10 samples attached in ")
