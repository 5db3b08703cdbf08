"""An all-reduce that adds up inside each host before it crosses the network between hosts.

1. Inside the host, uncompressed and in float32: each of its L ranks gets the host's mean of its
   shard, one L-th of the bucket.
2. Between the hosts, compressed: each rank all-reduces its shard with the ranks that hold the same
   shard on the other hosts.
3. Inside the host, uncompressed: everybody gets all shards.

All ranks end with the same bits: those that reduce a shard do, and step 3 moves exact bytes.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct import _C
from gct._agreement import gather_text
from gct._channel import Algorithm, Channel, Collective, Damage, OnStats, Run, Then
from gct._hosts import HierarchySetting, Place, find_hosts, given_hosts, own_place
from gct.codec import Codec

_logger = logging.getLogger("gct")
_RAW = Codec("raw")._params


class _Channels(NamedTuple):
    """One for each step: a step's jobs start as those of the step before end, whenever that is, and
    only inside a channel is the order the same on all ranks."""

    scatter: Channel
    cross: Channel
    gather: Channel


class Hierarchy:
    """The ranks of ``group`` in hosts of equal size; every rank makes one together.

    Args:
        group: of Gloo.
        whole: a channel of the whole group: the one on whose private group failures are reported.
        hosts: ranks of each host, more than one; rank i of each host has shard i.
    """

    def __init__(
        self, group: dist.ProcessGroup, whole: Channel, hosts: Sequence[Sequence[int]]
    ) -> None:
        host = next(host for host in hosts if whole.rank in host)
        self.hosts = len(hosts)
        self.local_size = len(host)
        self.local_rank = host.index(whole.rank)
        self._place = f"rank {whole.rank} of {whole.size}"
        shared: Any = {"group": group, "roll_call": whole.roll_call}
        self._channels = _Channels(
            Channel(members=host, shots=1, **shared),
            Channel(members=[other[self.local_rank] for other in hosts], **shared),
            Channel(members=host, shots=1, **shared),
        )
        self._copies = _Copies()
        self._raw_bytes = 0

    def shard(self, numel: int) -> slice:
        """The part of a bucket of ``numel`` elements that this rank reduces with the other hosts.

        All have the same length, but where it doesn't divide the last ones are shorter or empty.
        """
        share = -(-numel // self.local_size)
        return slice(min(numel, share * self.local_rank), min(numel, share * (self.local_rank + 1)))

    def submit(
        self,
        buffer: Tensor,
        codec: _C.CodecParams,
        *,
        name: str,
        runs: Sequence[Run],
        residual: Tensor | None = None,
        algorithm: Algorithm = "auto",
        seed: int = 0,
        probe: bool = False,
        checksum: bool = False,
        on_stats: OnStats | None = None,
        then: Then | None = None,
    ) -> Future[str]:
        """Start the reduction of ``buffer`` to its mean over all ranks, in place.

        Args:
            buffer: CPU tensor of a dtype of the codec; all ranks hand over theirs in one order.
            codec, algorithm: of the step between hosts.
            name: what error messages call it.
            runs: how the shard divides into parameters.
            residual: float32, one for each element of the shard, in units of the host's mean.
            seed, probe, on_stats, then: see :meth:`Channel.submit`; what is measured is the shard.
            checksum: in all steps.

        Returns:
            A future of the error message, empty if the result is in place. A message names the
            step, its ranks and those that are silent. It is a :class:`Damage` where a checksum was
            wrong, and then comes after the last step: the others have to take theirs.
        """
        share = -(-buffer.numel() // self.local_size)
        values, copy = self._as_float32(buffer, share * self.local_size)
        own = values[share * self.local_rank : share * (self.local_rank + 1)]
        part = self.shard(buffer.numel())
        shard = own[: part.stop - part.start]
        self._raw_bytes += (
            2 * shard.numel() * buffer.element_size() * (self.hosts - 1) // self.hosts
        )
        scatter, cross, gather = self._channels
        common = {"checksum": checksum}
        steps = [
            _Step(
                "adding up inside the host",
                scatter,
                "reduce_scatter",
                values,
                _RAW,
                {"output": own, "mean": True, "runs": [Run(values.numel(), raw=True)], **common},
            ),
            _Step(
                "reducing between hosts",
                cross,
                "all_reduce",
                shard,
                codec,
                {
                    "mean": True,
                    "runs": runs,
                    "residual": residual,
                    "algorithm": algorithm,
                    "seed": seed + (self.local_rank << 56),  # other shards round by other numbers
                    "probe": probe,
                    "on_stats": on_stats,
                    **common,
                },
            ),
            _Step(
                "sending round inside the host",
                gather,
                "all_gather",
                own,
                _RAW,
                {"output": values, "runs": [Run(own.numel(), raw=True)], **common},
            ),
        ]
        failed = f"gct: {name} failed on {self._place}"
        bucket = _Bucket(failed, name, steps, buffer, copy, self._copies, then)
        bucket.start(0)
        return bucket.done

    def _as_float32(self, buffer: Tensor, padded_numel: int) -> tuple[Tensor, Tensor | None]:
        """The bucket as flat float32 of ``padded_numel`` elements, and the copy if it is one."""
        if (
            buffer.dtype == torch.float32
            and buffer.numel() == padded_numel
            and buffer.is_contiguous()
        ):
            return buffer.detach().view(-1), None
        copy = self._copies.take(padded_numel)
        copy[: buffer.numel()].view(buffer.shape).copy_(buffer.detach())
        return copy[:padded_numel], copy

    def stats(self) -> _C.EngineStats:
        """What crossed between hosts; times are those of all three steps."""
        stats = self._channels.cross.stats()
        for channel in (self._channels.scatter, self._channels.gather):
            other = channel.stats()
            stats["encode_seconds"] += other["encode_seconds"]
            stats["wait_seconds"] += other["wait_seconds"]
            stats["decode_seconds"] += other["decode_seconds"]
        stats["raw_bytes"] = self._raw_bytes
        return stats

    def local_bytes(self) -> int:
        """What this rank has handed to the others on its host, uncompressed."""
        return sum(
            channel.stats()["wire_bytes"]
            for channel in (self._channels.scatter, self._channels.gather)
        )

    def scratch_bytes(self) -> int:
        engines = sum(channel.scratch_bytes() for channel in self._channels)
        return engines + self._copies.total_bytes

    def close(self) -> None:
        for channel in self._channels:
            channel.close()


def open_hierarchy(
    setting: HierarchySetting, group: dist.ProcessGroup, whole: Channel
) -> Hierarchy | None:
    """The hierarchy of ``group`` that the setting asks for; a collective call.

    None where all ranks reduce as one: there is one host, or one rank on each, or ``"auto"`` finds
    hosts of different sizes, which rank 0 tells in the log.

    Raises:
        ValueError: hosts given by the user don't fit the group; on all ranks.
    """
    if setting == "off":
        return None
    if setting != "auto":
        hosts = given_hosts(setting, whole.size)
    else:
        places = gather_text(group, json.dumps(own_place())) if whole.size > 1 else []
        hosts, doubt = find_hosts([Place(*json.loads(place)) for place in places])
        if doubt and whole.rank == 0:
            _logger.warning('gct: hierarchy="auto" is off: %s', doubt)
    return Hierarchy(group, whole, hosts) if hosts else None


class _Copies:
    """Flat float32 tensors, used again and again: as many as there are buckets on their way."""

    def __init__(self) -> None:
        self._free: list[Tensor] = []
        self.total_bytes = 0

    def take(self, numel: int) -> Tensor:
        """One of at least ``numel`` elements. What is in it is left over or 0."""
        fitting = [i for i, copy in enumerate(self._free) if copy.numel() >= numel]
        if fitting:
            return self._free.pop(min(fitting, key=lambda i: self._free[i].numel()))
        self.total_bytes += 4 * numel
        return torch.zeros(numel, dtype=torch.float32)

    def give_back(self, copy: Tensor) -> None:
        """From any thread."""
        self._free.append(copy)


class _Step(NamedTuple):
    doing: str
    channel: Channel
    collective: Collective
    input: Tensor
    codec: _C.CodecParams
    options: Mapping[str, Any]


@dataclass
class _Bucket:
    """A bucket on its way. Each step starts on the engine's thread that has ended the one before
    it, so that Ctrl-C does not have this rank leave out a step that others wait for."""

    failed: str
    name: str
    steps: Sequence[_Step]
    buffer: Tensor
    copy: Tensor | None  # what is reduced in its place
    copies: _Copies
    then: Then | None
    done: Future[str] = field(default_factory=Future)
    error: str = ""

    def start(self, index: int) -> None:
        step = self.steps[index]
        then = functools.partial(self._end, index)
        step.channel.submit(
            step.collective, step.input, step.codec, name=self.name, then=then, **step.options
        )

    def _end(self, index: int, error: str) -> None:
        try:
            if isinstance(error, Damage):
                self.error = self.error or Damage(
                    f"{self._place(index)}: {self._name(index, error)}"
                )
            elif error:
                raise RuntimeError(error)
            if index + 1 < len(self.steps):
                self.start(index + 1)
                return
            self._take_over()
        except Exception as caught:  # whatever it is: those who wait would wait for ever
            self.error = f"{self.failed} {self._place(index)}: {caught}"
        if self.then is not None:
            self.then(self.error)
        self.done.set_result(self.error)

    def _place(self, index: int) -> str:
        step = self.steps[index]
        return f"while {step.doing} (ranks {', '.join(map(str, step.channel.members))})"

    def _name(self, index: int, damage: str) -> str:
        """The channel counts its own ranks."""
        members = self.steps[index].channel.members
        return re.sub(r"rank (\d+)'s", lambda found: f"rank {members[int(found[1])]}'s", damage)

    def _take_over(self) -> None:
        if self.copy is not None:
            result = self.copy[: self.buffer.numel()].view(self.buffer.shape)
            self.buffer.detach().copy_(result)
            self.copies.give_back(self.copy)
