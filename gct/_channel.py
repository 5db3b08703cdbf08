"""The native engine for the ranks of a process group, and futures that Python code can wait for."""

from __future__ import annotations

import atexit
import inspect
import os
import re
import weakref
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct import _C
from gct._agreement import debug_setting
from gct._hosts import local_size
from gct._roll_call import call_the_roll

Collective = Literal["all_reduce", "reduce_scatter", "all_gather"]
Algorithm = Literal["auto", "one_shot", "two_shot"]
OnStats = Callable[[Tensor], None]
Then = Callable[[str], None]


class Damage(str):
    """An error of this rank alone, after which its collectives go on: a checksum was wrong."""


class Run(NamedTuple):
    """A part of a tensor with its own statistics."""

    numel: int
    raw: bool  # travels uncompressed
    columns: int = 0  # row length of a matrix, else 0: columns may differ in scale


_MAX_DEFAULT_THREADS = 4
_MAX_THREADS = 1024

_channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class Channel:
    """Compressed collectives among the ranks of ``group``; every rank of it makes one together.

    Two private Gloo groups carry the messages to higher ranks and those to lower ones. So nothing
    here ever mixes with the collectives that the user issues on ``group``, and the order of each
    shot is the same on all ranks although they come from a pipeline whose timing differs.

    Args:
        group: of Gloo.
        members: ranks of ``group`` that take part, this one among them; None: all.
        shots: 1 for a channel that carries no all_reduce: it makes one private group.
        roll_call: a private group of more ranks, where the members report that they have failed.
            None: their own.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        members: Sequence[int] | None = None,
        *,
        shots: Literal[1, 2] = 2,
        roll_call: dist.ProcessGroup | None = None,
    ) -> None:
        check_backend(group)
        self.members = list(range(group.size()) if members is None else members)
        self.rank = self.members.index(group.rank())
        self.size = len(self.members)
        count = 0 if self.size == 1 else shots
        self._groups = [
            private_group(group, self.members, way) for way in ("upward", "downward")[:count]
        ]
        self.roll_call = roll_call or (self._groups[0] if self._groups else None)
        names = [str(private.group_name) for private in self._groups] or [""]
        self._engine = _C.Engine(names[0], names[-1], num_threads(), debug_setting() == "hash")
        self._calls = 0
        self._failure = ""
        self._closed = False
        _channels.add(self)

    def submit(
        self,
        collective: Collective,
        input: Tensor,
        codec: _C.CodecParams,
        *,
        name: str,
        output: Tensor | None = None,
        residual: Tensor | None = None,
        runs: Sequence[Run] | None = None,
        mean: bool = False,
        algorithm: Algorithm = "auto",
        seed: int | None = None,
        call: str = "",
        probe: bool = False,
        checksum: bool = False,
        on_stats: OnStats | None = None,
        then: Then | None = None,
    ) -> Future[str]:
        """Start a collective; all ranks start the same ones in the same order.

        Args:
            collective: what to do.
            input: CPU tensor, contiguous; all_reduce works in place.
            codec: settings.
            name: what error messages call it.
            output: where the result of the other collectives goes.
            residual: float32, one per element of the input, updated: switches error feedback on.
            runs: how the input divides into parameters; None is one run of the input's shape.
            mean: divide the sum by the number of ranks.
            algorithm: of an all_reduce.
            seed: for stochastic rounding, the same on all ranks; None: the number of the call.
            call: all that has to be the same on all ranks, in words; compared before anything is
                sent. Empty: not compared, for callers that have made sure.
            probe: measure bits and error of each run, about as slowly as encoding and decoding once
                more. It needs nobody else: ranks may differ in it.
            checksum: send one behind every segment. Where one is wrong, this rank alone gets a
                :class:`Damage`, its result is worthless, and later jobs work.
            on_stats: called with the float32 [runs, 4] tensor of scale, shape, bits per element and
                error of each run, from another thread. The error is the squared one over the
                squared values; bits and error are NaN without ``probe``.
            then: called with the message, before the future has it, from a thread that Ctrl-C does
                not interrupt. A future's own callbacks may run on the main thread, where
                KeyboardInterrupt is raised, before their first line too.

        Returns:
            A future of the error message, empty if the result is in place. A message names the job
            and the rank: a peer died, the group's timeout passed, or a segment can't be decoded.
            Every later job fails with the same one. Or a checksum was wrong, see above. Or `call`
            was not the same on all ranks: then they all get a message, the tensors stay what they
            are, and later jobs work.

        Raises:
            ValueError: tensors that this collective can't take.
        """
        done: Future[str] = Future()
        self._calls += 1

        def on_done(error: str, fatal: bool, run_stats: Tensor) -> None:
            if on_stats is not None and not error:
                on_stats(run_stats)
            local = Damage(error) if error and checksum and not call else error
            message = self._explain(error) if fatal else local
            if then is not None:
                then(message)
            done.set_result(message)

        self._engine.submit(
            collective=collective,
            input=input.detach(),
            output=output,
            residual=residual,
            runs=[Run(input.numel(), False, row_length(input))] if runs is None else list(runs),
            codec=codec,
            mean=mean,
            algorithm=algorithm,
            seed=(self._calls if seed is None else seed) % 2**64,
            name=name,
            call=call,
            probe=probe,
            checksum=checksum,
            on_done=on_done,
        )
        return done

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of all ranks' values, one by one; while nothing is on its way."""
        result = torch.tensor(values, dtype=torch.float64)
        if self._groups:
            dist.all_reduce(result, op=dist.ReduceOp.MAX, group=self._groups[0])
        return [float(value) for value in result]

    def stats(self) -> _C.EngineStats:
        return self._engine.stats()

    def scratch_bytes(self) -> int:
        return self._engine.scratch_bytes()

    def close(self) -> None:
        """End the engine's threads. What is on its way fails."""
        self._closed = True
        self._engine.close()

    def _explain(self, error: str) -> str:
        """The engine's first error, and which ranks to look at."""
        if not self._failure:
            self._failure = error + call_the_roll(None if self._closed else self.roll_call)
        return self._failure


