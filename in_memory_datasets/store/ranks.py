"""One store for all the processes of a job on one machine, without a directory.

The first process to take the job's meeting point builds; the others connect to it and are sent descriptors of the
finished blocks. The meeting point is an abstract Unix socket: to take it is to be elected, a connection is a place in
the queue, and when its owner ends, however it ends, the kernel takes it away: those who wait find their connection
closed, and one of them takes the builder's part. Nothing is left behind under any name.

Source: unix(7): "Abstract sockets", SCM_RIGHTS, SO_PEERCRED.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable

from in_memory_datasets.errors import StoreError
from in_memory_datasets.store.block import Block
from in_memory_datasets.store.live import LiveStore
from in_memory_datasets.store.manifest import spec_from_json, spec_to_json
from in_memory_datasets.store.store import Store

_MAX_MESSAGE_BYTES = 65_536


def share_store(
    job: str,
    fingerprint: str,
    build: Callable[[Callable[[LiveStore], None]], Store],
    *,
    on_live: Callable[[LiveStore], None] = lambda live: None,
) -> Store:
    """Build a store once among the processes that give the same job and fingerprint; the others attach to it.

    It can be attached to as long as the store lives in the process that built it; who has attached keeps the memory
    for as long as it likes. Where there are no abstract sockets (anywhere but on Linux), every process builds.

    Args:
        job: What the processes of one job have in common, such as their master's address and port.
        fingerprint: What is built.
        build: Makes the store. It is given a function that lets the others read from it while it is made.
        on_live: Given what may be read from, in a process that does not build; it owns it.

    Raises:
        StoreError: The meeting point is in the hands of another user.
    """
    if not sys.platform.startswith("linux"):
        return build(lambda live: None)
    key = json.dumps([os.getuid(), job, fingerprint]).encode()
    address = b"\0in-memory-datasets/" + hashlib.sha256(key).hexdigest()[:40].encode()
    while True:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            server.bind(address)
        except OSError as error:
            server.close()
            if error.errno != errno.EADDRINUSE:
                raise
            store = _attach(address, on_live)
            if store is not None:
                return store
            time.sleep(0.01)  # its owner is about to listen, or has just gone
            continue
        server.listen(1024)
        _close_in_forked_children(server)
        shown = _Shown()
        threading.Thread(target=_serve, args=(server, shown), name="in-memory-datasets-share", daemon=True).start()
        try:
            store = build(shown.show_live)
        except BaseException:
            shown.end()
            server.shutdown(socket.SHUT_RDWR)  # which wakes the thread, and that closes it
            raise
        shown.show(store)
        weakref.finalize(store, server.shutdown, socket.SHUT_RDWR)
        return store


class _Shown:
    """What those who have come to the meeting point are shown."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.live: LiveStore | None = None
        self.store: weakref.ref[Store] | None = None
        self.has_ended = False

    def show_live(self, live: LiveStore) -> None:
        """Let others read from a store that is being made."""
        with self.changed:
            self.live = live
            self.changed.notify_all()

    def show(self, store: Store) -> None:
        """Let others have the finished store."""
        with self.changed:
            self.live, self.store = None, weakref.ref(store)
            self.changed.notify_all()

    def end(self) -> None:
        """Note that there will be none."""
        with self.changed:
            self.live, self.has_ended = None, True
            self.changed.notify_all()


def _serve(server: socket.socket, shown: _Shown) -> None:
    """Send the blocks to whoever connects, until the store is gone."""
    with server:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:  # shut down with the store
                return
            if _uid_of_peer(peer) == os.getuid():
                threading.Thread(
                    target=_serve_one, args=(peer, shown), name="in-memory-datasets-share", daemon=True
                ).start()
            else:
                peer.close()


def _serve_one(peer: socket.socket, shown: _Shown) -> None:
    # The peer may go away while it waits, and what is shown may be closed: then there is nothing to say, or nobody.
    with peer, contextlib.suppress(OSError, StoreError), shown.changed:
        shown.changed.wait_for(lambda: shown.live or shown.store or shown.has_ended)
        if shown.live is not None:
            spec, fds = shown.live.spec, [block.fd for block in shown.live.blocks]
            socket.send_fds(peer, [json.dumps(spec_to_json(spec)).encode()], fds)
        shown.changed.wait_for(lambda: shown.store or shown.has_ended)
        store = None if shown.store is None else shown.store()
        if store is not None and not store.closed:
            fds = [store.samples.fd, store.rows.fd]
            socket.send_fds(peer, [json.dumps(spec_to_json(store.spec)).encode()], fds)


def _attach(address: bytes, on_live: Callable[[LiveStore], None]) -> Store | None:
    """Wait for the builder's blocks; None when it has ended without sending them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        try:
            peer.connect(address)
            if _uid_of_peer(peer) != os.getuid():
                raise StoreError("the meeting point of this job's processes is held by another user; use cache_dir=")
            while True:
                message, fds, _, _ = socket.recv_fds(peer, _MAX_MESSAGE_BYTES, 4)
                blocks = [Block(fd) for fd in fds]
                for fd in fds:
                    os.set_inheritable(fd, False)
                if len(blocks) == 4:
                    spec = spec_from_json(json.loads(message))
                    rows, samples, spool, books = blocks
                    on_live(LiveStore(spec, rows=rows, samples=samples, spool=spool, books=books))
                elif len(blocks) == 2:
                    return Store(spec_from_json(json.loads(message)), samples=blocks[0], rows=blocks[1])
                else:
                    return None
        except ConnectionError:
            return None


def _uid_of_peer(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


_servers: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_in_forked_children(server: socket.socket) -> None:
    """Keep a forked child from holding the meeting point of a parent that is gone."""
    _register_once()
    _servers.add(server)


@functools.cache
def _register_once() -> None:
    os.register_at_fork(after_in_child=_close_servers)


def _close_servers() -> None:
    for server in _servers:
        server.close()
