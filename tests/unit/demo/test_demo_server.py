"""The demonstration server answers as a far server would, and goes when its owner does."""

from __future__ import annotations

import io
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import soundfile
from PIL import Image

from demo.scenes import draw_scene
from demo.server import DemoServer, serve_demo

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def server() -> Iterator[DemoServer]:
    with serve_demo(latency_seconds=0.0, seed=5) as running:
        yield running


def get(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        body: bytes = answer.read()
        return body


def status(url: str) -> int:
    try:
        get(url)
    except urllib.error.HTTPError as error:
        with error:
            return error.code
    return 200


def test_rows_lead_to_pictures_of_the_format_they_name(server: DemoServer) -> None:
    """Every image row is a URL whose file opens, in the format of its suffix, and a caption."""
    for index, row in enumerate(server.image_rows(10)):
        suffix = row["image_url"].rpartition(".")[2]
        assert Image.open(io.BytesIO(get(row["image_url"]))).format == {"jpg": "JPEG"}.get(suffix, suffix.upper())
        assert row["caption"] == draw_scene(index, seed=5).caption


def test_rows_lead_to_sounds_of_the_format_they_name(server: DemoServer) -> None:
    """Every audio row is a URL whose file opens, in the format of its suffix, and a caption."""
    for row in server.sound_rows(6):
        assert soundfile.info(io.BytesIO(get(row["audio"]))).format.lower() == row["audio"].rpartition(".")[2]
        assert row["caption"]


def test_later_rows_begin_where_they_are_told_to(server: DemoServer) -> None:
    """Rows are numbered through, so that two parts of the set do not overlap."""
    assert server.image_rows(10)[4:] == server.image_rows(6, first=4)
    assert server.sound_rows(10)[4:] == server.sound_rows(6, first=4)


def test_a_file_is_the_same_each_time(server: DemoServer) -> None:
    """Two requests for one file get the same bytes."""
    url = server.image_rows(1)[0]["image_url"]
    assert get(url) == get(url)


@pytest.mark.parametrize("path", ["/", "/images/", "/images/x.jpg", "/images/1.exe", "/videos/1.mp4", "/images/-1.jpg"])
def test_a_file_that_is_not_in_the_set_is_not_found(server: DemoServer, path: str) -> None:
    """Whatever is no picture or sound of the set is answered with 404."""
    assert status(server.url + path) == 404


def test_a_share_of_files_is_missing_and_stays_so() -> None:
    """About the share asked for is answered with 404, the same files each time."""
    with serve_demo(latency_seconds=0.0, missing=0.3) as server:
        urls = [row["image_url"] for row in server.image_rows(60)]
        first, second = [status(url) for url in urls], [status(url) for url in urls]
    assert first == second
    assert 6 <= first.count(404) <= 32
    assert set(first) == {200, 404}


def test_each_answer_takes_its_time_and_many_take_it_at_once() -> None:
    """Latency is paid by each request, and not added up over requests under way at once."""
    with serve_demo(latency_seconds=1.0) as server:
        url = server.image_rows(1)[0]["image_url"]
        start = time.monotonic()
        with ThreadPoolExecutor(60) as threads:
            list(threads.map(get, [url] * 60))
        seconds = time.monotonic() - start
    assert 0.9 <= seconds < 30  # one after the other they would take 54


def test_a_closed_server_is_gone() -> None:
    """Nothing answers, and no process is left, when the block is over."""
    before = psutil.Process().children()
    with serve_demo() as server:
        (process,) = [child for child in psutil.Process().children() if child not in before]
        assert status(server.url) == 404
    assert not process.is_running()
    with pytest.raises(urllib.error.URLError):
        get(server.url)


def test_the_server_ends_when_its_owner_is_killed() -> None:
    """A client that dies without a word takes its server with it."""
    script = (
        "import psutil\n"
        "from demo.server import serve_demo\n"
        "with serve_demo():\n"
        "    print(psutil.Process().children()[0].pid, flush=True)\n"
        "    input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as client:
        assert client.stdout is not None
        server = psutil.Process(int(client.stdout.readline()))
        client.kill()
    server.wait(timeout=30)
