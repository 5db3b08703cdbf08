"""What orders work on a GPU, and what carries bytes between GPUs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

# The new name (torch 2.13) warns where the old one is used.
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)


class Timeline:
    """A stream beside the caller's, and what orders the two.

    On the CPU, where the kernels' bodies run as loops for tests, everything is done in order.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device, priority=-1) if device.type == "cuda" else None

    @property
    def handle(self) -> int:
        """The cudaStream_t, for kernels; 0 on the CPU."""
        return 0 if self._stream is None else int(self._stream.cuda_stream)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Torch's operations inside go to the stream."""
        if self._stream is None:
            yield
        else:
            with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
                yield

    def follow_caller(self, tensor: Tensor) -> None:
        """What comes next waits for what the caller has enqueued; ``tensor`` lives that long."""
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream(self.device))
            tensor.record_stream(self._stream)

    def follow(self, mark: torch.cuda.Event | None, tensor: Tensor | None = None) -> None:
        """What comes next waits for another timeline's mark; ``tensor`` lives that long."""
        if self._stream is None:
            return
        if mark is not None:
            self._stream.wait_event(mark)
        if tensor is not None:
            tensor.record_stream(self._stream)

    def mark(self) -> torch.cuda.Event | None:
        """A point that others wait for."""
        return None if self._stream is None else self._stream.record_event()

    @staticmethod
    def reached(mark: torch.cuda.Event | None) -> bool:
        return mark is None or bool(mark.query())

    @staticmethod
    def wait(mark: torch.cuda.Event | None) -> None:
        """Block this thread until the device has come to the mark."""
        if mark is not None:
            mark.synchronize()

    def future(self) -> Future[Tensor]:
        """One whose result may be completed while work is only enqueued: waiting orders streams."""
        if self._stream is None:
            return Future()
        return Future(devices=[self.device])


class Exchange(NamedTuple):
    """Bytes between all ranks. Segments stand one after the other in rank order."""

    send: Tensor
    recv: Tensor
    send_bytes: list[int] | None  # to each rank; None: all of ``send`` to all, of one size
    recv_bytes: list[int] | None

    @property
    def sent(self) -> int:
        """Bytes for other ranks."""
        if self.send_bytes is not None:
            return sum(self.send_bytes)
        return self.recv.numel() - self.send.numel()


def begin(step: Exchange, group: dist.ProcessGroup) -> dist.Work:
    """Start ``step`` once the current stream has come here.

    What is returned has a wait(): with NCCL the stream that is current then waits, with Gloo the
    thread does.
    """
    if step.send_bytes is None:
        work = _all_gather(step.recv, step.send, group=group, async_op=True)
    else:
        work = dist.all_to_all_single(
            step.recv, step.send, step.recv_bytes, step.send_bytes, group=group, async_op=True
        )
    assert work is not None
    return work


class Staging:
    """Pinned host memory for the bytes of one exchange; only encoded bytes cross PCIe."""

    def __init__(self, step: Exchange) -> None:
        pinned = step.send.device.type == "cuda"
        self._device = step
        self.host = step._replace(
            send=torch.zeros(step.send.numel(), dtype=torch.uint8, pin_memory=pinned),
            recv=torch.zeros(step.recv.numel(), dtype=torch.uint8, pin_memory=pinned),
        )

    def fetch(self) -> None:
        """Enqueue the copy to the host."""
        self.host.send.copy_(self._device.send, non_blocking=True)

    def deliver(self) -> None:
        """Enqueue the copy to the device."""
        self._device.recv.copy_(self.host.recv, non_blocking=True)


def guard(device: torch.device) -> AbstractContextManager[object]:
    """Makes ``device`` the current one."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
