"""Compressed collectives on single tensors, with the conventions of torch.distributed."""

from __future__ import annotations

import weakref
from typing import Literal, overload

import torch
import torch.distributed as dist
from torch import Tensor
from torch.futures import Future

from gct._agreement import agree_on_settings
from gct._channel import Algorithm, Channel, Collective, resolve_group, result_or_raise
from gct._checks import check_values
from gct._device_channel import DeviceChannel
from gct.codec import Codec

__all__ = ["Work", "all_gather", "all_reduce", "reduce_scatter"]

Op = Literal["mean", "sum"]

_channels: weakref.WeakKeyDictionary[dist.ProcessGroup, Channel] = weakref.WeakKeyDictionary()


_device_channels: weakref.WeakKeyDictionary[
    dist.ProcessGroup, dict[torch.device, DeviceChannel]
] = weakref.WeakKeyDictionary()


class Work:
    """A collective on its way."""

    def __init__(self, done: Future[str], result: Tensor) -> None:
        self._done = done
        self._result = result

    def wait(self) -> Tensor:
        """The tensor that holds the result, once it does.

        Raises:
            RuntimeError: a peer died, the group's timeout passed, or a segment was damaged.
        """
        return result_or_raise(self._done, self._result)

    def is_completed(self) -> bool:
        """Whether wait() would return (or raise) at once."""
        return self._done.done()

    def get_future(self) -> Future[Tensor]:
        """A future of what wait() returns."""
        return self._done.then(lambda done: result_or_raise(done, self._result))


class DeviceWork(Work):
    """The same of a CUDA tensor: the current stream waits where a :class:`Work` blocks."""

    def __init__(self, future: Future[Tensor]) -> None:
        self._future = future

    def wait(self) -> Tensor:
        """The tensor; what the current stream does from now on comes after the result.

        Raises:
            RuntimeError: a peer died or the group's timeout passed, as far as the host knows.
        """
        return self._future.wait()

    def is_completed(self) -> bool:
        return self._future.done()

    def get_future(self) -> Future[Tensor]:
        return self._future


@overload
def all_reduce(
    tensor: Tensor,
    codec: Codec | None = ...,
    op: Op = ...,
    group: dist.ProcessGroup | None = ...,
    async_op: Literal[False] = ...,
    *,
    algorithm: Algorithm = ...,
) -> Tensor: ...
@overload
def all_reduce(
    tensor: Tensor,
    codec: Codec | None = ...,
    op: Op = ...,
    group: dist.ProcessGroup | None = ...,
    async_op: bool = ...,
    *,
    algorithm: Algorithm = ...,
) -> Tensor | Work: ...
def all_reduce(
    tensor: Tensor,
    codec: Codec | None = None,
    op: Op = "mean",
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
    *,
    algorithm: Algorithm = "auto",
) -> Tensor | Work:
    """Replace ``tensor`` by its mean or sum over all ranks, in place; all get the same bits.

    Sums are float32, divided once, and rounded to the tensor's dtype at the end: what lies beyond
    float16's end, 65,504, becomes an infinity, as in a sum of float16. Values near that end may get
    there by quantization alone. With one rank nothing is quantized: the tensor stays what it is.

    Args:
        tensor: float32, bfloat16, float16 or float64, on the CPU, contiguous, any shape; the same
            shape and dtype on all ranks. Or on a CUDA device, on all ranks: not float64, and a
            codec of kind ``"gg"`` with bits, ``"fixed"`` or ``"raw"``. Then nothing here waits for
            the device: the current stream does.
        codec: settings; None is ``Codec()``, 2 bits per element.
        op: ``"mean"`` or ``"sum"``.
        group: a Gloo process group, for CUDA tensors also one of NCCL; None is the default one.
            The first call on it is a collective that makes private groups: as with ``new_group``,
            all ranks make the first calls on several groups in the same order, from one thread.
        async_op: return a :class:`Work` at once; leave the tensor alone until it is done.
        algorithm: ``"one_shot"``: every rank sends its segment to all, one quantization;
            ``"two_shot"``: reduce by chunk, then send round, two quantizations and bytes that do
            not grow with the number of ranks; ``"auto"``: the first for two ranks and for small
            tensors, else the second.

    Returns:
        ``tensor``, or a Work with ``async_op``.

    Raises:
        TypeError: no tensor, or no :class:`Codec`.
        ValueError: a tensor, op or group that can't be used, or a value of ``GCT_NUM_THREADS`` that
            is no whole number from 1 to 1024.
        RuntimeError: a peer died, the group's timeout passed, or a segment was damaged; or the
            ranks made different calls, such as tensors of different shapes: then all ranks get
            this, nothing was sent, and the next call works.
    """
    return _run("all_reduce", tensor, None, codec, op, group, async_op, algorithm)


