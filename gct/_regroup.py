"""The first backward passes after a resume, in the buckets of the run that was saved.

DDP regroups its buckets after its first pass, with static_graph after its second, in a resumed run
as in every other. Values come through the codec otherwise in another bucket: blocks, chunks and
rate are the bucket's. So that a resumed run has the same bits as one that went on, these passes are
reduced in the old buckets.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.futures import Future

from gct._channel import result_or_raise

_logger = logging.getLogger("gct")

Buckets = Sequence[Sequence[str]]  # keys of parameters, in the order of reduction


@dataclass(frozen=True)
class Group:
    """A bucket to be reduced: parameters, and their gradients as they lie in memory."""

    index: int
    parameters: list[Tensor]
    gradients: list[Tensor]

    def joined(self) -> Tensor:
        return torch.cat(self.gradients)

    def take_over(self, reduced: Tensor) -> None:
        sizes = [gradient.numel() for gradient in self.gradients]
        for gradient, part in zip(self.gradients, reduced.split(sizes), strict=True):
            gradient.copy_(part)


class Regroup:
    """One pass.

    Args:
        buckets: of the saved run.
        passes_left: after this one, in which DDP may still have its first buckets: it regroups them
            after its first pass, with ``static_graph`` after its second.
    """

    def __init__(self, buckets: Buckets, passes_left: int = 1) -> None:
        self.passes_left = passes_left
        self.buckets = [list(bucket) for bucket in buckets]
        self._passed = 0  # buckets that are still the same
        self._sparse: set[str] = set()
        self._held: list[Group] = []
        self._parts: dict[str, tuple[Tensor, Tensor]] = {}  # parameters and gradients
        self._waiting: list[Future[str]] = []  # of an error message

    def passes(self, keys: Sequence[str], buffer: Tensor) -> bool:
        """Whether a bucket is reduced as it is: it and all before it are as they were."""
        if buffer.is_sparse:  # has a bucket of its own in every run
            self._sparse.update(keys)
            return True
        if self._held or self.buckets[self._passed :][:1] != [list(keys)]:
            return False
        self._passed += 1
        return True

    def hold(
        self, index: int, keys: Sequence[str], parameters: Sequence[Tensor], buffer: Tensor
    ) -> Future[Tensor]:
        """Keep a bucket; the future of its buffer, which :meth:`finish` completes."""
        gradients = list(buffer.split([parameter.numel() for parameter in parameters]))
        self._parts.update(zip(keys, zip(parameters, gradients, strict=True), strict=True))
        self._held.append(Group(index, list(parameters), gradients))
        done: Future[str] = Future()
        self._waiting.append(done)
        return done.then(lambda done: result_or_raise(done, buffer))

    def groups(self) -> list[Group]:
        """What is held, in the saved run's buckets; as it came if it doesn't fit into them.

        Afterwards ``buckets`` are those of the saved run only where something was held and fits.
        """
        groups = []
        left = dict(self._parts)
        for index, keys in enumerate(self.buckets[self._passed :], self._passed):
            if self._sparse.issuperset(keys):
                continue
            if not left.keys() >= set(keys):
                break
            parameters, gradients = zip(*(left.pop(key) for key in keys), strict=True)
            groups.append(Group(index, list(parameters), list(gradients)))
        if self._held and not left:
            return groups
        self.buckets = []
        if not left:
            return []
        _logger.warning(
            "gct: the checkpoint is of a model with other parameters: this step's buckets are not "
            "those of the run that was saved"
        )
        return self._held

    def finish(self, reductions: Sequence[tuple[Group, Future[Tensor]]]) -> None:
        """Complete what is held once all groups are reduced."""
        waiting = self._waiting

        def take_over(_: object) -> None:
            error = ""
            try:
                for group, reduced in reductions:
                    group.take_over(reduced.value())
            except Exception as caught:  # whatever it is: those who wait would wait for ever
                error = str(caught)
            for done in waiting:
                done.set_result(error)

        def check(called: Future[None]) -> None:
            """Ctrl-C may end take_over() before its first line; torch keeps the exception."""
            try:
                called.value()
            except RuntimeError as interrupt:
                for done in waiting:
                    if not done.done():
                        done.set_result(f"gct: {interrupt}")

        all_reduced = torch.futures.collect_all([reduced for _, reduced in reductions])
        all_reduced.then(take_over).add_done_callback(check)
