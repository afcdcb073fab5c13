"""One store for all the processes of a job on one machine, without a directory.

The first process to take the job's meeting point builds; the others connect to it and are sent descriptors of the
finished blocks, and of the meeting point, at which they then receive others themselves: the store is to be had there
for as long as any process has it. The meeting point is an abstract Unix socket: to take it is to be elected, a
connection is a place in the queue, and when a process ends, however it ends, the kernel takes its part in this away.
Those who wait for a builder that ends find their connection closed, and one of them takes the builder's part; the
meeting point goes with the last process that receives there. Nothing is left behind under any name.

Source: unix(7): "Abstract sockets", SCM_RIGHTS, SO_PEERCRED.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import json
import os
import select
import socket
import struct
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence

from in_memory_datasets.errors import StoreError
from in_memory_datasets.schema import AudioSpec, ImageSpec
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

    It can be attached to for as long as any of them has it: until the last one has closed it, let go of it, or ended.
    Where there are no abstract sockets (anywhere but on Linux), every process builds.

    Args:
        job: What the processes of one job have in common, such as their master's address and port.
        fingerprint: What is built.
        build: Makes the store. It is given a function that lets the others read from it while it is made.
        on_live: Given what may be read from, in a process that does not build; it owns it.

    Raises:
        StoreError: The meeting point is in the hands of another user.

    Cost: a thread and three descriptors besides the store's own, for as long as this process has it.
    """
    if not sys.platform.startswith("linux"):
        return build(lambda live: None)
    met = _meet(job, fingerprint, on_live)
    if isinstance(met, Store):
        return met
    met.listen(1024)
    with _offering(met) as offer:
        return offer.give(build(offer.show))


def find_store(job: str, fingerprint: str) -> Store | None:
    """Attach to the store that a process of the job has, see `share_store`; while one builds it, wait.

    Returns:
        The store; None where no process has it, and where there are no abstract sockets (anywhere but on Linux).

    Raises:
        StoreError: The meeting point is in the hands of another user.
    """
    if not sys.platform.startswith("linux"):
        return None
    met = _meet(job, fingerprint, lambda live: live.close())
    if isinstance(met, Store):
        return met
    met.close()
    return None


def _meet(job: str, fingerprint: str, on_live: Callable[[LiveStore], None]) -> Store | socket.socket:
    """Attach to the store that is to be had at the meeting point, or take the meeting point where nobody has it."""
    key = json.dumps([os.getuid(), job, fingerprint]).encode()
    address = b"\0in-memory-datasets/" + hashlib.sha256(key).hexdigest()[:40].encode()
    while True:
        with _between_forks:
            point = _keep_from_children(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET))
        try:
            point.bind(address)
            return point
        except OSError as error:
            point.close()
            if error.errno != errno.EADDRINUSE:
                raise
        store = _attach(address, on_live)
        if store is not None:
            return store
        time.sleep(0.01)  # who has it is about to listen, or has just gone


