"""The schemes that are compared: each is the DDP hook that a training run would register.

fp32, bf16, fp16            torch's allreduce_hook, bf16_compress_hook, fp16_compress_hook
powersgd-R                  torch's powerSGD_hook of rank R, else its defaults
gct, gct-BITS, gct-KIND, gct-KIND-BITS
                            gct.hook, KIND gg, eg, fixed, raw or auto
...:NAME=VALUE,NAME=VALUE   further arguments of PowerSGDState or gct.GCTState, such as
                            gct-1.2:element_scales=true,algorithm=two_shot
"""

from __future__ import annotations

import json
import re
import time
from typing import Any, Protocol

import torch
from torch.distributed.algorithms.ddp_comm_hooks import default_hooks
from torch.nn.parallel import DistributedDataParallel

from multihost.bucket import Bucket
from multihost.errors import UserError
from multihost.stages import AllReduceClock, Stages

DEFAULT_SCHEMES = (
    "fp32", "bf16", "fp16", "powersgd-1", "powersgd-4", "powersgd-32",
    "gct-1.5", "gct-2", "gct-3", "gct-eg-2", "gct-fixed-4",
)  # fmt: skip
_HALVES = {"bf16": default_hooks.bf16_compress_hook, "fp16": default_hooks.fp16_compress_hook}
_POWERSGD_START = 2  # torch's least with error feedback and warm start, its defaults


class Reducer(Protocol):
    """One scheme on this rank."""

    def reduce(self, bucket: Bucket) -> tuple[float, Stages]:
        """Replace the bucket's values by the mean over ranks; seconds, and where they went."""

    def register(self, model: DistributedDataParallel) -> None:
        """As a training run does it, instead of reduce()."""

    def reported_bytes(self) -> int | None:
        """What the scheme itself says that it has sent so far; None where it does not say."""

    def forget(self) -> None:
        """Drop what was kept for the last size, so that the next one starts afresh."""

    def chosen(self) -> str | None:
        """What it decided to be, where that was left to it."""

    def close(self) -> None:
        """Give back threads and memory."""


def make_reducer(scheme: str) -> Reducer:
    """The reducer that a scheme's name says; see the module's first lines.

    Raises:
        UserError: a name or an argument that is not understood, or gct can't be imported.
    """
    name, _, rest = scheme.partition(":")
    options = _options(scheme, rest)
    if name == "fp32" and not options:
        return TorchHook(default_hooks.allreduce_hook, None)
    if name in _HALVES and not options:
        return TorchHook(_HALVES[name], None)
    if match := re.fullmatch(r"powersgd-([1-9]\d*)", name):
        return PowerSGD(int(match[1]), options)
    if match := re.fullmatch(r"gct(?:-([a-z]+))?(?:-(\d+(?:\.\d+)?))?", name):
        return Gct(scheme, match[1], match[2], options)
    raise UserError(
        f"Unknown scheme {scheme!r}: expected fp32, bf16, fp16, powersgd-RANK, gct, gct-BITS, "
        "gct-KIND or gct-KIND-BITS, the last five also with :NAME=VALUE,..."
    )


class TorchHook:
    """A hook of torch's that reduces with dist.all_reduce."""

    def __init__(self, hook: Any, state: Any) -> None:
        self._hook = hook
        self._state = state
        self._clock = AllReduceClock()

    def reduce(self, bucket: Bucket) -> tuple[float, Stages]:
        with self._clock.watching():
            began = time.perf_counter()
            result = self._hook(self._state, bucket).wait()
            _synchronize(result)
            ended = time.perf_counter()
        if result.data_ptr() != bucket.buffer().data_ptr():
            bucket.set_buffer(result)
        return ended - began, self._clock.stages(began, ended)

    def register(self, model: DistributedDataParallel) -> None:
        # DDP refuses torch's bf16 hook by its name where there is no NCCL; with Gloo it works.
        model.register_comm_hook(self._state, lambda state, bucket: self._hook(state, bucket))

    def reported_bytes(self) -> int | None:
        return None

    def forget(self) -> None:
        return

    def chosen(self) -> str | None:
        return None

    def close(self) -> None:
        return


