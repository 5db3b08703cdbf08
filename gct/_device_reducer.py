"""The way of reducing a bucket on a GPU; gct/_reducer.py is that on the CPU."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct import _C
from gct._agreement import debug_setting
from gct._channel import Run
from gct._device_channel import DeviceChannel
from gct._device_plan import Plan
from gct._plain import PlainKind, PlainReductions
from gct.codec import Codec

_logger = logging.getLogger("gct")


class DeviceReducer:
    """What GCTState needs for buckets on ``device``; every rank of ``group`` makes one together.

    Args:
        group: of NCCL, or of Gloo.
        settings: GCTState's; compared on all ranks when the first bucket comes.
        device: a GPU.

    Raises:
        ValueError: settings that GPUs don't have in this version, or a device without kernels.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        settings: Mapping[str, Any],
        device: torch.device,
    ) -> None:
        _check_settings(settings)
        self._settings = f"{dict(settings)}"
        self._channel = DeviceChannel(group, device)
        if debug_setting() == "hash":
            _logger.warning("gct: GCT_DEBUG=hash does not compare gradients on %s", device)
        self.rank, self.size = self._channel.rank, self._channel.size
        self.hosts = 1
        self.plain = PlainReductions(group)
        self.seconds: dict[str, float] = {}
        self.plain_kind: PlainKind | None = None
        self.choice: str | None = None
        if self.rank == 0:
            _logger.info("gct: %d ranks on %s, %s", self.size, device, self._settings)

    def shard(self, numel: int) -> slice:
        """The part of a bucket that this rank's error and statistics are about: all of it."""
        return slice(0, numel)

    def agree(self, name: str, layout: str) -> None:
        """Nothing: the channel compares every layout when it first comes."""

    def coded(
        self,
        buffer: Tensor,
        codec: Codec,
        *,
        name: str,
        runs: Sequence[Run],
        algorithm: Any,
        seed: int,
        on_stats: Callable[[Any], None],
        residual: Tensor | None = None,
        probe: bool = False,
    ) -> Future[Tensor]:
        """Start to replace ``buffer`` by its mean, compressed on the wire."""
        assert residual is None, "see _check_settings"
        assert not probe, "see GCTState's check of its monitor"
        future, plan = self._channel.all_reduce(
            buffer,
            codec._params,
            name=name,
            settings=self._settings,
            runs=runs,
            mean=True,
            algorithm=algorithm,
            seed=seed,
        )
        if plan is not None:
            on_stats(_RunStats(plan))
        return future

    def traffic(self) -> _C.EngineStats:
        return self._channel.stats()

    def local_bytes(self) -> int:
        return 0

    def scratch_bytes(self) -> int:
        return self._channel.scratch_bytes()

    def close(self) -> None:
        self._channel.close()


class _RunStats:
    """Scale and shape of a plan's runs, fetched from the device when somebody asks."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan

    def tolist(self) -> list[list[float]]:
        return self._plan.run_statistics()


def _check_settings(settings: Mapping[str, Any]) -> None:
    """Raise ValueError for what gradients on a GPU can't have yet."""
    if isinstance(settings["bits"], list):
        raise ValueError("gradients on a GPU can't have bits that change in this version of gct")
    for name, allowed in (
        ("codec", ("gg", "fixed", "raw")),
        ("snr_db", (None,)),
        ("step", (None,)),  # sizes would have to be known beforehand: no less than raw
        ("error_feedback", (False, "auto")),
        ("low_rank", (0,)),
        ("element_scales", (False,)),
        ("effort", ("normal",)),
        ("rate_weight", (0,)),
        ("hierarchy", ("auto", "off")),
        ("checksum", (False,)),
    ):
        if settings[name] not in allowed:
            raise ValueError(
                f"gradients on a GPU can't have {name}={settings[name]!r} in this version of gct, "
                f"only {' or '.join(map(repr, allowed))}"
            )
