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

from gct._channel import Algorithm, Channel, check_backend, resolve_group, result_or_raise
from gct._parameters import Layout, ParameterKeys, Residuals, make_layout
from gct._rate_term import RateSettings, RateTerm
from gct.codec import Codec, Kind, Rounding
from gct.monitor import Monitor, as_monitor

__all__ = ["GCTState", "ParameterStats", "Stats"]

_logger = logging.getLogger("gct")

_STATE_VERSION = 1
_CODEC_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_HALF_DTYPES = (torch.bfloat16, torch.float16)


class ParameterStats(TypedDict):
    """How one parameter's gradient was distributed when this rank last sent it."""

    shape: float  # of the generalized Gaussian, after each block's scale was divided out
    scale: float  # mean absolute value


class Stats(TypedDict):
    """Totals of this rank since the state was made, except where said otherwise."""

    steps: int  # backward passes that were synchronized
    raw_bytes: int  # what a ring all-reduce of the same buckets, uncompressed, would have sent
    wire_bytes: int  # handed to the process group for other ranks, all headers counted
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
        codec: the codec's kind, ``"gg"``, ``"eg"``, ``"fixed"`` or ``"raw"``.
        rounding: ``"deterministic"`` or ``"stochastic"``.
        error_feedback: add what one step's encoding left out to the next step's gradient. Costs 4
            bytes per element and an addition. ``"auto"`` is False: measured, it hurts AdamW.
        allocation: how steps of the quantizer follow scales; see :class:`gct.Codec`.
        low_rank: largest rank of matrices' low-rank parts, 0 for none; see :class:`gct.Codec`.
            They lower the squared error, and yet they hurt AdamW at equal bytes: measured.
        start_step: backward passes before this one are reduced without compression. The first
            gradients are unlike all others, and DDP regroups its buckets after the first pass.
        min_numel: buckets with fewer elements are reduced without compression.
        rate_weight: of the rate term that :class:`gct.GradientConstraint` describes, with its
            defaults, added to each gradient as soon as it is reduced; the same bits on all ranks.
            Costs 8 bytes per element. 0: off. With a GradScaler better call the constraint's own
            ``apply()`` after ``unscale_``: here a change of the loss scale looks like curvature
            for one step.
        algorithm: ``"auto"``, ``"one_shot"`` or ``"two_shot"``; see :func:`gct.all_reduce`.
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
        codec: Kind = "gg",
        rounding: Rounding = "deterministic",
        error_feedback: bool | Literal["auto"] = "auto",
        allocation: str | float = "auto",
        low_rank: int = 0,
        start_step: int = 2,
        min_numel: int = 1024,
        rate_weight: float = 0.0,
        algorithm: Algorithm = "auto",
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
            "start_step": start_step,
            "min_numel": min_numel,
            "rate_weight": rate_weight,
            "algorithm": algorithm,
            "seed": seed,
        }
        self.codec = Codec(
            codec,
            bits=bits,
            snr_db=snr_db,
            step=step,
            allocation=allocation,
            low_rank=low_rank,
            rounding=rounding,
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
        self._channel: Channel | None = None
        self._keys = ParameterKeys(model)
        self._residuals = Residuals(self._keys)
        self._rate_term = RateTerm(self._keys, rate_settings) if rate_weight else None
        self._layouts: dict[int, Layout] = {}
        self._open = True  # the first step: parameters may still be new
        self._seen: set[int] = set()  # buckets of this step (compiled DDP: parameters)
        self._plain_bytes = 0
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
        engine = self._channel.stats() if self._channel is not None else None
        raw, wire = (engine["raw_bytes"], engine["wire_bytes"]) if engine else (0, 0)
        numel = engine["encoded_numel"] if engine else 0
        return {
            "steps": self.step,
            "raw_bytes": raw,
            "wire_bytes": wire,
            "ratio": raw / wire if wire else 1.0,
            "bits_per_element": 8 * engine["encoded_bytes"] / numel if engine and numel else 0.0,
            "plain_bytes": self._plain_bytes,
            "encode_seconds": engine["encode_seconds"] if engine else 0.0,
            "wait_seconds": engine["wait_seconds"] if engine else 0.0,
            "decode_seconds": engine["decode_seconds"] if engine else 0.0,
            "nonfinite_runs": engine["nonfinite_runs"] if engine else 0,
            "scratch_bytes": self._channel.scratch_bytes() if self._channel is not None else 0,
            "parameters": self._parameter_stats(),
        }

    def counters(self) -> dict[str, Any]:
        """The engine's totals, for a monitor."""
        own: dict[str, Any] = {"plain_bytes": self._plain_bytes, "steps": self.step}
        return own if self._channel is None else {**own, **self._channel.stats()}

    def parameter_order(self) -> list[str]:
        """Keys of the parameters that are compressed, in the model's order; for a monitor."""
        coded = {key for layout in self._layouts.values() for key in layout.keys}
        return [key for key in self._keys.order() if key in coded]

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs: the step, this rank's residuals and the rate term's memory.

        Residuals differ from rank to rank: with error feedback every rank saves its own. The rest
        is the same on all ranks.
        """
        return {
            "version": _STATE_VERSION,
            "step": self.step,
            "settings": dict(self._settings),
            "rank": self._channel.rank if self._channel is not None else None,
            "world_size": self._channel.size if self._channel is not None else None,
            "residuals": self._residuals.state_dict(),
            "rate_term": self._rate_term.state_dict() if self._rate_term is not None else {},
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`; settings stay what this state was made with.

        Residuals are an error not yet sent, of one rank: they are dropped, with a warning in the
        log, if they were saved by another rank or in a world of another size.

        Raises:
            ValueError: not from :meth:`state_dict`, or of another version.
        """
        version = state_dict.get("version")
        if version != _STATE_VERSION:
            raise ValueError(
                f"expected a GCTState's state_dict of version {_STATE_VERSION}, got {version!r}"
            )
        residuals = dict(state_dict["residuals"])
        saved_by = (state_dict["rank"], state_dict["world_size"])
        if residuals and None not in saved_by and saved_by != self._place():
            _logger.warning(
                "gct: residuals of rank %s of %s are dropped on rank %s of %s",
                *saved_by,
                *self._place(),
            )
            residuals = {}
        self._restore(state_dict, residuals)

    def close(self) -> None:
        """End the engine's threads. Not needed: the interpreter's exit does it too."""
        if self._channel is not None:
            self._channel.close()

    def __getstate__(self) -> dict[str, Any]:
        _logger.info("gct: the process group is not part of a pickled or copied GCTState")
        return {"settings": self._settings, "state_dict": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["settings"])  # type: ignore[misc]
        self._restore(state["state_dict"], state["state_dict"]["residuals"])

    # How it works.

    def _restore(self, saved: Mapping[str, Any], residuals: dict[str, Tensor]) -> None:
        self.step = int(saved["step"])
        self._residuals.load_state_dict(residuals)
        if self._rate_term is not None:
            self._rate_term.load_state_dict(saved.get("rate_term", {}))  # not in 0.1's

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
        channel = self._open_channel()
        if self.monitor is not None and not self._seen:
            self.monitor.begin_step(self.step, channel.rank, channel.size)
        self._seen.add(index)
        return layout

    def _end_step(self) -> None:
        self.step += 1
        if self.monitor is not None:
            self.monitor.end_step()
        self._open = False
        self._seen.clear()

    def _open_channel(self) -> Channel:
        if self._channel is None:
            self._group = resolve_group(self._group)
            try:
                self._channel = Channel(self._group)
                self._channel.agree(self._settings)
            except RuntimeError as error:
                rank, size = self._group.rank(), self._group.size()
                raise RuntimeError(
                    f"gct: setting up the compressed collectives failed on rank {rank} of {size}; "
                    f"is every rank at its first backward pass? {error}"
                ) from error
            if self._channel.rank == 0:
                _logger.info("gct: %d ranks, %s", self._channel.size, self._settings)
        return self._channel

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
        return self.step < self.start_step or buffer.numel() < self.min_numel

    def _reduce_plain(self, buffer: Tensor, what: str) -> Future[Tensor]:
        """The mean over all ranks without loss."""
        channel = self._open_channel()
        place = f"{what} of step {self.step} failed on rank {channel.rank} of {channel.size}"
        # Gloo adds half-precision values in half precision, or, in some versions, not at all.
        values = buffer.float() if buffer.dtype in _HALF_DTYPES else buffer
        nbytes = values.numel() * values.element_size()
        self._plain_bytes += 2 * nbytes * (channel.size - 1) // channel.size
        values.div_(channel.size)
        work = dist.all_reduce(values, group=self._group, async_op=True)
        assert work is not None

        def result(future: Future[list[Tensor]]) -> Tensor:
            try:
                future.value()  # raises what went wrong
            except RuntimeError as error:
                raise RuntimeError(f"gct: uncompressed all_reduce of {place}: {error}") from error
            return buffer if values is buffer else buffer.copy_(values)

        return work.get_future().then(result)

    def _reduce(
        self, buffer: Tensor, layout: Layout, index: int, residual: Tensor | None, what: str
    ) -> Future[Tensor]:
        latest = self._run_stats  # not self: the engine must not keep its owner alive
        watch = None
        if self.monitor is not None and self.monitor.sampling:
            watch = self.monitor.watch(layout.keys, layout.runs, buffer)

        def keep(run_stats: Tensor) -> None:
            latest[index] = (layout, run_stats)
            if watch is not None:
                watch(run_stats)

        done = self._open_channel().submit(
            "all_reduce",
            buffer,
            self.codec._params,
            name=f"{what} of step {self.step}",
            residual=residual,
            runs=layout.runs,
            mean=True,
            algorithm=self.algorithm,
            seed=(self.seed << 40) + (self.step << 16) + len(self._seen),
            probe=watch is not None,
            on_stats=keep,
        )
        return done.then(lambda done: result_or_raise(done, buffer))

    def _parameter_stats(self) -> dict[str, ParameterStats]:
        result: dict[str, ParameterStats] = {}
        for layout, run_stats in list(self._run_stats.values()):
            for key, (scale, shape, *_) in zip(layout.keys, run_stats.tolist(), strict=True):
                if key is not None:
                    result[key] = {"shape": shape, "scale": scale}
        return result

    def _place(self) -> tuple[int | None, int | None]:
        """This rank and the number of ranks, as far as they can be known now."""
        if self._channel is not None:
            return self._channel.rank, self._channel.size
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