def _attach(address: bytes, on_live: Callable[[LiveStore], None]) -> Store | None:
    """Wait for the blocks; None when who was to send them has ended without."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as peer:
        try:
            peer.connect(address)
            if _uid_of_peer(peer) != os.getuid():
                raise StoreError("the meeting point of this job's processes is held by another user; use cache_dir=")
            while True:
                message, blocks, point = _receive(peer)
                if not blocks:
                    return None
                spec = spec_from_json(json.loads(message))
                if point is not None:
                    with _offering(point) as offer:
                        return offer.give(Store(spec, samples=blocks[0], rows=blocks[1]))
                rows, samples, spool, books = blocks
                on_live(LiveStore(spec, rows=rows, samples=samples, spool=spool, books=books))
        except ConnectionError:
            return None


def _receive(peer: socket.socket) -> tuple[bytes, list[Block], socket.socket | None]:
    """Wait for two blocks and the meeting point, for the four blocks of a live store, or for the end, with none."""
    peer.recv(1, socket.MSG_PEEK)  # which waits; forks need not wait for it
    with _between_forks:
        message, fds, flags, _ = socket.recv_fds(peer, _MAX_MESSAGE_BYTES, 4)
        for fd in fds:
            os.set_inheritable(fd, False)
        if flags & socket.MSG_CTRUNC:  # some are missing, since this process may have no more
            for fd in fds:
                os.close(fd)
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        point = _keep_from_children(socket.socket(fileno=fds.pop())) if len(fds) == 3 else None
    return message, [Block(fd) for fd in fds], point


@contextlib.contextmanager
def _offering(point: socket.socket) -> Iterator[_Offer]:
    """Receive whoever comes to the meeting point, until the store that is given is gone, or an error is raised here."""
    offer = _Offer(point)
    try:
        yield offer
    except BaseException:
        offer.end()
        raise


class _Offer:
    """What a thread of this process gives to those whom it, and no other process, receives at the meeting point."""

    def __init__(self, point: socket.socket) -> None:
        self._point = point
        self._shown: LiveStore | weakref.ref[Store] | None = None
        with _between_forks:
            # To close the rope ends the thread, which closes the rest. A store may be collected at any moment, in any
            # thread: nobody must be about to use a descriptor then whose number is given out again.
            self._bell, self._rope = map(_keep_from_children, socket.socketpair())
        threading.Thread(target=self._serve, name="in-memory-datasets-share", daemon=True).start()

    def show(self, shown: LiveStore | weakref.ref[Store]) -> None:
        """Let others read from a store that is being made, or have a finished one."""
        self._shown = shown
        with contextlib.suppress(OSError):  # the thread may have run out of descriptors, and ended
            self._rope.send(b"!")

    def give(self, store: Store) -> Store:
        """Let others have a finished store until it is closed or collected, and give it back."""
        table = store.table  # which it lets go of when it is closed
        self.show(weakref.ref(store))
        for held in (store, table):
            weakref.finalize(held, self.end)
        return store

    def end(self) -> None:
        """Receive nobody any more; who waits is turned away."""
        self._shown = None
        self._rope.close()

    def _serve(self) -> None:
        waiting: list[socket.socket] = []
        shown: LiveStore | weakref.ref[Store] | None = None
        poll = select.poll()
        poll.register(self._bell, select.POLLIN)
        poll.register(self._point, select.POLLIN)
        self._point.setblocking(False)
        with self._point, self._bell, contextlib.suppress(OSError):
            while True:
                if self._bell.fileno() not in dict(poll.poll()):
                    due = self._accept()
                elif self._bell.recv(1):
                    shown, due, waiting = self._shown, waiting, []
                else:
                    break
                waiting += [peer for peer in due if not self._tell(peer, shown)]
        for peer in waiting:
            peer.close()

    def _accept(self) -> list[socket.socket]:
        try:
            with _between_forks:
                peer = _keep_from_children(self._point.accept()[0])
        except BlockingIOError:  # another process was faster
            return []
        if _uid_of_peer(peer) == os.getuid():
            return [peer]
        peer.close()
        return []

    def _tell(self, peer: socket.socket, shown: LiveStore | weakref.ref[Store] | None) -> bool:
        """Send what there is, and tell whether no more is to come."""
        # The peer may be gone, and what is shown may just be closed: then there is nobody to tell, or nothing.
        with contextlib.suppress(OSError, StoreError):
            if isinstance(shown, weakref.ref):
                store = shown()
                if store is None or store.closed:
                    self.end()  # already, though somebody still looks at its table
                else:
                    _send(peer, store.spec, (store.samples, store.rows), self._point)
            else:
                if shown is not None:
                    _send(peer, shown.spec, shown.blocks)
                return False
        peer.close()
        return True


def _send(peer: socket.socket, spec: ImageSpec | AudioSpec, blocks: Sequence[Block], *points: socket.socket) -> None:
    with contextlib.ExitStack() as copies:
        fds = []
        for block in blocks:
            fds.append(os.dup(block.fd))
            copies.callback(os.close, fds[-1])
            if block.closed:  # by now, and the number may be another file's: that was sent in one of 50,000 times
                return
        fds += [point.fileno() for point in points]
        socket.send_fds(peer, [json.dumps(spec_to_json(spec)).encode()], fds)


def _uid_of_peer(peer: socket.socket) -> int:
    credentials = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    return int(struct.unpack("3i", credentials)[1])


_between_forks = threading.RLock()
_kept: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _keep_from_children(end: socket.socket) -> socket.socket:
    """Close a socket in forked children, which would else hold it when this process is gone; call between forks."""
    _register_once()
    _kept.add(end)
    return end


@functools.cache
def _register_once() -> None:
    os.register_at_fork(
        before=_between_forks.acquire, after_in_parent=_between_forks.release, after_in_child=_close_kept
    )


def _close_kept() -> None:
    for end in _kept:
        end.close()
    _between_forks.release()
