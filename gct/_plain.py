"""All-reduce without the codec: float32, or rounded to bfloat16."""

from __future__ import annotations

from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

PlainKind = Literal["fp32", "bf16"]

_HALF_DTYPES = (torch.bfloat16, torch.float16)
# Values of other dtypes would lose range or more than bfloat16 says.
_TO_BFLOAT16 = (torch.float32, torch.float64, torch.bfloat16)


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
        bytes that a ring sends from each rank.
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

    nbytes = values.numel() * values.element_size()
    return work.get_future().then(result), 2 * nbytes * (size - 1) // size
