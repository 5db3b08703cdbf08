"""Rate and round trip of the link between two hosts, measured with a TCP stream.

python -m multihost.probe serve PORT          # on one host
python -m multihost.probe measure HOST PORT   # on the other: one JSON line
"""

from __future__ import annotations

import json
import socket
import statistics
import sys
import time

SKIPPED_SECONDS = 0.3  # the token bucket's burst and TCP's start
MEASURED_SECONDS = 1.0
ROUND_TRIPS = 50
CONNECT_SECONDS = 10.0


def serve(port: int) -> None:
    """Echo single bytes, then receive a stream and answer with its rate."""
    with socket.create_server(("", port)) as server:
        connection, _ = server.accept()
    with connection:
        for _ in range(ROUND_TRIPS):
            connection.sendall(connection.recv(1))
        connection.sendall(json.dumps({"bits_per_second": _receive(connection)}).encode())


def _receive(connection: socket.socket) -> float:
    """Bits per second that arrive; ends with the sender's."""
    buffer = bytearray(1 << 20)
    began = time.perf_counter()
    received, start, last = 0, 0.0, 0.0
    while count := connection.recv_into(buffer):
        last = time.perf_counter()
        if start:
            received += count
        elif last - began > SKIPPED_SECONDS:
            start = last
    return 8 * received / (last - start) if last > start > 0 else 0.0


def measure(host: str, port: int) -> dict[str, float]:
    """Payload bits per second towards ``host``, and the median round trip in seconds."""
    with _connect(host, port) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        trips = [_round_trip(connection) for _ in range(ROUND_TRIPS)]
        payload = bytes(1 << 20)
        end = time.perf_counter() + SKIPPED_SECONDS + MEASURED_SECONDS
        while time.perf_counter() < end:
            connection.sendall(payload)
        connection.shutdown(socket.SHUT_WR)
        answer: dict[str, float] = json.loads(connection.recv(4096))
    return {**answer, "round_trip_seconds": statistics.median(trips)}


def _round_trip(connection: socket.socket) -> float:
    began = time.perf_counter()
    connection.sendall(b"x")
    connection.recv(1)
    return time.perf_counter() - began


def _connect(host: str, port: int) -> socket.socket:
    deadline = time.monotonic() + CONNECT_SECONDS
    while True:
        try:
            return socket.create_connection((host, port), timeout=CONNECT_SECONDS)
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)  # the server is still starting


def main(arguments: list[str]) -> None:
    if arguments[0] == "serve":
        serve(int(arguments[1]))
    else:
        print(json.dumps(measure(arguments[1], int(arguments[2]))))


if __name__ == "__main__":
    main(sys.argv[1:])
