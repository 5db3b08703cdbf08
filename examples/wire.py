"""Count the bytes that this process really sends, the same way for every scheme.

The kernel keeps ``tcpi_bytes_sent`` for each TCP socket. Summed over this process's own sockets
it is what the process group handed to the network: payload, the backend's message headers and
retransmissions, not the TCP/IP headers. Nobody else's traffic is in it, unlike the counters of
an interface, which serve as a cross-check on a quiet machine.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Callable
from pathlib import Path

# struct tcp_info of linux/tcp.h; tcpi_bytes_sent exists since Linux 4.19.
_BYTES_SENT_OFFSET = 200
_TCP_INFO_BYTES = 256
_FD_FOLDER = Path("/proc/self/fd")
_NET_DEV = Path("/proc/net/dev")
_TX_BYTES_COLUMN = 8


class SocketCounter:
    """Bytes sent by all TCP sockets of this process, those already closed included."""

    def __init__(self) -> None:
        self._sent: dict[str, int] = {}

    def read(self) -> int | None:
        """Return bytes sent since the sockets were opened; None where it can't be counted."""
        if not _FD_FOLDER.is_dir() or not hasattr(socket, "TCP_INFO"):
            return None
        for entry in os.listdir(_FD_FOLDER):
            try:
                name = os.readlink(_FD_FOLDER / entry)  # socket:[inode]
                if name.startswith("socket:"):
                    sent = _bytes_sent(int(entry))
                    if sent is not None:
                        self._sent[name] = sent
            except OSError:
                continue  # closed by another thread between the listing and the question
        return sum(self._sent.values())


def _bytes_sent(fd: int) -> int | None:
    """Return one socket's count; None when it is not TCP or the kernel is too old."""
    with socket.socket(fileno=os.dup(fd)) as sock:
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            return None
        if sock.type != socket.SOCK_STREAM:
            return None
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    if len(info) < _BYTES_SENT_OFFSET + 8:
        return None
    return int(struct.unpack_from("=Q", info, _BYTES_SENT_OFFSET)[0])


def interface_bytes(name: str) -> int | None:
    """Return bytes transmitted by a network interface, headers included; None if unknown."""
    if not _NET_DEV.is_file():
        return None
    for line in _NET_DEV.read_text().splitlines():
        interface, _, columns = line.partition(":")
        if columns and interface.strip() == name:
            return int(columns.split()[_TX_BYTES_COLUMN])
    return None


class WireMeter:
    """Add up the growth of both counters over measured intervals: ``resume`` to ``pause``."""

    def __init__(self, interface: str) -> None:
        self.interface = interface
        self._counter = SocketCounter()
        self._sockets = _Growth(self._counter.read)
        self._device = _Growth(lambda: interface_bytes(interface))

    def resume(self) -> None:
        self._sockets.resume()
        self._device.resume()

    def pause(self) -> None:
        self._sockets.pause()
        self._device.pause()

    def sent(self) -> int | None:
        """Bytes sent by this process in the measured intervals so far."""
        return self._sockets.total()

    def interface_sent(self) -> int | None:
        """Bytes transmitted by the interface, by every process, in the measured intervals."""
        return self._device.total()


class _Growth:
    """How much a counter grew while it was watched; None as soon as it can't be read."""

    def __init__(self, read: Callable[[], int | None]) -> None:
        self._read = read
        self._closed: int | None = 0
        self._start: int | None = None
        self._running = False

    def resume(self) -> None:
        self._start = self._read()
        self._running = True

    def pause(self) -> None:
        self._closed = self.total()
        self._running = False

    def total(self) -> int | None:
        if not self._running:
            return self._closed
        now = self._read()
        if now is None or self._start is None or self._closed is None:
            return None
        return self._closed + now - self._start
