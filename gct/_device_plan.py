"""What an all-reduce of one layout needs on a GPU: coders and buffers, made once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from gct import _C
from gct._channel import Run
from gct._device_wire import Exchange, Timeline

_MASK = 2**64 - 1


class Growing:
    """Memory that plans of one stream take turns with; grows to the largest request."""

    def __init__(self, device: torch.device) -> None:
        self._values = torch.empty(0, dtype=torch.float32, device=device)
        self.coding = _C.DeviceScratch(device)

    def floats(self, numel: int) -> Tensor:
        if self._values.numel() < numel:
            self._values = torch.empty(
                0, dtype=torch.float32, device=self._values.device
            )  # first give back
            self._values = torch.empty(numel, dtype=torch.float32, device=self._values.device)
        return self._values[:numel]

    def nbytes(self) -> int:
        return self.coding.capacity_bytes() + 4 * self._values.numel()


class Lane(NamedTuple):
    """One of the two streams that an all-reduce goes through, and what its kernels share there.

    The front encodes bucket after bucket; the back waits for bytes, decodes, adds and encodes
    results. So one bucket is encoded while another is on the wire or being decoded.
    """

    timeline: Timeline
    memory: Growing


class Plan:
    """Steps of an all-reduce, the same for every bucket of a layout.

    Args:
        rank, world: of the group.
        numel, dtype: of the tensor.
        runs: how it divides into parameters.
        codec: settings.
        two_shot: reduce by chunk, then send round; else everybody gets everybody's segment.
        front, back: shared with other plans.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        numel: int,
        dtype: torch.dtype,
        runs: Sequence[Run],
        codec: _C.CodecParams,
        two_shot: bool,
        front: Lane,
        back: Lane,
    ) -> None:
        self._rank, self._world, self._numel, self._dtype = rank, world, numel, dtype
        self._runs, self._codec = list(runs), codec
        self._front, self._back = front, back
        self._device = front.timeline.device
        self.finished: torch.cuda.Event | None = None  # of the latest use: buffers are free again
        self._divisor = torch.tensor(float(world), dtype=torch.float32, device=self._device)
        self.two_shot = two_shot
        self.encoded_numel = 0  # by one all-reduce
        self.encoded_bytes = 0
        self.exchanges: list[Exchange] = []
        self._parts = _C.split(numel, world) if two_shot else [(0, numel)]
        if two_shot:
            self._plan_two_shot()
        else:
            self._plan_one_shot()
        self._decoders = [*self._adders, *([self._placer] if self._placer is not None else [])]

    # Making.

    def _bytes(self, count: int) -> Tensor:
        return torch.zeros(count, dtype=torch.uint8, device=self._device)

    def _expect(self, part: tuple[int, int], dtype: torch.dtype) -> tuple[int, int]:
        return _C.expect(self._codec, dtype, self._runs, *part)

    def _encoder(
        self, parts: list[tuple[int, int]], dtype: torch.dtype, origin: int
    ) -> _C.DeviceEncoder:
        self.encoded_numel += sum(end - begin for begin, end in parts)
        encoder = _C.DeviceEncoder(self._codec, dtype, self._runs, parts, origin, self._device)
        self.encoded_bytes += encoder.out_bytes
        return encoder

    def _plan_one_shot(self) -> None:
        slot, runs = self._expect((0, self._numel), self._dtype)
        self._first = self._encoder(self._parts, self._dtype, 0)
        self._placer: _C.DeviceDecoder | None = None
        self._adders = [
            _C.DeviceDecoder([(sender * slot, slot, 0, self._numel, runs)], self._device)
            for sender in range(self._world)
        ]
        self.exchanges.append(
            Exchange(self._bytes(slot), self._bytes(slot * self._world), None, None)
        )

    def _plan_two_shot(self) -> None:
        rank, world, dtype = self._rank, self._world, self._dtype
        own = self._parts[rank]
        others = [part for owner, part in enumerate(self._parts) if owner != rank]
        self._first = self._encoder(others, dtype, 0)
        send = [
            0 if owner == rank else self._expect(part, dtype)[0]
            for owner, part in enumerate(self._parts)
        ]
        slot, runs = self._expect(own, dtype)
        recv = [0 if sender == rank else slot for sender in range(world)]
        self._adders = [
            _C.DeviceDecoder([(i * slot, slot, 0, own[1] - own[0], runs)], self._device)
            for i in range(world - 1)
            if slot > 0
        ]
        self.exchanges.append(Exchange(self._bytes(sum(send)), self._bytes(sum(recv)), send, recv))
        # The results' slots differ where raw runs do; an all-gather takes equal ones.
        self._second = self._encoder([own], torch.float32, own[0])
        expected = [self._expect(part, torch.float32) for part in self._parts]
        longest = max(slot for slot, _ in expected)
        self._placer = _C.DeviceDecoder(
            [
                (owner * longest, slot, part[0], part[1] - part[0], runs)
                for owner, (part, (slot, runs)) in enumerate(
                    zip(self._parts, expected, strict=True)
                )
                if slot > 0
            ],
            self._device,
        )
        self.exchanges.append(
            Exchange(self._bytes(longest), self._bytes(longest * world), None, None)
        )

    # Running. What follows only enqueues.

    def steps(self, flat: Tensor, mean: bool, seed: int) -> Iterator[int]:
        """Replace ``flat`` by its sum or mean over all ranks.

        Yields the index of an exchange where one is due: up to the first on the front lane, after
        it on the back lane.
        """
        return (
            self._two_shots(flat, mean, seed) if self.two_shot else self._one_shot(flat, mean, seed)
        )

    def _one_shot(self, flat: Tensor, mean: bool, seed: int) -> Iterator[int]:
        self._encode(self._front, self._first, flat, self.exchanges[0].send, _mix(seed, self._rank))
        yield 0
        total = self._floats(flat)
        for sender, adder in enumerate(self._adders):
            self._decode(adder, self.exchanges[0].recv, total, accumulate=sender > 0)
        if mean:
            total.div_(self._divisor)
        if total is not flat:
            flat.copy_(total)

    def _two_shots(self, flat: Tensor, mean: bool, seed: int) -> Iterator[int]:
        begin, end = self._parts[self._rank]
        shot1, shot2 = self.exchanges
        self._encode(self._front, self._first, flat, shot1.send, _mix(seed, 2 * self._rank))
        yield 0
        own = flat[begin:end]
        total = own
        if self._dtype != torch.float32:
            total = self._back.memory.floats(end - begin)
            total.copy_(own)
        for adder in self._adders:
            self._decode(adder, shot1.recv, total, accumulate=True)
        if mean:
            total.div_(self._divisor)
        self._encode(self._back, self._second, total, shot2.send, _mix(seed, 2 * self._rank + 1))
        yield 1
        assert self._placer is not None
        result = self._floats(flat)
        self._decode(self._placer, shot2.recv, result, accumulate=False)
        if result is not flat:
            flat.copy_(result)

    def _floats(self, flat: Tensor) -> Tensor:
        """Where float32 results go: the tensor itself if it is float32."""
        return flat if self._dtype == torch.float32 else self._back.memory.floats(flat.numel())

    @staticmethod
    def _encode(
        lane: Lane, encoder: _C.DeviceEncoder, data: Tensor, out: Tensor, seed: int
    ) -> None:
        encoder.encode(data, out, seed, lane.timeline.handle, lane.memory.coding)

    def _decode(
        self, decoder: _C.DeviceDecoder, wire: Tensor, out: Tensor, *, accumulate: bool
    ) -> None:
        lane = self._back
        decoder.decode(wire, out, accumulate, lane.timeline.handle, lane.memory.coding)

    def statuses(self) -> Tensor:
        """int32 on the device: what the latest steps' decoders say, 0 where all is well."""
        return torch.cat([decoder.statuses for decoder in self._decoders])

    def nonfinite(self) -> Tensor:
        """How many of the runs that the latest steps encoded first held NaN or Inf."""
        return self._first.statistics[:, 2].sum()

    def run_statistics(self) -> list[list[float]]:
        """Scale and shape of each run as last encoded for others; 0 where it wasn't. Waits."""
        result = [[0.0, 0.0] for _ in self._runs]
        weights = [0] * len(self._runs)
        rows = iter(self._first.statistics.tolist())
        for part in self._parts:
            if self.two_shot and part == self._parts[self._rank]:
                continue
            for index, numel in _overlaps(self._runs, part):
                scale, shape, _ = next(rows)
                total = weights[index] + numel
                for column, value in enumerate((scale, shape)):
                    before = result[index][column] * weights[index]
                    result[index][column] = (before + value * numel) / total
                weights[index] = total
        return result

    def nbytes(self) -> int:
        """Of the buffers for the wire."""
        return sum(step.send.numel() + step.recv.numel() for step in self.exchanges)


def _overlaps(runs: Sequence[Run], part: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Index and elements of each run that has some in ``part``, in order."""
    begin = 0
    for index, run in enumerate(runs):
        numel = min(part[1], begin + run.numel) - max(part[0], begin)
        begin += run.numel
        if numel > 0:
            yield index, numel


def _mix(seed: int, stream: int) -> int:
    """SplitMix64: neighbouring (seed, stream) give unrelated seeds."""
    z = (seed + (stream + 1) * 0x9E3779B97F4A7C15) & _MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & _MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & _MASK
    return z ^ (z >> 31)
