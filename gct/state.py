"""The state of the DDP hook: settings, step, residuals, statistics."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.futures import Future

from gct._bits import Bits, as_setting
from gct._channel import Algorithm, check_backend, num_threads, resolve_group
from gct._checks import plain_number
from gct._codecs import codec_at, codecs_by_kind
from gct._device_channel import DEVICE_DTYPES
from gct._device_reducer import DeviceReducer
from gct._element_scales import ElementScales, Part, finish_after
from gct._hosts import HierarchySetting, check_hierarchy
from gct._parameters import Layout, ParameterKeys, describe, make_layout
from gct._rate_term import RateSettings, RateTerm
from gct._reducer import Reducer
from gct._regroup import Buckets, Regroup
from gct._residuals import Residuals
from gct._settings import (
    check_effects,
    check_kind,
    check_settings,
    warn_of_changes,
)
from gct._state_dict import Place, flatten, is_flat, unflatten
from gct._stats import ParameterStats, RunStats, Stats, make_stats
from gct.codec import Codec, Effort, Kind, Reconstruction, Rounding
from gct.monitor import Monitor, as_monitor

__all__ = ["GCTState", "ParameterStats", "Stats"]

_logger = logging.getLogger("gct")

_STATE_VERSION = 1
_CODEC_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class GCTState:
    """What :func:`gct.hook` needs; one for each DDP model.

        state = gct.GCTState(bits=2.0)
        model.register_comm_hook(state, gct.hook)

    All ranks make theirs with the same settings. At its first use it makes two private process
    groups among the ranks of ``process_group``.

    Args:
        process_group: the one that DDP uses, Gloo on the CPU; for gradients on a GPU NCCL or Gloo.
            None is the default group.
        bits, snr_db, step: the codec's target, at most one of them; see :class:`gct.Codec`.
            2.0 bits per element if none is given. ``bits`` may change on the way, on CPU gradients:
            ``{0: 2.0, 300: 0.86}`` are 2 bits up to backward pass 299 and 0.86 since. Of equal
            bytes in all, fine-tuning gained by more of them in the beginning; training from scratch
            lost by it (docs/decisions.md).
        codec: the codec's kind, ``"gg"``, ``"eg"``, ``"fixed"`` or ``"raw"``; or ``"auto"``: at its
            first use, in under a second, the state measures all-reduces in float32, in bfloat16,
            with ``"gg"``, and with ``"fixed"`` of one bit more, rounded up (3 for 2.0 and for 1.5),
            which has about the same error for more bytes and less coding; it takes the first of
            them that is not over 10 % slower than the best, the same on all ranks. The log and
            :meth:`stats` tell which. ``"fixed"`` is left out where it can't follow the other
            settings (all but bits, to 7, error feedback and what isn't the codec's).
        rounding: ``"deterministic"`` or ``"stochastic"``.
        error_feedback: add what one step's encoding left out to the next step's gradient. Costs 4
            bytes per element and an addition. ``"auto"`` is False: measured, it hurts AdamW.
        allocation: how steps of the quantizer follow scales; see :class:`gct.Codec`.
        low_rank: largest rank of matrices' low-rank parts, 0 for none; see :class:`gct.Codec`.
            Fine-tuning with AdamW lost least of all at 0.8 and 1.2 bits with ``low_rank=16,
            allocation=0.5``. From scratch it gained with AdamW, less than element_scales, and
            nothing with SGD (docs/decisions.md). A bucket takes three to five times as long over
            loopback.
        element_scales: divide each gradient by how large its elements were in earlier steps, as far
            as the reduced gradients tell, before it is encoded, and multiply by it afterwards, so
            that the error follows each element's own size. Nothing is sent for it. From 0.8 to 1.2
            bits the three models measured lost less with it; at 2 bits it was of no use with AdamW
            and hurt with SGD (with ``reconstruction="centroid"``; docs/decisions.md). Costs 4 bytes
            per element, and time on one thread before and after each bucket, which
            ``codec="auto"`` does not measure. Statistics are those of the scaled gradients.
            Parameters of fewer than ``min_numel`` elements have no scales. Not together with
            error_feedback.
        effort: ``"high"``: less error at the same bits, for many times the time in the encoder; see
            :class:`gct.Codec`. No benefit for training has been measured. With ``codec="auto"`` its
            time counts in what is measured.
        reconstruction: ``"unit_gain"``: levels that keep the size of gradients, which a learning
            rate was chosen for; ``"centroid"``: levels of the least error, smaller than what was
            encoded, by a fifth to a third at 1.2 bits; see :class:`gct.Codec`. ``"auto"`` is
            ``"unit_gain"`` where the codec has it and nothing is fed back. SGD lost less with it at
            every rate tried; AdamW, which divides by the gradients' own size, is indifferent, but
            for low_rank, from scratch, where it gained (docs/decisions.md). float16 gradients have
            less room above them: the largest come out up to 4 times as large at low rates.
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
        checksum: send a CRC32C behind every segment, and let all ranks confirm each bucket: a bit
            that was flipped on its way becomes a RuntimeError on all of them. Costs 4 bytes for
            each segment, 256 bytes to every rank for each bucket, a message's way there and back
            and, in one more private group, W - 1 connections. Covers what is compressed.
        seed: for stochastic rounding; the same on all ranks.
        model: gives parameters their names in :meth:`stats` and :meth:`state_dict`, the same if it
            is wrapped by DistributedDataParallel or ``torch.compile``. Without it
            their keys are "0", "1", ... in the order in which DDP hands them over.
        monitor: a :class:`gct.Monitor`, or a path for one with its defaults: records statistics by
            parameter while training.

    Parameters with fewer than two dimensions (norm gains, biases), up to 65,536 elements, travel
    uncompressed with the rest of their bucket. They and the headers come out of ``bits``, but take
    at most a quarter of what the other parameters would have; beyond that a bucket takes more than
    ``bits``. bfloat16 and float16 gradients are added in float32. A gradient with NaN
    or Inf anywhere comes out non-finite on all ranks, so that a GradScaler skips the step.

    On a GPU gradients are float32, bfloat16 or float16, and the codec is of kind ``"gg"`` with
    bits, ``"fixed"`` or ``"raw"``; error_feedback, low_rank, element_scales, effort, rate_weight,
    checksum, a monitor and a hierarchy are for CPU gradients in this version (``"auto"`` is off),
    and the first bucket raises ValueError where they are set. Errors that only the device sees make
    a bucket NaN and are raised by the hook's next call.

    Pickling and copying leave the process group, the monitor and the statistics out; the copy uses
    the default group.

    Raises:
        TypeError: an argument of another type.
        ValueError: settings out of range, or without effect beside the others; a value of
            ``GCT_NUM_THREADS`` that is no number of threads; a group of another backend.

    Warns:
        UserWarning: ``element_scales`` with ``codec="raw"``, or a ``seed`` without stochastic
            rounding: they have no effect.
    """

    def __init__(
        self,
        process_group: dist.ProcessGroup | None = None,
        *,
        bits: Bits | None = None,
        snr_db: float | None = None,
        step: float | None = None,
        codec: Kind | Literal["auto"] = "gg",
        rounding: Rounding = "deterministic",
        error_feedback: bool | Literal["auto"] = "auto",
        allocation: str | float = "auto",
        low_rank: int = 0,
        element_scales: bool = False,
        effort: Effort = "normal",
        reconstruction: Reconstruction | Literal["auto"] = "auto",
        start_step: int = 2,
        min_numel: int = 1024,
        rate_weight: float = 0.0,
        algorithm: Algorithm = "auto",
        hierarchy: HierarchySetting = "auto",
        checksum: bool = False,
        seed: int = 0,
        model: nn.Module | None = None,
        monitor: Monitor | str | os.PathLike[str] | None = None,
    ) -> None:
        check_kind(codec)
        self._settings: dict[str, Any] = {
            "bits": as_setting(bits),
            "snr_db": snr_db,
            "step": step,
            "codec": codec,
            "rounding": rounding,
            "error_feedback": error_feedback,
            "allocation": allocation,
            "low_rank": low_rank,
            "element_scales": element_scales,
            "effort": effort,
            "reconstruction": reconstruction,
            "start_step": start_step,
            "min_numel": min_numel,
            "rate_weight": rate_weight,
            "algorithm": algorithm,
            "hierarchy": check_hierarchy(hierarchy),
            "checksum": checksum,
            "seed": seed,
        }
        self._settings = {name: plain_number(value) for name, value in self._settings.items()}
        self._by_kind = codecs_by_kind(self._settings)
        self._codecs = next(iter(self._by_kind.values()))
        check_settings(self._settings)
        check_effects(self._settings)
        num_threads()  # GCT_NUM_THREADS is refused here, not in the first backward pass
        rate_settings = RateSettings(rate_weight)
        if process_group is not None:
            if not isinstance(process_group, dist.ProcessGroup):
                raise TypeError(
                    "process_group must be a process group or None, got "
                    f"{type(process_group).__name__}; settings go by name, such as bits=2.0"
                )
            check_backend(process_group, devices=True)
        self.error_feedback = error_feedback is True
        self.start_step: int = self._settings["start_step"]
        self.min_numel: int = self._settings["min_numel"]
        self.algorithm: Algorithm = algorithm
        self.seed: int = self._settings["seed"]
        self.step = 0  # backward passes so far

        self._group = process_group
        self._reducer: Reducer | DeviceReducer | None = None
        self._device = torch.device("cpu")  # of the first bucket
        self._keys = ParameterKeys(model)
        self._residuals = Residuals(self._keys)
        self._saved_at = Place()  # whose the loaded residuals are
        self._scales = ElementScales(self._keys, self.min_numel) if element_scales else None
        self._rate_term = RateTerm(self._keys, rate_settings) if rate_weight else None
        self._layouts: dict[int, Layout] = {}
        self._agreed: set[int] = set()  # those that all ranks have compared
        self._open = True  # the first step: parameters may still be new
        self._seen: dict[int, None] = {}  # buckets of this step (compiled DDP: parameters)
        self._buckets: Buckets = []  # of the last step: keys of their parameters
        self._regroup: Regroup | None = None  # in the first steps after load_state_dict
        self._choice: str | None = None  # of a saved run with codec="auto"
        self._warned = False
        self._run_stats: RunStats = {}
        self.monitor = as_monitor(monitor)
        if self.monitor is not None:
            self.monitor.attach(self, self._settings)

    @property
    def codec(self) -> Codec:
        """What this step's buckets are compressed with."""
        return codec_at(self._codecs, self.step)

    # What the hook calls.

    def reduce_bucket(self, bucket: dist.GradBucket) -> Future[Tensor]:  # type: ignore[name-defined]
        """Start the reduction of a bucket to its mean over all ranks."""
        index = bucket.index()
        parameters = bucket.parameters()
        buffer = bucket.buffer()
        layout = self._enter(index, parameters, f"bucket {index}", buffer.device)
        parts = self._divide(parameters, buffer)
        regroup = self._regroup
        held = regroup is not None and not regroup.passes(layout.parameters, buffer)
        if regroup is None or not held:
            future = self._reduce_as(index, parameters, layout, buffer, len(self._seen))
        else:
            future = regroup.hold(index, layout.parameters, parameters, buffer)
        if parts:
            # A bucket that is held back is done with the last one, or never if backward fails.
            future = finish_after(future, parts, settle=not held)
        if self._rate_term is not None:
            future = self._rate_term.after(future, bucket)
        if bucket.is_last():
            self._end_step(self._reduce_held())
        return future

    def _reduce_as(
        self,
        index: int,
        parameters: Sequence[Tensor],
        layout: Layout,
        buffer: Tensor,
        number: int,
    ) -> Future[Tensor]:
        """Start the reduction of bucket ``index``, the step's ``number``-th from 1 on."""
        name = f"bucket {index}"
        if self._goes_plain(buffer):
            return self._reduce_plain(buffer, name)
        residual = self._residuals.for_bucket(index, parameters) if self.error_feedback else None
        return self._reduce(buffer, layout, index, residual, name, number)

    def _reduce_held(self) -> Buckets | None:
        """After the last bucket of a resumed run's first steps: those that wait; the buckets."""
        if self._regroup is None:
            return None
        regroup, self._regroup = self._regroup, None
        reductions = []
        for group in regroup.groups():
            index, parameters = group.index, group.parameters
            layout = make_layout(parameters, self._keys)
            future = self._reduce_as(index, parameters, layout, group.joined(), index + 1)
            reductions.append((group, future))
        regroup.finish(reductions)
        if regroup.buckets and regroup.passes_left:
            self._regroup = Regroup(regroup.buckets, regroup.passes_left - 1)
        return regroup.buckets

    def reduce_gradient(self, gradient: Tensor, parameter: Tensor) -> Tensor:
        """Reduce one parameter's gradient, in place, and wait: compiled DDP's way.

        There is no bucket and no last one: a step ends when a parameter comes again.
        """
        index = id(parameter)
        if index in self._seen:
            self._regroup = None  # there are no buckets
            self._end_step()
        layout = self._enter(index, [parameter], "a parameter", gradient.device)
        name = f"parameter {layout.keys[0]}"
        parts = self._divide([parameter], gradient)
        if self._goes_plain(gradient) or layout.runs[0].raw:
            reduced = self._reduce_plain(gradient, name).wait()
        else:
            residual = (
                self._residuals.for_bucket(index, [parameter]) if self.error_feedback else None
            )
            number = len(self._seen)
            reduced = self._reduce(gradient, layout, index, residual, name, number).wait()
        for part in parts:
            part.finish()
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
        return make_stats(self.step, self._codec_in_use(), self._reducer, self._run_stats)

    def counters(self) -> dict[str, Any]:
        """The engine's totals, for a monitor."""
        if self._reducer is None:
            return {"plain_bytes": 0, "steps": self.step}
        own = {"plain_bytes": self._reducer.plain.bytes, "steps": self.step}
        return {**own, **self._reducer.traffic()}

    def parameter_order(self) -> list[str]:
        """Keys of the parameters that are compressed, in the model's order; for a monitor."""
        coded = {key for layout in self._layouts.values() for key in layout.keys}
        return [key for key in self._keys.order() if key in coded]

    def compressible_names(self) -> list[str]:
        """Names that may come under parameter_order(); none without ``model``; for a monitor."""
        return self._keys.compressible()

    def state_dict(self, *, flat: bool = False) -> dict[str, Any]:
        """What a resumed run needs to go on with the same bits: see docs/reliability.md.

        The step, this rank's residuals, the elements' scales, the rate term's memory, the buckets
        and what ``codec="auto"`` has chosen. Residuals differ
        from rank to rank: with error feedback every rank saves its own. The rest is the same on all
        ranks.

        Args:
            flat: 1-D and other tensors alone by name, for files that hold nothing else, such as
                safetensors'. Without it numbers, texts, lists, dicts and tensors, which torch.load
                reads with ``weights_only=True``.
        """
        here = self._place() if self._reducer is not None else self._saved_at
        state_dict: dict[str, Any] = {
            "version": _STATE_VERSION,
            "step": self.step,
            "settings": dict(self._settings),
            **here._asdict(),
            "residuals": self._residuals.state_dict(complete=self.error_feedback),
            "element_scales": self._scales.state_dict() if self._scales is not None else {},
            "rate_term": self._rate_term.state_dict() if self._rate_term is not None else {},
            "buckets": [list(keys) for keys in self._buckets],
            "appeared": self._keys.appeared(),
            "choice": self._choice if self._reducer is None else self._reducer.choice,
        }
        return flatten(state_dict) if flat else state_dict

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from :meth:`state_dict`, in either form; settings stay what they are.

        Settings that were others are named in the log. Residuals are an error not yet sent, of one
        rank: they are dropped, with a warning in the log, if they were saved by another rank, in a
        world of another size or with another number of hosts; at the first backward pass if the
        process group isn't there yet.

        Raises:
            ValueError: not from :meth:`state_dict`, or of another version.
        """
        if is_flat(state_dict):
            state_dict = unflatten(state_dict)
        version = state_dict.get("version")
        if version != _STATE_VERSION:
            raise ValueError(
                f"expected a GCTState's state_dict of version {_STATE_VERSION}, got {version!r}"
            )
        warn_of_changes(self._settings, state_dict["settings"])
        self._restore(state_dict)
        self._drop_residuals_of_others()

    def close(self) -> None:
        """End the engine's threads. Not needed: the interpreter's exit does it too."""
        if self._reducer is not None:
            self._reducer.close()

    def __getstate__(self) -> dict[str, Any]:
        _logger.info("gct: the process group is not part of a pickled or copied GCTState")
        return {"settings": self._settings, "state_dict": self.state_dict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state["settings"])  # type: ignore[misc]
        self._restore(state["state_dict"])

    # How it works.

    def _restore(self, saved: Mapping[str, Any]) -> None:
        self.step = int(saved["step"])
        self._saved_at = Place(saved["rank"], saved["world_size"], saved.get("hosts", 1))
        self._keys.load(saved.get("appeared", []))
        self._residuals.load_state_dict(saved["residuals"])
        self._agreed.clear()  # so that ranks compare what they have loaded
        self._seen.clear()
        self._buckets = saved.get("buckets", [])
        self._regroup = Regroup(self._buckets) if self._buckets else None
        self._choice = saved.get("choice")
        if self.error_feedback and self.step > self.start_step and not saved["residuals"]:
            _logger.warning("gct: the checkpoint has no residuals: error feedback begins anew")
        if self._scales is not None:
            scales = saved.get("element_scales", {})
            self._scales.load_state_dict(scales)
            learned = saved["world_size"] != 1 and self.codec.kind != "raw"
            if learned and self.step and not any(item["steps"] for item in scales.values()):
                _logger.warning(
                    "gct: the checkpoint has no scales of elements: they are learned anew"
                )
        if self._rate_term is not None:
            memory = saved.get("rate_term", {})
            self._rate_term.load_state_dict(memory)
            if self.step and not memory:
                _logger.warning(
                    "gct: the checkpoint has no memory of the rate term: its first step is without"
                )

    def _warn_of_unclaimed(self) -> None:
        """At the end of a resumed run's first step, when all parameters have been there."""
        memories = {"residuals": self._residuals.unclaimed()}
        if self._scales is not None:
            memories["scales"] = self._scales.unclaimed()
        for what, keys in memories.items():
            if keys:
                _logger.warning(
                    "gct: the checkpoint's %s of %d parameters have no parameter here, such as %r: "
                    "was its state made with model= and this one without, or the reverse?",
                    what,
                    len(keys),
                    keys[0],
                )

    def _drop_residuals_of_others(self) -> None:
        """Those that another rank, or this one among other hosts, has saved."""
        here = self._place()
        whose = self._saved_at.unlike(here)
        if whose and self._residuals.state_dict():
            rank, size, _ = here
            _logger.warning("gct: residuals of %s are dropped on rank %s of %s", whose, rank, size)
            self._residuals.load_state_dict({})

    def _enter(
        self, index: int, parameters: Sequence[Tensor], what: str, device: torch.device
    ) -> Layout:
        """Note that a bucket of this step is here; its layout."""
        self._check_device(device)
        layout = self._layouts.get(index)
        reducer = self._open_reducer()
        if layout is None or layout.ids != tuple(map(id, parameters)):
            if not self.serves(index, parameters):
                raise RuntimeError(
                    "this GCTState already serves another model: make one GCTState for each "
                    "model that a hook is registered on"
                )
            for parameter in parameters:
                self._keys.add(parameter)
            self._agreed.discard(index)
            layout = make_layout(parameters, self._keys)
        if index not in self._agreed:
            self._agree(reducer, parameters, what)
            self._agreed.add(index)
            self._layouts[index] = layout
        if self.monitor is not None and not self._seen:
            self.monitor.begin_step(self.step, reducer.rank, reducer.size)
        self._seen[index] = None
        return layout

    def _agree(
        self, reducer: Reducer | DeviceReducer, parameters: Sequence[Tensor], what: str
    ) -> None:
        """Compare a new bucket, and what decides how it is reduced, on all ranks."""
        layout = f"at step {self.step} {describe(parameters)}"
        if self._regroup is not None:
            layout += f" of a checkpoint with buckets {self._regroup.buckets}"
        if self._scales is not None:
            layout += f", scales of elements {self._scales.describe(parameters)}"
        reducer.agree(f"{what} of step {self.step}", layout)

    def _end_step(self, buckets: Buckets | None = None) -> None:
        if self._open:
            self._warn_of_unclaimed()
        self._buckets = buckets or [self._layouts[index].parameters for index in self._seen]
        self.step += 1
        if self.monitor is not None:
            self.monitor.end_step()
        self._open = False
        self._seen.clear()

    def _check_device(self, device: torch.device) -> None:
        """Raise ValueError unless gradients are, and stay, where they can be reduced."""
        if device.type not in ("cpu", "cuda"):
            raise ValueError(f"gct works on CPU and CUDA gradients, got a bucket on {device}")
        if self._reducer is None:
            self._device = device
        elif device != self._device:
            raise ValueError(
                f"all of a model's gradients must be on one device, got a bucket on {device} after "
                f"one on {self._device}"
            )
        if device.type == "cuda" and self.monitor is not None:
            raise ValueError("a monitor needs CPU gradients in this version of gct")
        if device.type == "cuda":
            self._regroup = None  # a resumed run's first pass has other buckets there

    def _open_reducer(self) -> Reducer | DeviceReducer:
        if self._reducer is None:
            self._group = resolve_group(self._group)
            try:
                if self._device.type == "cuda":
                    self._reducer = DeviceReducer(self._group, self._settings, self._device)
                else:
                    self._reducer = self._make_reducer(self._group)
            except RuntimeError as error:
                rank, size = self._group.rank(), self._group.size()
                raise RuntimeError(
                    f"gct: setting up the compressed collectives failed on rank {rank} of {size}; "
                    f"is every rank at its first backward pass? {error}"
                ) from error
            self._drop_residuals_of_others()
        return self._reducer

    def _make_reducer(self, group: dist.ProcessGroup) -> Reducer:
        codecs = [codec_at(codecs, self.step) for codecs in self._by_kind.values()]
        reducer = Reducer(group, self._settings, codecs, self._choice)
        if reducer.choice in self._by_kind:
            self._codecs = self._by_kind[reducer.choice]
        return reducer

    def _divide(self, parameters: Sequence[Tensor], buffer: Tensor) -> list[Part]:
        """By scales of elements, what is compressed of a bucket, or of a single gradient."""
        if self._scales is None or not self._can_encode(buffer) or not buffer.is_contiguous():
            return []
        reducer = self._open_reducer()
        if reducer.plain_kind is not None or reducer.size == 1 or self.codec.kind == "raw":
            return []
        return self._scales.begin(parameters, buffer, self.step >= self.start_step)

    def _can_encode(self, buffer: Tensor) -> bool:
        dtypes = _CODEC_DTYPES if buffer.device.type == "cpu" else DEVICE_DTYPES
        return buffer.dtype in dtypes and buffer.layout == torch.strided

    def _goes_plain(self, buffer: Tensor) -> bool:
        if not self._can_encode(buffer):
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
        return reducer.plain.start(buffer, f"{what} of step {self.step}", kind or "fp32")

    def _reduce(
        self,
        buffer: Tensor,
        layout: Layout,
        index: int,
        residual: Tensor | None,
        what: str,
        number: int,
    ) -> Future[Tensor]:
        reducer = self._open_reducer()
        shard = reducer.shard(buffer.numel())
        layout = layout.cut(shard)
        latest = self._run_stats  # not self: the engine must not keep its owner alive
        watch = None
        if self.monitor is not None and self.monitor.sampling:
            watch = self.monitor.watch(layout.keys, layout.runs, buffer.reshape(-1)[shard])

        def keep(run_stats: Any) -> None:
            latest[index] = (layout, run_stats)
            if watch is not None:
                watch(run_stats)

        return reducer.coded(
            buffer,
            self.codec,
            name=f"{what} of step {self.step}",
            residual=residual[shard] if residual is not None else None,
            runs=layout.runs,
            algorithm=self.algorithm,
            seed=(self.seed << 40) + (self.step << 16) + number,
            probe=watch is not None,
            on_stats=keep,
        )

    def _codec_in_use(self) -> str:
        """The setting; once ``"auto"`` has been measured, what it stands for."""
        if self._reducer is None:
            return str(self._settings["codec"])
        return self._reducer.plain_kind or self.codec.kind

    def _place(self) -> Place:
        """This rank among the others, as far as that can be known now."""
        if self._reducer is not None:
            return Place(self._reducer.rank, self._reducer.size, self._reducer.hosts)
        if not dist.is_initialized():
            return Place()
        return Place(dist.get_rank(self._group), dist.get_world_size(self._group))
