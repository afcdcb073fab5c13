"""A real HTTP server on this machine, in a process of its own, as far away as its latency says."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from aiohttp import web

from demo.scenes import NUM_SCENES, draw_scene, render_scene
from demo.sounds import draw_sound, render_sound

_FORMATS = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP", ".wav": "WAV", ".flac": "FLAC", ".ogg": "OGG"}
# Distinct files that are kept; further indices show the same scene under a name of their own.
_NUM_KEPT = NUM_SCENES


@dataclass(frozen=True, slots=True)
class DemoServer:
    """A running server.

    Attributes:
        url: Where it answers, http://127.0.0.1:port.
        seed: What its pictures and sounds are drawn from.
    """

    url: str
    seed: int

    def image_rows(self, num_rows: int, *, first: int = 0) -> list[dict[str, str]]:
        """List pictures as rows of `image_url` and `caption`; mostly JPEG, some PNG and WebP."""
        return [
            {
                "image_url": f"{self.url}/images/{i}{('.jpg', '.jpg', '.jpg', '.png', '.webp')[i % 5]}",
                "caption": draw_scene(i % _NUM_KEPT, seed=self.seed).caption,
            }
            for i in range(first, first + num_rows)
        ]

    def sound_rows(self, num_rows: int, *, first: int = 0) -> list[dict[str, str]]:
        """List clips as rows of `audio` (a URL) and `caption`; WAV, FLAC and OGG."""
        return [
            {
                "audio": f"{self.url}/sounds/{i}{('.wav', '.flac', '.ogg')[i % 3]}",
                "caption": draw_sound(i % _NUM_KEPT, seed=self.seed).caption,
            }
            for i in range(first, first + num_rows)
        ]


@contextmanager
def serve_demo(*, latency_seconds: float = 0.06, missing: float = 0.0, seed: int = 0) -> Iterator[DemoServer]:
    """Run the server for as long as the `with` block lasts.

    Args:
        latency_seconds: What each answer costs, give or take a tenth; any number of them at once.
        missing: The share of files that are answered with 404.
        seed: What pictures and sounds are drawn from.
    """
    command = [sys.executable, "-m", "demo.server", "--latency", str(latency_seconds)]
    command += ["--missing", str(missing), "--seed", str(seed)]
    with subprocess.Popen(
        command,
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C is for the client, which then closes this server's input
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        if not url:
            raise RuntimeError(f"the demonstration server did not start (exit status {process.wait()})")
        try:
            yield DemoServer(url, seed)
        finally:
            process.stdin.close()  # the server ends when its input does, and so also when this process is killed


def render(path: str, seed: int) -> bytes:
    """Make the file of a path such as /images/7.jpg."""
    name, suffix = os.path.splitext(path.rpartition("/")[2])
    index = int(name) % _NUM_KEPT
    if path.startswith("/images/"):
        return render_scene(draw_scene(index, seed=seed), index, seed=seed, image_format=_FORMATS[suffix])
    return render_sound(draw_sound(index, seed=seed), index, seed=seed, audio_format=_FORMATS[suffix])


class _Site:
    def __init__(self, latency_seconds: float, missing: float, seed: int) -> None:
        self._latency_seconds = latency_seconds
        self._missing = missing
        self._seed = seed
        self._kept: dict[str, asyncio.Future[bytes]] = {}

    async def answer(self, request: web.Request) -> web.Response:
        loop = asyncio.get_running_loop()
        path = request.path
        name, suffix = os.path.splitext(path.rpartition("/")[2])
        if suffix not in _FORMATS or not name.isdecimal():
            raise web.HTTPNotFound
        due = loop.time() + self._latency_seconds * random.uniform(0.9, 1.1)
        if random.Random(f"{self._seed} {path}").random() < self._missing:
            await asyncio.sleep(due - loop.time())
            raise web.HTTPNotFound
        kind = path.rpartition("/")[0]
        key = f"{kind}/{int(name) % _NUM_KEPT}{suffix}"
        if key not in self._kept:
            self._kept[key] = loop.run_in_executor(None, render, key, self._seed)
        body = await asyncio.shield(self._kept[key])
        await asyncio.sleep(max(0.0, due - loop.time()))
        return web.Response(body=body, content_type="application/octet-stream")


async def _main(latency_seconds: float, missing: float, seed: int) -> None:
    app = web.Application()
    app.router.add_get("/{kind:images|sounds}/{name}", _Site(latency_seconds, missing, seed).answer)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        print("http://{}:{}".format(*runner.addresses[0][:2]), flush=True)
        await asyncio.to_thread(sys.stdin.read)
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.06)
    parser.add_argument("--missing", type=float, default=0.0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    asyncio.run(_main(options.latency, options.missing, options.seed))
