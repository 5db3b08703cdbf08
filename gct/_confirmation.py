"""With checksums: what one rank has found damaged, all of them learn before they go on."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct import _C
from gct._channel import Damage, closed_last, private_group
from gct._roll_call import call_the_roll

_TEXT_BYTES = 256
_CLOSE_SECONDS = 5.0  # for a busy machine: nobody has to answer


class Confirmation:
    """Every rank of ``group`` makes one together; it has a private group of its own, and
    ``roll_call`` is one on which failures are reported.

    So it mixes with nothing: buckets are done in the same order on all ranks, but what else goes on
    at that moment differs.
    """

    def __init__(self, group: dist.ProcessGroup, roll_call: dist.ProcessGroup | None) -> None:
        self.sent_bytes = 0
        self._group = private_group(group, range(group.size()), "confirmation")
        self._roll_call = roll_call
        self._hint: str | None = None  # which ranks are silent
        self._closed = False
        self._pending: set[Future[str]] = set()
        closed_last.add(self)

    def of(self, start: Callable[..., object], name: str) -> Future[str]:
        """A future like that of a submit(), but of a message on all ranks if one has found damage.

        A rank whose collectives are broken has nothing to tell: the others' are, too.

        Args:
            start: calls submit() with ``then``, which it is given.
            name: what messages call it.
        """
        confirmed: Future[str] = Future()

        def tell(error: str) -> None:
            if error and not isinstance(error, Damage):
                confirmed.set_result(error)
                return

            def hear(told: Future[list[Tensor]]) -> None:
                confirmed.set_result(self._hear(told, name))

            self._pending.add(confirmed)
            confirmed.add_done_callback(self._pending.discard)
            try:
                self._tell(error).then(hear)
            except Exception as caught:  # whatever it is: those who wait would wait for ever
                confirmed.set_result(self._failed(name, caught))

        start(then=tell)
        return confirmed

    def close(self) -> None:
        """End what waits for other ranks.

        Gloo's threads call back into Python, and would end the process if Python had ended.
        """
        self._closed = True
        if not self._pending:
            return
        _C.hang_up(str(self._group.group_name))
        deadline = time.monotonic() + _CLOSE_SECONDS
        while self._pending and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.01)  # the last callback is dropped under the interpreter's lock, too

    def _tell(self, error: str) -> Future[list[Tensor]]:
        """Every rank's text, padded with zeros."""
        text = error.encode()[:_TEXT_BYTES]
        mine = torch.zeros(_TEXT_BYTES, dtype=torch.uint8)
        mine[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        texts = [torch.zeros_like(mine) for _ in range(self._group.size())]
        work = dist.all_gather(texts, mine, group=self._group, async_op=True)
        assert work is not None
        self.sent_bytes += _TEXT_BYTES * (len(texts) - 1)

        def result(done: Future[object]) -> list[Tensor]:
            done.value()  # raises what went wrong
            return texts

        future: Future[list[Tensor]] = work.get_future().then(result)
        return future

    def _hear(self, told: Future[list[Tensor]], name: str) -> str:
        try:
            texts = told.value()
        except RuntimeError as error:
            return self._failed(name, error)
        for rank, padded in enumerate(texts):
            text = bytes(padded.tolist()).rstrip(b"\0").decode(errors="replace")
            if text:
                return (
                    f"gct: the result of {name} is lost on all ranks: rank {rank} reports that "
                    f"{text}\nSkip this step on all ranks, or start again from a checkpoint."
                )
        return ""

    def _failed(self, name: str, error: Exception) -> str:
        rank, size = self._group.rank(), self._group.size()
        if self._hint is None:  # once: buckets fail one after the other
            self._hint = call_the_roll(None if self._closed else self._roll_call)
        return f"gct: confirming {name} failed on rank {rank} of {size}: {error}{self._hint}"
