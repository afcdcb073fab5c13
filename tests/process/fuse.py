"""A file system in memory that lacks what it is told to lack, mounted by the kernel's own protocol.

Source: linux/fuse.h, version 7.31, and Documentation/filesystems/fuse.rst of the kernel.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

ROOT, FLOCK_LOCKS, DIRECT_IO = 1, 1 << 10, 1
MAX_WRITE = 128 * 1024


@dataclass
class Node:
    """A file or a directory."""

    mode: int
    data: bytearray = field(default_factory=bytearray)
    names: dict[bytes, int] = field(default_factory=dict)


class Disk:
    """The nodes of the file system, and the answers to what the kernel asks of them.

    Args:
        can_map: Whether files can be mapped into memory by several processes.
        lock_error: What whoever locks a file is answered; 0 leaves locks to the kernel.
    """

    def __init__(self, *, can_map: bool, lock_error: int) -> None:
        self.nodes = {ROOT: Node(stat.S_IFDIR | 0o755)}
        self.open_flags = 0 if can_map else DIRECT_IO
        self.lock_error = lock_error
        self.answers: dict[int, Callable[[int, bytes], bytes]] = {
            1: lambda node, body: self.entry(self.find(node, body)),
            3: lambda node, body: self.attributes(node),
            4: self.set_attributes,
            9: lambda node, body: self.entry(self.make(node, stat.S_IFDIR | 0o755, body[8:])),
            10: self.remove,
            11: self.remove,
            12: lambda node, body: self.rename(node, body[:8], body[8:]),
            14: lambda node, body: self.opened(),
            15: self.read,
            16: self.write,
            17: lambda node, body: struct.pack("<5Q10I", *[10**6] * 5, 4096, 255, 4096, *[0] * 7),
            18: lambda node, body: b"",
            20: lambda node, body: b"",
            25: lambda node, body: b"",
            26: self.init,
            27: lambda node, body: self.opened(),
            28: self.list,
            29: lambda node, body: b"",
            32: self.lock,
            33: self.lock,
            35: lambda node, body: self.entry(self.make(node, stat.S_IFREG | 0o644, body[16:])) + self.opened(),
            45: lambda node, body: self.rename(node, body[:8], body[16:]),
        }

    def init(self, _: int, body: bytes) -> bytes:
        flags = FLOCK_LOCKS if self.lock_error else 0
        return struct.pack("<4I2H2I2HI28x", 7, 31, 0, flags, 12, 9, MAX_WRITE, 1, 32, 0, 0)

    def lock(self, *_: object) -> bytes:
        raise OSError(self.lock_error, "no locks")

    def find(self, parent: int, name: bytes) -> int:
        try:
            return self.nodes[parent].names[name.rstrip(b"\0")]
        except KeyError:
            raise FileNotFoundError(errno.ENOENT, "no such name") from None

    def make(self, parent: int, mode: int, name: bytes) -> int:
        number = max(self.nodes) + 1
        self.nodes[number] = Node(mode)
        self.nodes[parent].names[name.rstrip(b"\0")] = number
        return number

    def remove(self, parent: int, name: bytes) -> bytes:
        if self.nodes[self.find(parent, name)].names:
            raise OSError(errno.ENOTEMPTY, "not empty")
        del self.nodes[parent].names[name.rstrip(b"\0")]  # the node stays, for who has it open
        return b""

    def rename(self, parent: int, target: bytes, names: bytes) -> bytes:
        old, new = names.rstrip(b"\0").split(b"\0")
        number = self.find(parent, old)
        del self.nodes[parent].names[old]
        self.nodes[int.from_bytes(target, "little")].names[new] = number
        return b""

    def set_attributes(self, number: int, body: bytes) -> bytes:
        valid, size = struct.unpack_from("<I12xQ", body)
        if valid & 8:
            data = self.nodes[number].data
            del data[size:]
            data.extend(bytes(size - len(data)))
        return self.attributes(number)

    def read(self, number: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("<8xQI", body)
        return bytes(self.nodes[number].data[offset : offset + size])

    def write(self, number: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("<8xQI", body)
        data = self.nodes[number].data
        data.extend(bytes(max(0, offset - len(data))))
        data[offset : offset + size] = body[40:]
        return struct.pack("<I4x", size)

    def list(self, number: int, body: bytes) -> bytes:
        offset, size = struct.unpack_from("<8xQI", body)
        listing = b""
        for place, (name, each) in enumerate(self.nodes[number].names.items(), start=1):
            kind = stat.S_IFMT(self.nodes[each].mode) >> 12
            record = struct.pack("<2Q2I", each, place, len(name), kind) + name
            record += bytes(-len(record) % 8)
            if place > offset and len(listing) + len(record) <= size:
                listing += record
        return listing

    def opened(self) -> bytes:
        return struct.pack("<QI4x", 0, self.open_flags)

    def entry(self, number: int) -> bytes:
        return struct.pack("<4Q2I", number, 0, 0, 0, 0, 0) + self._attributes(number)

    def attributes(self, number: int) -> bytes:
        return bytes(16) + self._attributes(number)

    def _attributes(self, number: int) -> bytes:
        node = self.nodes[number]
        size = len(node.data)
        return struct.pack("<6Q10I", number, size, -(-size // 512), 0, 0, 0, 0, 0, 0, node.mode, 1, 0, 0, 0, 4096, 0)

    def serve(self, fd: int) -> None:
        """Answer the kernel until the file system is unmounted."""
        while True:
            try:
                request = os.read(fd, MAX_WRITE + 4096)
            except OSError as error:
                if error.errno == errno.ENODEV:
                    return
                if error.errno in (errno.EINTR, errno.ENOENT):  # who asked has gone
                    continue
                raise
            _, opcode, unique, node = struct.unpack_from("<2I2Q", request)
            if opcode in (2, 36, 42):  # to forget and to interrupt, which are not answered
                continue
            try:
                if opcode not in self.answers:
                    raise OSError(errno.ENOSYS, "not known here")
                answer, number = self.answers[opcode](node, request[40:]), 0
            except OSError as error:
                answer, number = b"", -(error.errno or errno.EIO)
            os.write(fd, struct.pack("<IiQ", 16 + len(answer), number, unique) + answer)


@contextmanager
def mounted(place: str, *, can_map: bool = True, lock_error: int = 0) -> Iterator[None]:
    """Mount such a file system, served by a process of its own; for who may mount."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    libc = ctypes.CDLL(None, use_errno=True)
    options = f"fd={fd},rootmode=40000,user_id=0,group_id=0"
    if libc.mount(b"fuse", place.encode(), b"fuse", 0, options.encode()):
        raise OSError(ctypes.get_errno(), f"cannot mount: {os.strerror(ctypes.get_errno())}")
    server = os.fork()
    if server == 0:
        Disk(can_map=can_map, lock_error=lock_error).serve(fd)
        os._exit(0)
    os.close(fd)
    try:
        yield
    finally:
        os.kill(server, signal.SIGKILL)
        os.waitpid(server, 0)
