"""Fetching over HTTP from a server that does everything a server can do wrong."""

from __future__ import annotations

import socket
from collections.abc import Callable
from concurrent.futures import CancelledError, as_completed
from urllib.parse import quote

import pytest

from in_memory_datasets.errors import FetchError, InMemoryDatasetsError
from in_memory_datasets.fetch import Fetcher
from in_memory_datasets.schema import Source
from tests.web.hostile_server import HostileServer, make_body

MakeFetcher = Callable[..., Fetcher]
Fail = Callable[..., FetchError]


def test_a_body_arrives_whole_with_its_bookkeeping(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetched = make_fetcher().fetch(Source("url", server.url("/ok/100000")))
    assert fetched.data == make_body(100_000)
    assert (fetched.num_bytes, fetched.num_attempts, fetched.host) == (100_000, 1, "127.0.0.1")


@pytest.mark.parametrize("path", ["/chunked/3000000/50000", "/until-close/3000000", "/chunked/10/3"])
def test_a_body_of_unknown_length_arrives_whole(server: HostileServer, make_fetcher: MakeFetcher, path: str) -> None:
    fetched = make_fetcher().fetch(Source("url", server.url(path)))
    assert fetched.data == make_body(int(path.split("/")[2]))


def test_a_gzip_coded_body_is_decompressed(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    assert make_fetcher().fetch(Source("url", server.url("/gzip/500000"))).data == bytes(500_000)


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/status/404", "http_404"),
        ("/status/410", "http_410"),
        ("/status/451", "http_451"),
        ("/status/403", "http_403"),
        ("/status/401", "http_401"),
        ("/status/400", "http_status"),
        ("/status/206", "http_status"),
        ("/status/304", "http_status"),
        ("/status/999", "http_status"),
        ("/status/204", "empty"),
        ("/empty", "empty"),
        ("/broken-gzip", "content_coding"),
        ("/broken-chunk", "bad_response"),
        ("/loop", "redirect"),
        ("/to", "redirect"),
        ("/to?u=file:///etc/passwd", "redirect"),
        ("/to?u=ftp://a.example/x", "redirect"),
        ("/to?u=http://[::1", "redirect"),
        ("/to?u=http://", "redirect"),
        ("/chain/11", "redirect"),
    ],
)
def test_what_is_final_is_not_tried_again(server: HostileServer, fail: Fail, path: str, reason: str) -> None:
    error = fail(server.url(path), retries=3)
    assert (error.reason, error.attempts, error.host) == (reason, 1, "127.0.0.1")
    assert str(error).startswith(server.url(path))


def test_a_status_without_a_reason_of_its_own_is_named_in_the_message(server: HostileServer, fail: Fail) -> None:
    assert "418" in str(fail(server.url("/status/418")))


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_transient_statuses_are_tried_again(server: HostileServer, make_fetcher: MakeFetcher, status: int) -> None:
    url = server.url(f"/flaky/{status}/2?h=Retry-After: 0".replace(" ", "%20"))
    fetched = make_fetcher(retries=2).fetch(Source("url", url))
    assert (fetched.data, fetched.num_attempts) == (b"at last", 3)


def test_attempts_end_after_the_last_retry(server: HostileServer, fail: Fail) -> None:
    error = fail(server.url("/flaky/429/9?h=Retry-After:%200"), retries=2)
    assert (error.reason, error.attempts, len(server.requests)) == ("http_429", 3, 3)
    assert "after 3 attempts" in str(error)


def test_retries_without_a_retry_after_back_off_and_succeed(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    assert make_fetcher(retries=1).fetch(Source("url", server.url("/flaky/503/1"))).num_attempts == 2


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("/short/9", "truncated"),
        ("/reset/headers", "reset"),
        ("/reset/body", "reset"),
        ("/slow-headers", "timeout"),
        ("/slow-body", "timeout"),
    ],
)
def test_broken_connections_are_tried_again_and_reported(
    server: HostileServer, fail: Fail, path: str, reason: str
) -> None:
    error = fail(server.url(path), retries=1, timeout=0.2)
    assert (error.reason, error.attempts) == (reason, 2)


