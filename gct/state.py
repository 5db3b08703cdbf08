"""The state of the DDP hook: settings, step, residuals, statistics."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from gct._channel import Algorithm, check_backend, resolve_group
from gct._hosts import HierarchySetting, check_hierarchy
from gct._parameters import Layout, ParameterKeys, Residuals, make_layout
from gct._rate_term import RateSettings, RateTerm
from gct._reducer import NO_TRAFFIC, Reducer
from gct.codec import Codec, Effort, Kind, Rounding
from gct.monitor import Monitor, as_monitor

__all__ = ["GCTState", "ParameterStats", "Stats"]

_logger = logging.getLogger("gct")

_STATE_VERSION = 1
_CODEC_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class ParameterStats(TypedDict):
    """How one parameter's gradient was distributed when this rank last sent it."""

    shape: float  # of the generalized Gaussian, after each block's scale was divided out
    scale: float  # mean absolute value


class Stats(TypedDict):
    """Totals of this rank since the state was made, except where said otherwise.

    With a hierarchy raw_bytes, wire_bytes and bits_per_element are about what crosses between
    hosts, and a rank's parameters are those in its share of a bucket.
    """

    steps: int  # backward passes that were synchronized
    codec: str  # the codec's kind; codec="auto" may have become "fp32" or "bf16", after start_step
    codec_seconds: dict[str, float]  # what codec="auto" has measured: a bucket of 25 MB each way
    raw_bytes: int  # what a ring all-reduce of the same buckets, uncompressed, would have sent
    wire_bytes: int  # handed to the process group for other ranks, all headers counted
    local_bytes: int  # with a hierarchy: uncompressed, for ranks of this host; not in wire_bytes
    ratio: float  # raw_bytes / wire_bytes
    bits_per_element: float  # mean size of what was encoded, exempt parameters and headers included
    plain_bytes: int  # sent by ordinary all-reduces (first steps, small buckets), as in a ring
    encode_seconds: float
    wait_seconds: float  # for the process group, in the engine's two threads
    decode_seconds: float  # decoding and adding
    nonfinite_runs: int  # runs that held NaN or Inf and were sent as NaN
    scratch_bytes: int  # held now, without residuals
    parameters: dict[str, ParameterStats]


