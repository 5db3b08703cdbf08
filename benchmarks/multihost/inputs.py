"""What the ranks reduce: random gradients of a distribution, or real ones from a file."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from multihost.errors import UserError

# Larger buckets repeat the values: making them must not take longer than sending.
POOL_NUMEL = 1 << 22
MATRIX = (1024, 1024)
# By how many values a call's begin after the last one's: a prime, so that all of them are begun
# with in turn, unless there are a multiple of it.
_TURN = 1_000_003


@dataclass(frozen=True)
class Source:
    """One rank's values, and the parameters that they are the gradients of."""

    name: str
    values: Tensor  # float32, 1-D
    shapes: list[tuple[int, ...]]
    drawn: bool  # at random, one as likely at any place as another

    def fill(self, out: Tensor, call: int = 0) -> None:
        """Write the values into ``out`` (1-D), again and again, from the start for call 0.

        For another call those of a file stay where they are, since each is of an element of a
        parameter. Random ones move: what a scheme has remembered of an element says nothing of the
        next value there, as little as with gradients of other batches.
        """
        numel = self.values.numel()
        at = call * _TURN % numel if self.drawn else 0
        begin = 0
        while begin < out.numel():
            part = out[begin : begin + numel - at]
            part.copy_(self.values[at : at + part.numel()])
            begin += part.numel()
            at = 0

    def layout(self, numel: int) -> list[tuple[int, ...]]:
        """Shapes that follow one another as in the source and have ``numel`` elements together."""
        shapes: list[tuple[int, ...]] = []
        for shape in itertools.cycle(self.shapes):
            if numel == 0:
                break
            shapes.append(_cut(shape, numel))
            numel -= math.prod(shapes[-1])
        return shapes


def _cut(shape: tuple[int, ...], numel: int) -> tuple[int, ...]:
    """The shape, or as many whole rows of it, or elements, as ``numel`` allows."""
    if math.prod(shape) <= numel:
        return shape
    rows = numel // math.prod(shape[1:])
    return (rows, *shape[1:]) if rows else (numel,)


def make_source(text: str, rank: int, seed: int, numel: int = POOL_NUMEL) -> Source:
    """Read ``--input``: gaussian, laplace, gg, gg:SHAPE or a file.

    Ranks draw from different streams. ``{rank}`` in a file's name is replaced; without it all ranks
    read the same values. ``numel`` is that of the largest bucket: no more random values are made.

    Raises:
        UserError: an unknown name, a bad shape or file.
    """
    name, _, argument = text.partition(":")
    numel = min(numel, POOL_NUMEL)
    generator = torch.Generator().manual_seed(seed * 1_000_003 + rank)
    if text == "gaussian":
        values = torch.randn(numel, generator=generator)
    elif text == "laplace":
        values = _generalized_gaussian(1.0, numel, generator)
    elif name == "gg":
        values = _generalized_gaussian(_shape(argument or "0.8"), numel, generator)
    else:
        return _read(text, rank)
    return Source(text, values.mul_(1e-3), [MATRIX], drawn=True)


def _shape(text: str) -> float:
    try:
        shape = float(text)
    except ValueError:
        shape = math.nan
    if not 0.1 <= shape <= 10:
        raise UserError(f"The shape in --input gg:SHAPE must be from 0.1 to 10, got {text!r}.")
    return shape


def _generalized_gaussian(shape: float, numel: int, generator: torch.Generator) -> Tensor:
    """Values whose |x|^shape is Gamma(1/shape) distributed."""
    rate = torch.full((numel,), 1 / shape)
    magnitudes = torch._standard_gamma(rate, generator=generator).pow_(1 / shape)
    signs = torch.randint(0, 2, (numel,), generator=generator)
    return magnitudes.mul_(signs.mul_(2).sub_(1))


def _read(text: str, rank: int) -> Source:
    path = Path(text.replace("{rank}", str(rank)))
    if not path.is_file():
        raise UserError(
            f"--input is gaussian, laplace, gg, gg:SHAPE or a file; there is no file {str(path)!r} "
            f"on rank {rank}."
        )
    try:
        tensors = _load(path)
    except Exception as error:
        raise UserError(
            f"{path} can't be read ({error}): expected .npy, or a tensor or a dict of tensors "
            "from torch.save, as examples/collect_gradients.py writes."
        ) from error
    values = torch.cat([tensor.reshape(-1).float() for tensor in tensors])
    if not (values.numel() and bool(values.isfinite().all())):
        raise UserError(f"{path} is empty or holds NaN or Inf: choose another file.")
    shapes = [tuple(t.shape) or (1,) for t in tensors if t.numel()]
    return Source(path.name, values, shapes, drawn=False)


def _load(path: Path) -> list[Tensor]:
    if path.suffix == ".npy":
        import numpy

        tensors = [torch.from_numpy(numpy.load(path, allow_pickle=False))]
    else:
        content = torch.load(path, map_location="cpu", weights_only=True)
        tensors = [content] if isinstance(content, Tensor) else list(content.values())
    for tensor in tensors:
        if not isinstance(tensor, Tensor):
            raise TypeError(f"it holds a {type(tensor).__name__}, not a tensor")
        if tensor.is_complex():
            raise TypeError("it holds complex numbers")
    return tensors
