"""All-reduce without the codec: float32, or rounded to bfloat16."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

PlainKind = Literal["fp32", "bf16"]

_HALF_DTYPES = (torch.bfloat16, torch.float16)
# Values of other dtypes would lose range or more than bfloat16 says.
_TO_BFLOAT16 = (torch.float32, torch.float64, torch.bfloat16)


class PlainReductions:
    """All-reduces of ``group`` without the codec, and what they have sent."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self._group = group
        self.bytes = 0  # from this rank, as in a ring
        self._kind: PlainKind = "fp32"
        self._numel = self._message_bytes = 0  # of the latest kind

    def start(self, buffer: Tensor, name: str, kind: PlainKind) -> Future[Tensor]:
        """See :func:`reduce_plain`."""
        future, nbytes = reduce_plain(buffer, self._group, kind, name)
        size = self._group.size()
        self.bytes += 2 * nbytes * (size - 1) // size
        if kind != self._kind:  # codec="auto" is bf16, and the first steps were not
            self._kind, self._numel, self._message_bytes = kind, 0, 0
        self._numel += buffer.numel()
        self._message_bytes += nbytes
        return future

    def bits_per_element(self) -> float:
        """With the latest kind; NaN where nothing was sent."""
        return 8 * self._message_bytes / self._numel if self.bytes and self._numel else math.nan


def reduce_plain(
    buffer: Tensor, group: dist.ProcessGroup, kind: PlainKind, name: str
) -> tuple[Future[Tensor], int]:
    """Start to replace ``buffer`` by its mean over all ranks; all get the same bits.

    Args:
        buffer: of any dtype that Gloo reduces.
        group: of Gloo; the all-reduce is one of its own, in the order of the caller's.
        kind: ``"fp32"``: in the buffer's dtype, half precision in float32. ``"bf16"``: sent and
            added in bfloat16, as torch's bf16_compress_hook does; float16 and what isn't floating
            point as with ``"fp32"``.
        name: what error messages call it.

    Returns:
        A future of ``buffer``, a RuntimeError if a peer died or the group's timeout passed; and the
        bytes that are added up.
    """
    # Numbers, not the group: Gloo's thread may be the last to drop what waits for it, and a group
    # that ends on its own thread ends the process.
    rank, size = group.rank(), group.size()
    if kind == "bf16" and buffer.dtype in _TO_BFLOAT16 and buffer.layout == torch.strided:
        values = buffer.bfloat16()
    elif buffer.dtype in _HALF_DTYPES:
        values = buffer.float()  # Gloo would add in half precision
    else:
        values = buffer
    # Divided where there are more bits.
    late = values.dtype == torch.bfloat16
    if not late:
        values.div_(size)
    work = dist.all_reduce(values, group=group, async_op=True)
    assert work is not None

    def result(future: Future[list[Tensor]]) -> Tensor:
        try:
            future.value()  # raises what went wrong
        except RuntimeError as error:
            raise RuntimeError(
                f"gct: uncompressed all_reduce of {name} failed on rank {rank} of {size}: {error}"
            ) from error
        if values is not buffer:
            buffer.copy_(values)
        return buffer.div_(size) if late else buffer

    return work.get_future().then(result), values.numel() * values.element_size()