def test_a_cut_off_body_is_fetched_anew(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetched = make_fetcher(retries=1).fetch(Source("url", server.url("/short/1")))
    assert (fetched.data, fetched.num_attempts) == (make_body(1000), 2)


def test_a_stalled_request_is_made_anew(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetched = make_fetcher(retries=1, timeout=0.2).fetch(Source("url", server.url("/slow-once")))
    assert (fetched.data, fetched.num_attempts) == (b"at last", 2)


def test_a_waiting_retry_keeps_no_slot(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    """With a single slot, a host that asked for a pause lets the others pass."""
    fetcher = make_fetcher(concurrency=1, retries=1)
    paused = fetcher.submit(Source("url", server.url("/flaky/503/1?h=Retry-After:%2030")))
    while not server.requests:
        fetcher.fetch(Source("url", server.url("/ok/1", host="localhost")))
    assert fetcher.fetch(Source("url", server.url("/ok/10", host="localhost"))).data == make_body(10)
    assert not paused.done()


@pytest.mark.parametrize("path", ["/ok/5000", "/chunked/5000/1000", "/endless", "/until-close/5000", "/gzip/5000"])
def test_the_size_limit_holds_however_a_body_comes(server: HostileServer, fail: Fail, path: str) -> None:
    error = fail(server.url(path), max_bytes=4_999)
    assert error.reason == "too_large"
    assert "4,999" in str(error)


def test_a_body_of_exactly_the_limit_is_fetched(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher(max_bytes=5_000)
    for path in ("/ok/5000", "/chunked/5000/1000", "/gzip/5000"):
        assert fetcher.fetch(Source("url", server.url(path))).num_bytes == 5_000


def test_a_gzip_bomb_is_cut_short(server: HostileServer, fail: Fail) -> None:
    """200 MB of zeros in 200 kB are refused after the limit, not after 200 MB."""
    assert fail(server.url("/gzip/200000000"), max_bytes=2**20).reason == "too_large"


@pytest.mark.parametrize(
    "raw", ["not http at all\r\n\r\n", "HTTP/1.1 abc def\r\n\r\n", "HTTP/1.1 200 OK\r\nbad\r\n\r\n"]
)
def test_an_answer_that_is_not_http_has_a_reason(server: HostileServer, fail: Fail, raw: str) -> None:
    assert fail(server.url(f"/garbage?b={quote(quote(raw))}")).reason == "bad_response"


def test_silence_is_a_reset(server: HostileServer, fail: Fail) -> None:
    assert fail(server.url("/garbage?b=")).reason == "reset"


def test_ten_redirects_are_followed(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    assert make_fetcher().fetch(Source("url", server.url("/chain/10"))).data == make_body(100)


def test_a_redirect_goes_through_the_slots_of_its_target(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    """One slot per host does not lock up where each redirects to the other."""
    fetcher = make_fetcher(per_host=1, concurrency=2)
    there = server.url(f"/to?u={server.url('/ok/7', host='localhost')}")
    back = server.url(f"/to?u={server.url('/ok/7')}", host="localhost")
    futures = [fetcher.submit(Source("url", url)) for url in (there, back) * 20]
    assert {future.result(10).data for future in futures} == {make_body(7)}


def test_a_refused_connection_has_a_reason(fail: Fail) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    error = fail(f"http://127.0.0.1:{port}/x", retries=1)
    assert (error.reason, error.attempts) == ("refused", 2)


def test_a_name_that_does_not_resolve_is_looked_up_again(fail: Fail) -> None:
    error = fail("http://no-such-host.invalid/x.jpg", retries=1)
    assert (error.reason, error.attempts, error.host) == ("dns", 2, "no-such-host.invalid")


def test_what_is_no_name_is_not_looked_up_again(fail: Fail) -> None:
    host = "a" * 70 + ".invalid"
    error = fail(f"http://{host}/x.jpg", retries=3)
    assert (error.reason, error.attempts, error.host) == ("dns", 1, host)


@pytest.mark.parametrize(
    "url", ["http://", "http:///x", "ftp://a.example/x", "http://a.example:99999/", "http://[::1/", "x", ""]
)
def test_an_unusable_url_is_a_failure_of_the_sample(fail: Fail, url: str) -> None:
    assert fail(url).reason == "bad_url"


def test_credentials_are_used_but_not_shown(server: HostileServer, fail: Fail) -> None:
    url = server.url("/status/404?token=secret", host="me:geheim@127.0.0.1")
    error = fail(url)
    assert "geheim" not in str(error)
    assert "secret" not in str(error)
    assert server.requests[0].headers["authorization"].startswith("Basic ")


def test_an_encoded_url_is_sent_as_it_is_and_others_are_quoted(
    server: HostileServer, make_fetcher: MakeFetcher
) -> None:
    fetcher = make_fetcher()
    target = "/target/a%2Fb%7E.jpg?sig=%2F%3D&x=1+2"
    assert fetcher.fetch(Source("url", f" {server.url(target)}\n")).data.decode() == target
    assert fetcher.fetch(Source("url", server.url("/target/ä b.jpg"))).data.decode() == "/target/%C3%A4%20b.jpg"


def test_connections_are_kept_alive(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher(concurrency=2)
    futures = [fetcher.submit(Source("url", server.url("/ok/1000"))) for _ in range(50)]
    assert all(future.result(10).num_bytes == 1000 for future in futures)
    assert server.num_connections <= 2


def test_no_more_requests_are_under_way_than_allowed(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher(concurrency=6, per_host=6)
    futures = [fetcher.submit(Source("url", server.url("/gate/6"))) for _ in range(30)]
    assert all(future.result(10).data == b"through the gate" for future in futures)
    assert server.num_open_at_most[""] == 6


def test_a_host_is_asked_by_no_more_than_its_share(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    """Thirty requests that queue for one host leave the other its share at once."""
    fetcher = make_fetcher(concurrency=8, per_host=3)
    urls = [server.url("/gate/6")] * 30 + [server.url("/gate/6", host="localhost")] * 30
    futures = [fetcher.submit(Source("url", url)) for url in urls]
    assert all(future.result(10).data == b"through the gate" for future in futures)
    assert server.num_open_at_most == {"": 6, "127.0.0.1": 3, "localhost": 3}


def test_the_user_agent_names_the_library_unless_it_is_set(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    make_fetcher().fetch(Source("url", server.url("/ok/1")))
    make_fetcher(user_agent="MyBot/1.0").fetch(Source("url", server.url("/ok/1")))
    ours, theirs = (request.headers["user-agent"] for request in server.requests)
    assert ours.startswith("in-memory-datasets/")
    assert "+https://" in ours
    assert theirs == "MyBot/1.0"


def test_no_cookie_is_sent_back(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    fetcher = make_fetcher()
    fetcher.fetch(Source("url", server.url("/header?h=Set-Cookie:%20a=b")))
    fetcher.fetch(Source("url", server.url("/ok/1")))
    assert "cookie" not in server.requests[1].headers


def test_a_file_whose_server_opts_out_is_left_out(server: HostileServer, fail: Fail, make_fetcher: MakeFetcher) -> None:
    url = server.url("/header?h=X-Robots-Tag:%20nofollow&h=X-Robots-Tag:%20noai")
    error = fail(url, retries=3)
    assert (error.reason, error.attempts) == ("opt_out", 1)
    assert "respect_opt_out" in str(error)
    assert make_fetcher(respect_opt_out=False).fetch(Source("url", url)).data == b"with headers"


def test_an_opt_out_is_read_as_addressed(server: HostileServer, fail: Fail, make_fetcher: MakeFetcher) -> None:
    assert make_fetcher().fetch(Source("url", server.url("/header?h=X-Robots-Tag:%20googlebot:%20noai"))).num_bytes
    url = server.url("/header?h=X-Robots-Tag:%20mybot:%20noindex")
    assert fail(url, user_agent="MyBot/1.0").reason == "opt_out"


@pytest.mark.parametrize("path", ["/slow-headers", "/slow-body"])
def test_close_does_not_wait_for_stalled_requests(server: HostileServer, make_fetcher: MakeFetcher, path: str) -> None:
    fetcher = make_fetcher(timeout=3600.0, per_host=128)
    futures = [fetcher.submit(Source("url", server.url(path))) for _ in range(150)]
    server.wait_for_stalls(128)
    fetcher.close()
    for future in futures:
        with pytest.raises(CancelledError):
            future.result(0)
    with pytest.raises(InMemoryDatasetsError, match="closed"):
        fetcher.submit(Source("url", server.url("/ok/1")))
    fetcher.close()


def test_a_mixed_crowd_all_gets_an_answer(server: HostileServer, make_fetcher: MakeFetcher) -> None:
    """Good and bad sources in one fetcher end each in its own way."""
    fetcher = make_fetcher(timeout=0.5, concurrency=16)
    paths = ["/ok/100", "/status/404", "/short/99", "/slow-body", "/empty", "/chunked/100/10", "/garbage?b=x"] * 12
    futures = {fetcher.submit(Source("url", server.url(path))): path for path in paths}
    outcomes: dict[str, set[str]] = {}
    for future in as_completed(futures, timeout=20):
        error = future.exception()
        reason = error.reason if isinstance(error, FetchError) else "ok"
        outcomes.setdefault(futures[future], set()).add(reason)
    assert outcomes == {
        "/ok/100": {"ok"},
        "/status/404": {"http_404"},
        "/short/99": {"truncated"},
        "/slow-body": {"timeout"},
        "/empty": {"empty"},
        "/chunked/100/10": {"ok"},
        "/garbage?b=x": {"bad_response"},
    }