def reduce_scatter(
    output: Tensor,
    input: Tensor,
    codec: Codec | None = None,
    op: Op = "mean",
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> Tensor | Work:
    """Reduce ``input`` over all ranks and leave part ``rank`` of the result in ``output``.

    Args:
        output: as many elements as ``input`` has per rank, the same dtype, contiguous.
        input: float32, bfloat16, float16 or float64, on the CPU, contiguous; its elements in
            memory order are the parts for rank 0, 1, ... . Stays what it is, but for this rank's
            part if that is ``output`` itself; it must share no other memory with it.
        codec, op, group, async_op: as in :func:`all_reduce`.

    Returns:
        ``output``, or a Work with ``async_op``. This rank's own values take part unquantized, the
        others' are quantized once.

    Raises:
        ValueError: sizes that don't fit, or what :func:`all_reduce` refuses.
        RuntimeError: as in :func:`all_reduce`.
    """
    return _run("reduce_scatter", input, output, codec, op, group, async_op)


def all_gather(
    output: Tensor,
    input: Tensor,
    codec: Codec | None = None,
    group: dist.ProcessGroup | None = None,
    async_op: bool = False,
) -> Tensor | Work:
    """Put every rank's ``input`` into ``output``, in rank order; all get the same bits.

    Args:
        output: W times as many elements as ``input``, the same dtype, contiguous.
        input: float32, bfloat16, float16 or float64, on the CPU, contiguous. Stays what it is; in
            ``output`` its own rank's part has been through the codec like everybody's.
        codec, group, async_op: as in :func:`all_reduce`.

    Returns:
        ``output``, or a Work with ``async_op``.

    Raises:
        ValueError: sizes that don't fit, or what :func:`all_reduce` refuses.
        RuntimeError: as in :func:`all_reduce`.
    """
    return _run("all_gather", input, output, codec, "sum", group, async_op)


def _run(
    collective: Collective,
    input: Tensor,
    output: Tensor | None,
    codec: Codec | None,
    op: Op,
    group: dist.ProcessGroup | None,
    async_op: bool,
    algorithm: Algorithm = "auto",
) -> Tensor | Work:
    if op not in ("mean", "sum"):
        raise ValueError(f'op must be "mean" or "sum", got {op!r}')
    settings = Codec() if codec is None else codec
    if not isinstance(settings, Codec):
        raise TypeError(f"codec must be a gct.Codec, got {type(codec).__name__}")
    input = _check_tensors(input, output)
    name = f"a {input.dtype} tensor of shape {tuple(input.shape)}"
    if input.device.type == "cuda" and collective == "all_reduce":
        if settings.step is not None:
            raise ValueError(
                "on GPUs all_reduce takes bits, got a step: sizes must be known before"
            )
        channel = _device_channel(resolve_group(group), input.device)
        future, _ = channel.all_reduce(
            input,
            settings._params,
            name=name,
            settings=f"{op}, {settings._settled()}",
            mean=op == "mean",
            algorithm=algorithm,
        )
        device_work = DeviceWork(future)
        return device_work if async_op else device_work.wait()
    done = _channel(resolve_group(group)).submit(
        collective,
        input,
        settings._params,
        name=name,
        call=f"{collective} ({op}, {algorithm}) of {name} with {settings._settled()}",
        output=output,
        mean=op == "mean",
        algorithm=algorithm,
    )
    work = Work(done, input if output is None else output)
    return work if async_op else work.wait()


def _check_tensors(input: Tensor, output: Tensor | None) -> Tensor:
    """Raise for tensors that can't be used; the input as its memory is to be read."""
    if output is None:
        check_values("tensor", input)
        _check_writable("tensor", input)
        return input
    check_values("input", input, ("cpu",))
    check_values("output", output, ("cpu",))
    _check_writable("output", output)
    return input.resolve_neg()


def _check_writable(name: str, tensor: Tensor) -> None:
    """The result is written as it is, which a view with the negative bit shows with other signs."""
    if tensor.is_neg():
        raise ValueError(
            f"{name} must not be a negative view, as .conj().imag and torch._neg_view() make one: "
            f"pass {name}.resolve_neg(), which is a copy"
        )


def _device_channel(group: dist.ProcessGroup, device: torch.device) -> DeviceChannel:
    channels = _device_channels.setdefault(group, {})
    if device not in channels:
        channels[device] = DeviceChannel(group, device)
    return channels[device]


def _channel(group: dist.ProcessGroup) -> Channel:
    channel = _channels.get(group)
    if channel is None:
        channel = Channel(group)
        agree_on_settings(group, {})
        _channels[group] = channel
    return channel