def row_length(tensor: Tensor) -> int:
    """Elements for each index of the first of two or more dimensions; 0 for other tensors."""
    return tensor.numel() // tensor.size(0) if tensor.dim() > 1 and tensor.numel() > 0 else 0


class Closing(Protocol):
    """What must have ended before the interpreter does."""

    def close(self) -> None: ...


closed_last: weakref.WeakSet[Closing] = weakref.WeakSet()  # after all engines


@atexit.register
def close_all() -> None:
    """End all engines while the interpreter can still run their last callbacks."""
    for closing in [*_channels, *closed_last]:
        closing.close()


def check_backend(group: dist.ProcessGroup, devices: bool = False) -> None:
    """Raise ValueError unless ``group`` reduces CPU tensors with Gloo.

    Args:
        group: to look at.
        devices: or GPU tensors with NCCL.
    """
    if devices and _has_nccl(group):
        return
    try:
        backend = group._get_backend(torch.device("cpu")).name()
    except RuntimeError:
        backend = f"{dist.get_backend(group)} without CPU tensors"
    if backend.lower() != "gloo":
        raise ValueError(
            "this version of gct works on CPU tensors over the gloo backend, got a process group "
            f'of {backend}: use init_process_group("gloo"), or "cpu:gloo,cuda:nccl"'
        )


def _has_nccl(group: dist.ProcessGroup) -> bool:
    try:
        return str(group._get_backend(torch.device("cuda")).name()).lower() == "nccl"
    except RuntimeError:
        return False


def resolve_group(group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """``group``, or the default one; raises ValueError where there is none."""
    if group is not None:
        return group
    if not dist.is_initialized():
        raise ValueError("call torch.distributed.init_process_group() before using gct")
    default = dist.group.WORLD
    assert default is not None
    return default


def num_threads() -> int:
    """Threads for encoding and decoding: GCT_NUM_THREADS, or this rank's share of the cores."""
    text = os.environ.get("GCT_NUM_THREADS", "")
    if text:
        if not re.fullmatch("0*[1-9][0-9]{0,3}", text) or int(text) > _MAX_THREADS:
            raise ValueError(
                f"GCT_NUM_THREADS must be a whole number from 1 to {_MAX_THREADS}, got "
                f"{text[:40]!r}: unset it for this process' share of the cores"
            )
        return int(text)
    cores = len(os.sched_getaffinity(0))
    return min(max(1, cores // (local_size() or 1)), _MAX_DEFAULT_THREADS)


def private_group(
    group: dist.ProcessGroup, members: Sequence[int], purpose: str, backend: str = "gloo"
) -> dist.ProcessGroup:
    """A group of these ranks of ``group`` that nobody else uses, with its timeout."""
    place = torch.device("cuda" if backend == "nccl" else "cpu")
    ranks = dist.get_process_group_ranks(group)
    options: dict[str, Any] = {}
    if "sort_ranks" in inspect.signature(dist.new_group).parameters:
        options["sort_ranks"] = False  # the group's own order; older versions always sort
    private = dist.new_group(
        [ranks[member] for member in members],
        timeout=group._get_backend(place).options._timeout,
        backend=backend,
        use_local_synchronization=True,
        group_desc=f"gct {purpose}",
        **options,
    )
    assert isinstance(private, dist.ProcessGroup)
    return private


def result_or_raise(done: Future[str], result: Tensor) -> Tensor:
    """Wait for what :meth:`Channel.submit` returned; RuntimeError if the collective failed."""
    error = done.wait()
    if error:
        raise RuntimeError(error)
    return result
