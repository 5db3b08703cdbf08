"""The ways of reducing a bucket: plain, compressed, compressed between hosts."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, cast, get_args

import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct import _C
from gct._agreement import agree_on_layout, agree_on_settings
from gct._channel import Algorithm, Channel, Run, result_or_raise
from gct._choice import Way, choose, measure
from gct._confirmation import Confirmation
from gct._hierarchy import open_hierarchy
from gct._plain import PlainKind, PlainReductions, reduce_plain
from gct._roll_call import call_the_roll
from gct.codec import Codec, Kind

_logger = logging.getLogger("gct")

_PROBE = 'the bucket that codec="auto" measures with'


NO_TRAFFIC: _C.EngineStats = {
    "jobs": 0,
    "raw_bytes": 0,
    "wire_bytes": 0,
    "encoded_numel": 0,
    "encoded_bytes": 0,
    "nonfinite_runs": 0,
    "encode_seconds": 0.0,
    "decode_seconds": 0.0,
    "wait_seconds": 0.0,
}


class Reducer:
    """Every rank of ``group`` makes one together.

    Args:
        group: of Gloo.
        settings: GCTState's; compared on all ranks.
        codecs: the codec; with ``codec="auto"`` one of each kind that it may become.
        choice: what ``codec="auto"`` stands for, from a checkpoint; None: to be measured.

    Raises:
        ValueError: ranks have another gct or other settings, or hosts that don't fit the group; on
            all ranks.
        RuntimeError: a peer died or the group's timeout passed.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        settings: Mapping[str, Any],
        codecs: Sequence[Codec],
        choice: str | None = None,
    ) -> None:
        self._group = group
        self._checksum = settings["checksum"] is True
        self._codecs = {codec.kind: codec for codec in codecs}
        self._channel = Channel(group)
        auto = settings["codec"] == "auto"
        agreed = {**settings, "the checkpoint's choice of a codec": choice} if auto else settings
        agree_on_settings(group, agreed)
        self._hierarchy = open_hierarchy(settings["hierarchy"], group, self._channel)
        self.rank, self.size = self._channel.rank, self._channel.size
        self.hosts = self._hierarchy.hosts if self._hierarchy is not None else 1
        self._confirmation: Confirmation | None = None
        if self._checksum and self.size > 1:
            self._confirmation = Confirmation(group, self._channel.roll_call)
        self.plain = PlainReductions(group)
        self.seconds: dict[str, float] = {}  # with codec="auto": by way
        self.plain_kind: PlainKind | None = None  # what was measured to be better than the codec
        if self.rank == 0:
            hosts = f" on {self.hosts} hosts" if self._hierarchy is not None else ""
            _logger.info("gct: %d ranks%s, %s", self.size, hosts, dict(settings))
        self.choice: str | None = None  # with codec="auto"
        if auto and self.size > 1:
            self.choice = self._saved(choice) or self._measure(settings["algorithm"])
            self._use(self.choice)
        self._before, self._local_before = self._totals(), self._local_bytes()

    def _saved(self, choice: str | None) -> str | None:
        """A checkpoint's choice, unless these settings leave it no codec."""
        ways = [*get_args(PlainKind), *self._codecs]
        if choice is not None and self.rank == 0:
            if choice in ways:
                _logger.info('gct: codec="auto" is %s, by the checkpoint', choice)
            else:
                _logger.warning(
                    'gct: codec="auto" was %s in the checkpoint and with these settings can\'t be: '
                    "it is measured again",
                    choice,
                )
        return choice if choice in ways else None

    def _measure(self, algorithm: Algorithm) -> str:
        """Which way is best, the first time that all ranks are here."""

        def fp32(bucket: Tensor) -> Future[Tensor]:
            return reduce_plain(bucket, self._group, "fp32", _PROBE)[0]

        def bf16(bucket: Tensor) -> Future[Tensor]:
            return reduce_plain(bucket, self._group, "bf16", _PROBE)[0]

        def coded(codec: Codec, bucket: Tensor) -> Future[Tensor]:
            part = self.shard(bucket.numel())
            runs = [Run(part.stop - part.start, raw=False)]
            return self.coded(bucket, codec, name=_PROBE, runs=runs, algorithm=algorithm)

        ways: dict[str, Way] = {"fp32": fp32, "bf16": bf16}
        ways |= {kind: partial(coded, codec) for kind, codec in self._codecs.items()}
        self.seconds = measure(ways, self._channel)
        way = choose(self.seconds)
        if self.rank == 0:
            took = ", ".join(
                f"{self._in_words(w)} {1e3 * s:.1f} ms" for w, s in self.seconds.items()
            )
            # No warning, but the one line that is printed where nobody has set up logging.
            words = self._in_words(way)
            _logger.warning('gct: codec="auto" is %s: a bucket of 25 MB takes %s', words, took)
        return way

    def _use(self, way: str) -> None:
        if way not in self._codecs:
            if self._checksum and self.rank == 0:
                _logger.warning('gct: codec="auto" is %s, which has no checksums', way)
            self.plain_kind = cast(PlainKind, way)
            if self._hierarchy is not None:
                self._hierarchy.close()
                self._hierarchy = None

    def _in_words(self, way: str) -> str:
        codec = self._codecs.get(cast(Kind, way))
        return f"{way} at {codec.bits:g} bits" if codec and codec.bits else way

    def shard(self, numel: int) -> slice:
        """The part of a bucket that this rank encodes."""
        return slice(0, numel) if self._hierarchy is None else self._hierarchy.shard(numel)

    def agree(self, name: str, layout: str) -> None:
        """Raise RuntimeError on all ranks unless they hand over the same; a collective call."""
        try:
            agree_on_layout(self._group, name, layout)
        except RuntimeError as error:
            if str(error).startswith("gct: "):
                raise
            raise RuntimeError(
                f"gct: comparing {name} failed on rank {self.rank} of {self.size}: {error}"
                f"{call_the_roll(self._channel.roll_call)}"
            ) from error

    def coded(self, buffer: Tensor, codec: Codec, **options: Any) -> Future[Tensor]:
        """Start to replace ``buffer`` by its mean, compressed on the wire by ``codec``.

        The options are those of :meth:`Hierarchy.submit`, and without a hierarchy mean the same:
        the shard is the bucket then.
        """
        params = codec._params
        options["checksum"] = self._checksum
        if self._hierarchy is not None:
            start = partial(self._hierarchy.submit, buffer, params, **options)
        else:
            start = partial(
                self._channel.submit, "all_reduce", buffer, params, mean=True, **options
            )
        if self._confirmation is not None:
            done = self._confirmation.of(start, options["name"])
        else:
            done = start()
        return done.then(lambda done: result_or_raise(done, buffer))

    def traffic(self) -> _C.EngineStats:
        """Totals of what was compressed, without what ``codec="auto"`` took to measure.

        With a hierarchy: of what crosses between hosts, but the seconds are those of all steps.
        """
        now: Mapping[str, Any] = self._totals()
        before: Mapping[str, Any] = self._before
        return cast("_C.EngineStats", {name: now[name] - before[name] for name in now})

    def local_bytes(self) -> int:
        """What a hierarchy has sent inside this host, uncompressed."""
        return self._local_bytes() - self._local_before

    def _totals(self) -> _C.EngineStats:
        stats = self._channel.stats() if self._hierarchy is None else self._hierarchy.stats()
        if self._confirmation is not None:
            stats = {**stats, "wire_bytes": stats["wire_bytes"] + self._confirmation.sent_bytes}
        return stats

    def _local_bytes(self) -> int:
        return 0 if self._hierarchy is None else self._hierarchy.local_bytes()

    def scratch_bytes(self) -> int:
        hierarchy = self._hierarchy.scratch_bytes() if self._hierarchy is not None else 0
        return self._channel.scratch_bytes() + hierarchy

    def close(self) -> None:
        """End the engines' threads."""
        if self._hierarchy is not None:
            self._hierarchy.close()
        self._channel.close()