class GCTState:
    """What :func:`gct.hook` needs; one for each DDP model.

        state = gct.GCTState(bits=2.0)
        model.register_comm_hook(state, gct.hook)

    All ranks make theirs with the same settings. At its first use it makes two private process
    groups among the ranks of ``process_group``.

    Args:
        process_group: the one that DDP uses, Gloo on the CPU; None is the default group.
        bits, snr_db, step: the codec's target, at most one of them; see :class:`gct.Codec`.
            2.0 bits per element if none is given.
        codec: the codec's kind, ``"gg"``, ``"eg"``, ``"fixed"`` or ``"raw"``; or ``"auto"``: at its
            first use, in under a second, the state measures all-reduces in float32, in bfloat16
            and with ``"gg"``, and takes the first of them that is not over 10 % slower than the
            best, the same on all ranks. The log and :meth:`stats` tell which.
        rounding: ``"deterministic"`` or ``"stochastic"``.
        error_feedback: add what one step's encoding left out to the next step's gradient. Costs 4
            bytes per element and an addition. ``"auto"`` is False: measured, it hurts AdamW.
        allocation: how steps of the quantizer follow scales; see :class:`gct.Codec`.
        low_rank: largest rank of matrices' low-rank parts, 0 for none; see :class:`gct.Codec`.
            They lower the squared error, and yet they hurt AdamW at equal bytes: measured.
        effort: ``"high"``: less error at the same bits, for more time in the encoder; see
            :class:`gct.Codec`. With ``codec="auto"`` it counts in what is measured.
        start_step: backward passes before this one are reduced without compression. The first
            gradients are unlike all others, and DDP regroups its buckets after the first pass.
        min_numel: buckets with fewer elements are reduced without compression.
        rate_weight: of the rate term that :class:`gct.GradientConstraint` describes, with its
            defaults, added to each gradient as soon as it is reduced; the same bits on all ranks.
            Costs 8 bytes per element. 0: off. With a GradScaler better call the constraint's own
            ``apply()`` after ``unscale_``: here a change of the loss scale looks like curvature
            for one step.
        algorithm: ``"auto"``, ``"one_shot"`` or ``"two_shot"``; see :func:`gct.all_reduce`.
        hierarchy: ranks that share a host add up among themselves first, uncompressed in float32,
            and each reduces its share of the bucket, compressed, with one rank of every other
            host: fewer bytes between hosts by the number of ranks on each, and the error of as
            many fewer quantizations. ``"auto"``: where there are several hosts with the same
            number of ranks, more than one, by what torchrun says or by the hosts' names;
            ``"off"``; the number of ranks on each host, in rank order; or each host's ranks (of
            ``process_group``), in lists of equal length. One host, or one rank on each, is "off".
        seed: for stochastic rounding; the same on all ranks.
        model: gives parameters their names in :meth:`stats` and :meth:`state_dict`. Without it
            their keys are "0", "1", ... in the order in which DDP hands them over.
        monitor: a :class:`gct.Monitor`, or a path for one with its defaults: records statistics by
            parameter while training.

    Parameters with fewer than two dimensions (norm gains, biases), up to 65,536 elements, travel
    uncompressed with the rest of their bucket. They and the headers come out of ``bits``, but take
    at most a quarter of what the other parameters would have; beyond that a bucket takes more than
    ``bits``. bfloat16 and float16 gradients are added in float32. A gradient with NaN
    or Inf anywhere comes out non-finite on all ranks, so that a GradScaler skips the step.

    Pickling and copying leave the process group, the monitor and the statistics out; the copy uses
    the default group.

    Raises:
        ValueError: settings out of range, or a group of another backend.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        bits: float | None = None,
        snr_db: float | None = None,
        step: float | None = None,
        codec: Kind | Literal["auto"] = "gg",
        rounding: Rounding = "deterministic",
        error_feedback: bool | Literal["auto"] = "auto",
        allocation: str | float = "auto",
        low_rank: int = 0,
        effort: Effort = "normal",
        start_step: int = 2,
        min_numel: int = 1024,
        rate_weight: float = 0.0,
        algorithm: Algorithm = "auto",
        hierarchy: HierarchySetting = "auto",
        seed: int = 0,
        model: nn.Module | None = None,
        monitor: Monitor | str | os.PathLike[str] | None = None,
    ) -> None:
        self._settings: dict[str, Any] = {
            "bits": bits,
            "snr_db": snr_db,
            "step": step,
            "codec": codec,
            "rounding": rounding,
            "error_feedback": error_feedback,
            "allocation": allocation,
            "low_rank": low_rank,
            "effort": effort,
            "start_step": start_step,
            "min_numel": min_numel,
            "rate_weight": rate_weight,
            "algorithm": algorithm,
            "hierarchy": check_hierarchy(hierarchy),
            "seed": seed,
        }
        self.codec = Codec(
            "gg" if codec == "auto" else codec,
            bits=bits,
            snr_db=snr_db,
            step=step,
            allocation=allocation,
            low_rank=low_rank,
            rounding=rounding,
            effort=effort,
        )
        _check_settings(self._settings)
        rate_settings = RateSettings(rate_weight)
        if process_group is not None:
            if not isinstance(process_group, dist.ProcessGroup):
                raise TypeError(
                    "process_group must be a process group or None, got "
                    f"{type(process_group).__name__}; settings go by name, such as bits=2.0"
                )
            check_backend(process_group)
        self.error_feedback = error_feedback is True
        self.start_step = start_step
        self.min_numel = min_numel
        self.algorithm: Algorithm = algorithm
        self.seed = seed
        self.step = 0  # backward passes so far

        self._group = process_group
        self._reducer: Reducer | None = None
        self._keys = ParameterKeys(model)
        self._residuals = Residuals(self._keys)
        self._loaded_hosts: int | None = None  # of the run that saved the residuals
        self._rate_term = RateTerm(self._keys, rate_settings) if rate_weight else None
        self._layouts: dict[int, Layout] = {}
        self._open = True  # the first step: parameters may still be new
        self._seen: set[int] = set()  # buckets of this step (compiled DDP: parameters)
        self._warned = False
        self._run_stats: dict[int, tuple[Layout, Tensor]] = {}
        self.monitor = as_monitor(monitor)
        if self.monitor is not None:
            self.monitor.attach(self, self._settings)

    # What the hook calls.

    def reduce_bucket(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """Start the reduction of a bucket to its mean over all ranks."""
        index = bucket.index()
        parameters = bucket.parameters()
        layout = self._enter(index, parameters)
        buffer = bucket.buffer()
        if self._goes_plain(buffer):
            future = self._reduce_plain(buffer, f"bucket {index}")
        else:
            residual = (
                self._residuals.for_bucket(index, parameters) if self.error_feedback else None
            )
            future = self._reduce(buffer, layout, index, residual, f"bucket {index}")
        if self._rate_term is not None:
            future = self._rate_term.after(future, bucket)
        if bucket.is_last():
            self._end_step()
        return future

    def reduce_gradient(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        """Reduce one parameter's gradient, in place, and wait: compiled DDP's way.

        There is no bucket and no last one: a step ends when a parameter comes again.
        """
        index = id(parameter)
        if index in self._seen:
            self._end_step()
        layout = self._enter(index, [parameter])
        name = f"parameter {layout.keys[0]}"
        if self._goes_plain(gradient) or layout.runs[0].raw:
            reduced = self._reduce_plain(gradient, name).wait()
        else:
            residual = (
                self._residuals.for_bucket(index, [parameter]) if self.error_feedback else None
            )
            reduced = self._reduce(gradient, layout, index, residual, name).wait()
        if self._rate_term is not None:
            self._rate_term.add_to(reduced, parameter)
        return reduced

    def serves(self, index: int, parameters: Sequence[Tensor]) -> bool:
        """Whether a bucket is of the model that this state was registered with."""
        if all(self._keys.knows(p) for p in parameters):
            return True
        return (
            self._open
            and index not in self._seen
            and not any(self._keys.knows(p) for p in parameters)
        )

    # Where things stand.

    def stats(self) -> Stats:
        """Bytes, rates, times, and shape and scale by parameter; see :class:`Stats`."""
        reducer = self._reducer
        traffic = reducer.traffic() if reducer is not None else NO_TRAFFIC
        raw, wire, numel = (traffic[n] for n in ("raw_bytes", "wire_bytes", "encoded_numel"))
        return {
            "steps": self.step,
            "codec": self._codec_in_use(),
            "codec_seconds": dict(reducer.seconds) if reducer is not None else {},
            "raw_bytes": raw,
            "wire_bytes": wire,
            "local_bytes": reducer.local_bytes() if reducer is not None else 0,
            "ratio": raw / wire if wire else 1.0,
            "bits_per_element": 8 * traffic["encoded_bytes"] / numel if numel else 0.0,
            "plain_bytes": reducer.plain_bytes if reducer is not None else 0,
            "encode_seconds": traffic["encode_seconds"],
            "wait_seconds": traffic["wait_seconds"],
            "decode_seconds": traffic["decode_seconds"],
            "nonfinite_runs": traffic["nonfinite_runs"],
            "scratch_bytes": reducer.scratch_bytes() if reducer is not None else 0,
            "parameters": self._parameter_stats(),
        }

    def counters(self) -> dict[str, Any]:
        """The engine's totals, for a monitor."""
        if self._reducer is None:
            return {"plain_bytes": 0, "steps": self.step}
        own = {"plain_bytes": self._reducer.plain_bytes, "steps": self.step}
        return {**own, **self._reducer.traffic()}

    def parameter_order(self) -> list[str]:
        """Keys of the parameters that are compressed, in the model's order; for a monitor."""
        coded = {key for layout in self._layouts.values() for key in layout.keys}
        return [key for key in self._keys.order() if key in coded]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the step, this rank's residuals and the rate term's memory.

        Residuals differ from rank to rank: with error feedback every rank saves its own. The rest
        is the same on all ranks.
        """
        reducer = self._reducer
        return {
            "version": _STATE_VERSION,
            "step": self.step,
            "settings": dict(self._settings),
            "rank": reducer.rank if reducer is not None else None,
            "world_size": reducer.size if reducer is not None else None,
            "hosts": reducer.hosts if reducer is not None else self._loaded_hosts,
            "residuals": self._residuals.state_dict(),
            "rate_term": self._rate_term.state_dict() if self._rate_term is not None else {},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; settings stay what this state was made with.

        Residuals are an error not yet sent, of one rank: they are dropped, with a warning in the
        log, if they were saved by another rank, in a world of another size or with another number
        of hosts.

        Raises:
            ValueError: not from :meth:`state_dict`, or of another version.
        """
        version = state_dict.get("version")
        if version != _STATE_VERSION:
            raise ValueError(
                f"expected a GCTState's state_dict of version {_STATE_VERSION}, got {version!r}"
            )
        self._restore(state_dict, state_dict["residuals"])
        saved_by = (state_dict["rank"], state_dict["world_size"])
        if None not in saved_by and saved_by != self._place():
            self._drop_residuals("rank {} of {}".format(*saved_by))

    def close(self) -> None:
        """End the engine's threads. Not needed: the interpreter's exit does it too."""
        if self._reducer is not None:
            self._reducer.close()

    def __getstate__(self) -> dict[str, Any]:
        _logger.info("gct: the process group is not part of a pickled or copied GCTState")
        return {"settings": self._settings, "state_dict": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["settings"])  # type: ignore[misc]
        self._restore(state["state_dict"], state["state_dict"]["residuals"])

    # How it works.

    def _restore(self, saved: Mapping[str, Any], residuals: dict[str, Tensor]) -> None:
        self.step = int(saved["step"])
        self._loaded_hosts = saved.get("hosts", 1)  # not in 0.1's
        self._residuals.load_state_dict(residuals)
        if self._rate_term is not None:
            self._rate_term.load_state_dict(saved.get("rate_term", {}))  # not in 0.1's

    def _drop_residuals(self, whose: str) -> None:
        """Those that another rank, or this one among other hosts, has saved."""
        if self._residuals.state_dict():
            rank, size = self._place()
            _logger.warning("gct: residuals of %s are dropped on rank %s of %s", whose, rank, size)
            self._residuals.load_state_dict({})

    def _enter(self, index: int, parameters: Sequence[Tensor]) -> Layout:
        """Note that a bucket of this step is here; its layout."""
        layout = self._layouts.get(index)
        if layout is None or layout.ids != tuple(map(id, parameters)):
            if not self.serves(index, parameters):
                raise RuntimeError(
                    "this GCTState already serves another model: make one GCTState for each "
                    "model that a hook is registered on"
                )
            for parameter in parameters:
                self._keys.add(parameter)
            layout = self._layouts[index] = make_layout(parameters, self._keys)
        reducer = self._open_reducer()
        if self.monitor is not None and not self._seen:
            self.monitor.begin_step(self.step, reducer.rank, reducer.size)
        self._seen.add(index)
        return layout

    def _end_step(self) -> None:
        self.step += 1
        if self.monitor is not None:
            self.monitor.end_step()
        self._open = False
        self._seen.clear()

    def _open_reducer(self) -> Reducer:
        if self._reducer is None:
            self._group = resolve_group(self._group)
            try:
                self._reducer = Reducer(self._group, self._settings, self.codec)
            except RuntimeError as error:
                rank, size = self._group.rank(), self._group.size()
                raise RuntimeError(
                    f"gct: setting up the compressed collectives failed on rank {rank} of {size}; "
                    f"is every rank at its first backward pass? {error}"
                ) from error
            if self._loaded_hosts not in (None, self._reducer.hosts):
                self._drop_residuals(f"hierarchy of {self._loaded_hosts} host(s)")
        return self._reducer

    def _goes_plain(self, buffer: Tensor) -> bool:
        if buffer.device.type != "cpu":
            raise ValueError(
                f"this version of gct works on CPU gradients, got a bucket on {buffer.device}"
            )
        if buffer.dtype not in _CODEC_DTYPES or buffer.layout != torch.strided:
            if not self._warned:
                self._warned = True
                _logger.warning(
                    "gct: %s %s gradients are reduced without compression",
                    buffer.layout,
                    buffer.dtype,
                )
            return True
        return (
            self.step < self.start_step
            or buffer.numel() < self.min_numel
            or self._open_reducer().plain_kind is not None
        )

    def _reduce_plain(self, buffer: Tensor, what: str) -> Future[Tensor]:
        """The mean over all ranks without the codec."""
        reducer = self._open_reducer()
        kind = reducer.plain_kind if self.step >= self.start_step else None
        return reducer.plain(buffer, f"{what} of step {self.step}", kind or "fp32")

    def _reduce(
        self, buffer: Tensor, layout: Layout, index: int, residual: Tensor | None, what: str
    ) -> Future[Tensor]:
        reducer = self._open_reducer()
        shard = reducer.shard(buffer.numel())
        layout = layout.cut(shard)
        latest = self._run_stats  # not self: the engine must not keep its owner alive
        watch = None
        if self.monitor is not None and self.monitor.sampling:
            watch = self.monitor.watch(layout.keys, layout.runs, buffer.reshape(-1)[shard])

        def keep(run_stats: Tensor) -> None:
            latest[index] = (layout, run_stats)
            if watch is not None:
                watch(run_stats)

        return reducer.coded(
            buffer,
            name=f"{what} of step {self.step}",
            residual=residual[shard] if residual is not None else None,
            runs=layout.runs,
            algorithm=self.algorithm,
            seed=(self.seed << 40) + (self.step << 16) + len(self._seen),
            probe=watch is not None,
            on_stats=keep,
        )

    def _parameter_stats(self) -> dict[str, ParameterStats]:
        result: dict[str, ParameterStats] = {}
        for layout, run_stats in list(self._run_stats.values()):
            for key, (scale, shape, *_) in zip(layout.keys, run_stats.tolist(), strict=True):
                if key is not None:
                    result[key] = {"shape": shape, "scale": scale}
        return result

    def _codec_in_use(self) -> str:
        """The setting; once ``"auto"`` has been measured, what it stands for."""
        if self._reducer is None:
            return str(self._settings["codec"])
        return self._reducer.plain_kind or self.codec.kind

    def _place(self) -> tuple[int | None, int | None]:
        """This rank and the number of ranks, as far as they can be known now."""
        if self._reducer is not None:
            return self._reducer.rank, self._reducer.size
        if not dist.is_initialized():
            return None, None
        return dist.get_rank(self._group), dist.get_world_size(self._group)


def _check_settings(settings: Mapping[str, Any]) -> None:
    if settings["error_feedback"] not in (True, False, "auto"):
        raise ValueError(
            f'error_feedback must be True, False or "auto", got {settings["error_feedback"]!r}'
        )
    for name in ("start_step", "min_numel", "seed"):
        value = settings[name]
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ValueError(f"{name} must be a whole number from 0 on, got {value!r}")
    if settings["algorithm"] not in ("auto", "one_shot", "two_shot"):
        raise ValueError(
            f"algorithm must be auto, one_shot or two_shot, got {settings['algorithm']!r}"
        )
