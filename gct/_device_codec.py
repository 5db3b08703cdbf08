"""Single tensors on a GPU through the codec."""

from __future__ import annotations

import torch
from torch import Tensor

from gct import _C
from gct._device_wire import guard

_SIZE_AT = slice(24, 32)  # of a segment's header; docs/wire-format.md
_HEADER_BYTES = 40


def encode_on_device(x: Tensor, params: _C.CodecParams, seed: int = 0) -> Tensor:
    """See :func:`gct.encode`. On a CPU tensor the kernels' bodies run as loops, for tests."""
    _check_place(x, "x")
    runs = [(x.numel(), False, 0)]
    if x.numel() == 0:
        return _C.encode(torch.empty(0, dtype=x.dtype), params).to(x.device)
    with guard(x.device):
        encoder = _C.DeviceEncoder(params, x.dtype, runs, [(0, x.numel())], 0, x.device)
        wire = torch.empty(encoder.out_bytes, dtype=torch.uint8, device=x.device)
        encoder.encode(x.detach(), wire, seed, _stream(x.device), _C.DeviceScratch(x.device))
        size = int.from_bytes(bytes(wire[_SIZE_AT].tolist()), "little")
        return wire[:size].clone()


def decode_on_device(wire: Tensor) -> Tensor:
    """See :func:`gct.decode`. On a CPU tensor the kernels' bodies run as loops, for tests."""
    _check_place(wire, "wire")
    if wire.dtype != torch.uint8 or wire.dim() != 1 or wire.numel() < _HEADER_BYTES:
        return _C.decode(wire.cpu()).to(wire.device)  # raises
    header = bytes(wire[:_HEADER_BYTES].tolist())
    num_runs = int.from_bytes(header[12:16], "little")
    numel = int.from_bytes(header[16:24], "little")
    # Bytes that announce more than they can hold, or zeros, are the CPU's to judge.
    if num_runs > wire.numel() // 24 or numel > 256 * wire.numel():
        return _C.decode(wire.cpu()).to(wire.device)
    with guard(wire.device):
        decoder = _C.DeviceDecoder([(0, wire.numel(), 0, numel, num_runs)], wire.device)
        values = torch.empty(numel, dtype=torch.float32, device=wire.device)
        decoder.decode(wire, values, False, _stream(wire.device), _C.DeviceScratch(wire.device))
        if int(decoder.statuses[0]) == 0:
            return values
    # Kinds and parts that kernels don't know, or an error whose words the CPU finds.
    return _C.decode(wire.cpu()).to(wire.device)


def _check_place(tensor: Tensor, name: str) -> None:
    if tensor.device.type == "cuda" and (problem := _C.cuda_problem()):
        raise ValueError(f"{name} is on {tensor.device}, but gct can't work there: {problem}")
    if not tensor.is_contiguous():
        raise ValueError(f"{name} must be contiguous: pass .contiguous()")


def _stream(device: torch.device) -> int:
    return int(torch.cuda.current_stream(device).cuda_stream) if device.type == "cuda" else 0
