"""One store for all the processes of a job on one machine, without a directory.

The first process to take the job's meeting point builds; the others connect to it and are sent descriptors of the
finished blocks. The meeting point is an abstract Unix socket: to take it is to be elected, a connection is a place in
the queue, and when its owner ends, however it ends, the kernel takes it away: those who wait find their connection
closed, and one of them takes the builder's part. Nothing is left behind under any name.

Source: unix(7): "Abstract sockets", SCM_RIGHTS, SO_PEERCRED.
"""

from __future__ import annotations

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
from in_memory_datasets.store.manifest import spec_from_json, spec_to_json
from in_memory_datasets.store.store import Store

_MAX_MESSAGE_BYTES = 65_536


def share_store(job: str, fingerprint: str, build: Callable[[], Store]) -> Store:
    """Build a store once among the processes that give the same job and fingerprint; the others attach to it.

    It can be attached to as long as the store lives in the process that built it; who has attached keeps the memory
    for as long as it likes. Where there are no abstract sockets (anywhere but on Linux), every process builds.

    Args:
        job: What the processes of one job have in common, such as their master's address and port.
        fingerprint: What is built.
        build: Makes the store.

    Raises:
        StoreError: The meeting point is in the hands of another user.
    """
    if not sys.platform.startswith("linux"):
        return build()
    key = json.dumps([os.getuid(), job, fingerprint]).encode()
    address = b"\0in-memory-datasets/" + hashlib.sha256(key).hexdigest()[:40].encode()
    while True:
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            server.bind(address)
        except OSError as error:
            server.close()
            if error.errno != errno.EADDRINUSE:
                raise
            store = _attach(address)
            if store is not None:
                return store
            time.sleep(0.01)  # its owner is about to listen, or has just gone
            continue
        try:
            server.listen(1024)
            _close_in_forked_children(server)
            store = build()
        except BaseException:
            server.close()
            raise
        weakref.finalize(store, server.shutdown, socket.SHUT_RDWR)  # which wakes the thread below
        threading.Thread(
            target=_serve, args=(server, weakref.ref(store)), name="in-memory-datasets-share", daemon=True
        ).start()
        return store


def _serve(server: socket.socket, store_of: weakref.ref[Store]) -> None:
    """Send the blocks to whoever connects, until the store is gone."""
    with server:
        while True:
            try:
                peer, _ = server.accept()
            except OSError:  # shut down with the store
                return
            with peer:
                store = store_of()
                if store is None or store.closed:
                    return
                if _uid_of_peer(peer) == os.getuid():
                    try:
                        fds = [store.samples.fd, store.rows.fd]
                        socket.send_fds(peer, [json.dumps(spec_to_json(store.spec)).encode()], fds)
                    except OSError:
                        pass  # the peer went away while it waited: there is nobody to tell
                del store  # or this thread would keep it alive


def _attach(address: bytes) -> Store | None:
    """Wait for the builder's blocks; None when it has ended without sending them."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as peer:
        try:
            peer.connect(address)
            if _uid_of_peer(peer) != os.getuid():
                raise StoreError("the meeting point of this job's processes is held by another user; use cache_dir=")
            message, fds, _, _ = socket.recv_fds(peer, _MAX_MESSAGE_BYTES, 2)
        except ConnectionError:
            return None
    if len(fds) != 2:
        for fd in fds:
            os.close(fd)
        return None
    for fd in fds:
        os.set_inheritable(fd, False)
    return Store(spec_from_json(json.loads(message)), samples=Block(fds[0]), rows=Block(fds[1]))


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