class PowerSGD(TorchHook):
    """Low-rank approximation with warm start and error feedback (arXiv 1905.13727)."""

    def __init__(self, rank: int, options: dict[str, Any]) -> None:
        try:
            from torch.distributed.algorithms.ddp_comm_hooks import powerSGD_hook
        except ImportError as error:
            raise UserError(f"torch's powerSGD_hook needs numpy ({error}): install it.") from error
        settings = {"start_powerSGD_iter": _POWERSGD_START, **options}
        try:
            state = powerSGD_hook.PowerSGDState(None, matrix_approximation_rank=rank, **settings)
        except (TypeError, ValueError) as error:
            raise UserError(f"powersgd-{rank}: {error}") from error
        state.iter = state.start_powerSGD_iter  # what is measured is compression
        super().__init__(powerSGD_hook.powerSGD_hook, state)

    def forget(self) -> None:
        for memory in ("error_dict", "p_memory_dict", "q_memory_dict"):
            getattr(self._state, memory).clear()


class Gct:
    """gct.hook; compressed from the first call on."""

    def __init__(
        self, scheme: str, kind: str | None, bits: str | None, options: dict[str, Any]
    ) -> None:
        try:
            import gct
        except ImportError as error:
            raise UserError(
                f"{scheme}: the package gct can't be imported ({error}): run 'pip install .' in "
                "the repository, or leave it out of --schemes."
            ) from error
        settings: dict[str, Any] = {"start_step": 0, "min_numel": 0, **options}
        if kind is not None:
            settings["codec"] = kind
        if bits is not None:
            settings["bits"] = float(bits)
        try:
            self._state = gct.GCTState(**settings)
        except (TypeError, ValueError) as error:
            raise UserError(f"{scheme}: {error}") from error
        self._codec = settings.get("codec")
        self._hook = gct.hook
        self._before: Any = self._state.stats()

    def reduce(self, bucket: Bucket) -> tuple[float, Stages]:
        began = time.perf_counter()
        result = self._hook(self._state, bucket).wait()
        _synchronize(result)
        ended = time.perf_counter()
        before, self._before = self._before, self._state.stats()
        spent = {
            stage: self._before[f"{stage}_seconds"] - before[f"{stage}_seconds"]
            for stage in ("encode", "wait", "decode")
        }
        return ended - began, Stages(spent["encode"], spent["wait"], spent["decode"])

    def register(self, model: DistributedDataParallel) -> None:
        model.register_comm_hook(self._state, self._hook)

    def reported_bytes(self) -> int | None:
        return int(self._state.stats()["wire_bytes"])

    def forget(self) -> None:
        return  # residuals and scales belong to parameters, and other sizes have others

    def chosen(self) -> str | None:
        if self._codec != "auto":
            return None
        stats = self._state.stats()
        took = ", ".join(f"{way} {1e3 * s:.1f} ms" for way, s in stats["codec_seconds"].items())
        width = f" at {self._state.codec.bits:g} bits" if stats["codec"] == "fixed" else ""
        return f"{stats['codec']}{width} (a bucket of 25 MB takes {took})"

    def close(self) -> None:
        self._state.close()


def _synchronize(tensor: torch.Tensor) -> None:
    if tensor.device.type == "cuda":
        torch.cuda.synchronize(tensor.device)


def _options(scheme: str, text: str) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for item in filter(None, text.split(",")):
        name, equals, value = item.partition("=")
        if not equals or not name.isidentifier():
            raise UserError(f"{scheme}: expected NAME=VALUE after the colon, got {item!r}.")
        try:
            options[name] = json.loads(value.lower() if value in ("True", "False") else value)
        except json.JSONDecodeError:
            options[name] = value
    return options


def check_schemes(schemes: list[str]) -> None:
    """Raise UserError for a name that is not understood, before anything has been started."""
    for scheme in schemes:
        make_reducer(scheme).close()
