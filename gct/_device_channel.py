"""Compressed all-reduces of tensors on one GPU."""

from __future__ import annotations

import collections
import concurrent.futures
import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct import _C
from gct._channel import Algorithm, Run, private_group, row_length
from gct._device_plan import Growing, Lane, Plan
from gct._device_wire import Exchange, Staging, Timeline, begin, guard

DEVICE_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class _Pending(NamedTuple):
    """Statuses of an all-reduce, on their way to the host."""

    name: str
    mark: torch.cuda.Event | None
    statuses: Tensor


class DeviceChannel:
    """Compressed all-reduces among the ranks of ``group``; every rank of it makes one together.

    Kernels and, with NCCL, collectives are only enqueued, on two streams of this object's own:
    submitting doesn't wait for the device, and one bucket is encoded while others are on the wire
    or being decoded. With Gloo a thread waits for encoded bytes in pinned
    memory and sends them from there. Errors that only the device can see, such as a segment that
    can't be decoded, make the result NaN; they are raised by the next call that finds them.

    Args:
        group: of NCCL, or of Gloo.
        device: a GPU with its index; the CPU is for tests of this class.
        staged: send from host memory; None: unless the group's backend for the device is NCCL.
        alone: code and exchange in a world of one too, for tests; else nothing happens there.

    Raises:
        ValueError: a group of another backend, or kernels that can't run on the device.
    """

    def __init__(
        self,
        group: dist.ProcessGroup,
        device: torch.device,
        staged: bool | None = None,
        alone: bool = False,
    ) -> None:
        if device.type == "cuda" and (problem := _C.cuda_problem()):
            raise ValueError(f"gct has no way to reduce tensors on {device}: {problem}")
        backend = _backend_for(group, device)
        staged = backend != "nccl" if staged is None else staged
        self.rank, self.size = group.rank(), group.size()
        self.device = device
        self._idle = self.size == 1 and not alone
        self.raw_bytes = self.wire_bytes = self.encoded_numel = self.encoded_bytes = self.jobs = 0
        members = list(range(self.size))
        kind = "gloo" if staged else backend
        # The second one compares plans while the first carries segments from another thread.
        count = 0 if self.size == 1 else 2 if staged else 1
        groups = [private_group(group, members, f"shot {i + 1}", kind) for i in range(count)]
        self._group, self._agreement = (groups[0], groups[-1]) if groups else (group, group)
        self._staged = staged
        with guard(device):
            self._front = Lane(Timeline(device), Growing(device))
            self._back = Lane(Timeline(device), Growing(device))
            self._nonfinite = torch.zeros((), dtype=torch.float32, device=device)
        self._plans: dict[object, tuple[Plan, list[Staging]]] = {}
        self._pending: collections.deque[_Pending] = collections.deque()
        self._sender = ThreadPoolExecutor(1, "gct sender") if staged else None
        self._sending: dict[int, concurrent.futures.Future[None]] = {}  # by plan, the latest
        self._failure = ""

    def all_reduce(
        self,
        tensor: Tensor,
        codec: _C.CodecParams,
        *,
        name: str,
        settings: str,
        runs: Sequence[Run] | None = None,
        mean: bool = False,
        algorithm: Algorithm = "auto",
        seed: int | None = None,
    ) -> tuple[Future[Tensor], Plan | None]:
        """Start to replace ``tensor`` by its sum or mean over all ranks; all get the same bits.

        Args:
            tensor: on the device, contiguous, float32, bfloat16 or float16.
            codec: settings.
            name: what error messages call it.
            settings: ``codec`` and all else that must be the same on all ranks, in words; compared
                the first time that a layout comes.
            runs: how it divides into parameters; None is one run.
            mean: divide by the number of ranks.
            algorithm: ``"auto"``, ``"one_shot"`` or ``"two_shot"``.
            seed: for stochastic rounding, the same on all ranks; None: the number of the call.

        Returns:
            A future of ``tensor`` that orders the waiting stream after the result, and the plan,
            None in a world of one.

        Raises:
            ValueError: a tensor or a codec that GPUs don't take.
            RuntimeError: an earlier call failed, or ranks make different calls.
        """
        self.check()
        _check_tensor(tensor, self.device)
        self.jobs += 1
        flat = tensor.detach().view(-1)
        if self._idle or flat.numel() == 0:
            done: Future[Tensor] = self._back.timeline.future()
            done.set_result(tensor)
            return done, None
        runs = [Run(flat.numel(), False, row_length(tensor))] if runs is None else runs
        plan, staging = self._plan(flat, codec, runs, algorithm, settings)
        self._count(flat, plan)
        steps = plan.steps(flat, mean, (self.jobs if seed is None else seed) % 2**64)
        if self._sender is None:
            return self._enqueue(tensor, plan, steps, name), plan
        before = self._sending.get(id(plan))
        if before is not None:
            before.result()  # its bytes may still be on their way from where these are going to be
        self._front.timeline.follow_caller(tensor)
        self._front.timeline.follow(plan.finished)
        due = self._advance(self._front, steps, staging)
        future = self._back.timeline.future()
        self._sending[id(plan)] = self._sender.submit(
            self._send, tensor, plan, staging, steps, due, future, name
        )
        return future, plan

    # With NCCL, all at once.

    def _enqueue(
        self, tensor: Tensor, plan: Plan, steps: Iterator[int], name: str
    ) -> Future[Tensor]:
        front, back = self._front.timeline, self._back.timeline
        front.follow_caller(tensor)
        front.follow(plan.finished)
        with front.entered():
            work = begin(plan.exchanges[next(steps)], self._group)
        back.follow(front.mark(), tensor)
        with back.entered():
            work.wait()
            for index in steps:
                begin(plan.exchanges[index], self._group).wait()
            return self._finish(tensor, plan, name, back.future())

    # With Gloo, the front in the caller's thread, the rest in the sender's.

    def _advance(
        self, lane: Lane, steps: Iterator[int], staging: list[Staging]
    ) -> tuple[int, torch.cuda.Event | None] | None:
        """Enqueue what comes before the next exchange, and the copy of what it sends."""
        with lane.timeline.entered():
            index = next(steps, None)
            if index is None:
                return None
            staging[index].fetch()
            return index, lane.timeline.mark()

    def _send(
        self,
        tensor: Tensor,
        plan: Plan,
        staging: list[Staging],
        steps: Iterator[int],
        due: tuple[int, torch.cuda.Event | None] | None,
        future: Future[Tensor],
        name: str,
    ) -> None:
        back = self._back.timeline
        try:
            while due is not None:
                if self._failure:
                    raise RuntimeError(self._failure)
                index, mark = due
                Timeline.wait(mark)
                begin(staging[index].host, self._group).wait()
                back.follow(mark, tensor)
                with back.entered():
                    staging[index].deliver()
                due = self._advance(self._back, steps, staging)
            with back.entered():
                self._finish(tensor, plan, name, future)
        except Exception as error:
            self._failure = self._failure or (
                f"gct: all_reduce of {name} failed on rank {self.rank} of {self.size}: {error}\n"
                "This group's compressed collectives can't go on: end all ranks and start again "
                "from a checkpoint."
            )
            future.set_exception(RuntimeError(self._failure))  # type: ignore[arg-type]

    def _finish(
        self, tensor: Tensor, plan: Plan, name: str, future: Future[Tensor]
    ) -> Future[Tensor]:
        """Inside the back's stream: note the statuses, complete the future."""
        statuses = plan.statuses()
        self._nonfinite += plan.nonfinite()
        if self.device.type == "cuda":
            host = torch.empty(statuses.shape, dtype=statuses.dtype, pin_memory=True)
            statuses = host.copy_(statuses, non_blocking=True)
        plan.finished = self._back.timeline.mark()
        self._pending.append(_Pending(name, plan.finished, statuses))
        future.set_result(tensor)
        return future

    def check(self) -> None:
        """Raise RuntimeError if a call that is done has failed; doesn't wait for others."""
        while self._pending and Timeline.reached(self._pending[0].mark):
            done = self._pending.popleft()
            bad = [status for status in done.statuses.tolist() if status != 0]
            if bad and not self._failure:
                self._failure = (
                    f"gct: all_reduce of {done.name} failed on rank {self.rank} of {self.size}, "
                    f"its result is NaN: {_C.status_message(bad[0])}"
                )
        if self._failure:
            raise RuntimeError(self._failure)

    # Plans.

    def _plan(
        self,
        flat: Tensor,
        codec: _C.CodecParams,
        runs: Sequence[Run],
        algorithm: Algorithm,
        settings: str,
    ) -> tuple[Plan, list[Staging]]:
        key = (flat.numel(), flat.dtype, tuple(runs), algorithm, settings)
        found = self._plans.get(key)
        if found is not None:
            return found
        self._agree(f"{key}")
        two_shot = _C.chooses_two_shot(codec, flat.dtype, flat.numel(), self.size, algorithm)
        with guard(self.device):
            plan = Plan(
                self.rank,
                self.size,
                flat.numel(),
                flat.dtype,
                runs,
                codec,
                two_shot,
                self._front,
                self._back,
            )
            staging = [Staging(step) for step in plan.exchanges] if self._staged else []
        if self.device.type == "cuda":  # buffers were cleared on the caller's stream
            torch.cuda.current_stream(self.device).synchronize()
        self._plans[key] = plan, staging
        return plan, staging

    def _agree(self, call: str) -> None:
        """Raise RuntimeError on all ranks unless all are about to make the same plan.

        Messages of other sizes than expected would hang NCCL and end the process with Gloo.
        """
        place = torch.device("cpu") if self._staged else self.device
        digest = hashlib.blake2b(call.encode(), digest_size=8).digest()
        mine = torch.tensor(list(digest), dtype=torch.uint8, device=place)
        everyone = torch.zeros(8 * self.size, dtype=torch.uint8, device=place)
        begin(Exchange(mine, everyone, None, None), self._agreement).wait()
        if (differs := (everyone.view(self.size, 8) != mine).any(1).nonzero()).numel() > 0:
            raise RuntimeError(
                "gct: all ranks must make the same call on tensors of one size, dtype and device, "
                f"but rank {int(differs[0])} makes another one than rank {self.rank}, which calls "
                f"{call}; nothing was sent"
            )

    # Counting.

    def _count(self, flat: Tensor, plan: Plan) -> None:
        raw = flat.numel() * flat.element_size()
        self.raw_bytes += 2 * raw * (self.size - 1) // self.size
        self.wire_bytes += sum(step.sent for step in plan.exchanges)
        self.encoded_numel += plan.encoded_numel
        self.encoded_bytes += plan.encoded_bytes

    def stats(self) -> _C.EngineStats:
        """As the CPU engine's; seconds stay 0, because nothing here waits to take them."""
        return {
            "jobs": self.jobs,
            "raw_bytes": self.raw_bytes,
            "wire_bytes": self.wire_bytes,
            "encoded_numel": self.encoded_numel,
            "encoded_bytes": self.encoded_bytes,
            "nonfinite_runs": int(self._nonfinite),
            "encode_seconds": 0.0,
            "decode_seconds": 0.0,
            "wait_seconds": 0.0,
        }

    def scratch_bytes(self) -> int:
        lanes = self._front.memory.nbytes() + self._back.memory.nbytes()
        return lanes + sum(plan.nbytes() for plan, _ in self._plans.values())

    def close(self) -> None:
        """End the sender's thread; what is on its way is carried out first, or fails."""
        self._failure = self._failure or "gct: this was closed"
        if self._sender is not None:
            self._sender.shutdown()


def _check_tensor(tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"expected a tensor on {device}, got one on {tensor.device}")
    if tensor.dtype not in DEVICE_DTYPES:
        raise ValueError(
            f"on GPUs tensors must be float32, bfloat16 or float16, got {tensor.dtype}"
        )
    if tensor.layout != torch.strided or not tensor.is_contiguous():
        raise ValueError("the tensor must be contiguous: pass tensor.contiguous()")


def _backend_for(group: dist.ProcessGroup, device: torch.device) -> str:
    """What carries bytes: nccl for tensors on the device, or gloo."""
    names = []
    for place in (device, torch.device("cpu")):
        try:
            names.append(str(group._get_backend(place).name()).lower())
        except RuntimeError:
            continue
    for name in names:
        if name in ("nccl", "gloo"):
            return name
    raise ValueError(
        f"gct reduces tensors on {device} over nccl or gloo, got a process group of "
        f'{dist.get_backend(group)}: use init_process_group("cpu:gloo,cuda:nccl")'
    )
