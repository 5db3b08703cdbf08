"""The codec's settings, and the codec on single tensors."""

from __future__ import annotations

import math
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from gct import _C
from gct._checks import (
    check_memory,
    check_number,
    check_tensor,
    check_values,
    plain_number,
    whole_number,
)
from gct._device_codec import decode_on_device, encode_on_device

__all__ = ["Codec", "decode", "encode"]

Kind = Literal["gg", "eg", "fixed", "raw"]
Rounding = Literal["deterministic", "stochastic"]
Effort = Literal["normal", "high"]
Reconstruction = Literal["centroid", "unit_gain"]

# exp-Golomb codes spend at least a bit on every symbol: a lower target would zero whole blocks.
_LEAST_BITS = {"gg": 0.1, "eg": 1.5}
MAX_BITS = 12.0
MAX_SNR_DB = 120.0
DEFAULT_BITS = 2.0
MAX_RANK = 16
_MAX_SEED = 2**64 - 1

# Exponents of the block scale in the quantizer's step, by name. "auto" is what training measured
# best: with AdamW, steps that follow the block's scale win at every rate tried.
_ALLOCATIONS = {"auto": 1.0, "relative": 1.0, "mse": 0.0}


@dataclass(frozen=True)
class Codec:
    """How values become bytes. Validated once, here; everything later takes it as sound.

    At most one of ``bits``, ``snr_db`` and ``step`` may be given; it is the target. With none of
    them ``bits`` is 2.0.

        codec = gct.Codec(snr_db=20, allocation="mse")
        wire = gct.encode(x, codec)

    Two codecs are equal if their settings mean the same, as ``Codec()`` and
    ``Codec(allocation="relative")``. ``dataclasses.asdict`` and ``replace`` work; ``replace`` with
    another kind of target takes ``bits=None`` (or whichever was given) beside it.

    A block of 256 elements whose mean absolute value is below 2^-100 (8e-31) is coded as zeros,
    whatever the target is (``"raw"`` keeps it): multiply such tensors by a power of 2 before.

    Args:
        kind: ``"gg"``: uniform quantizer and an entropy coder whose tables follow from a
            generalized Gaussian (arXiv 2506.00486); ``"eg"``: the same quantizer and exp-Golomb
            codes; ``"fixed"``: codebooks of 1 to 8 bits with a scale per block; ``"raw"``: no
            loss, no compression.
        bits: mean bits per element on the wire, all headers counted, from 0.1 (``"eg"``: 1.5) to
            12. Tensors of fewer than some thousand elements take more: the headers. For
            ``"fixed"`` the width of a code, a whole number from 1 to 8, to which the scales of
            blocks add 0.063 bits and headers some bytes: 2.063 bits for 2.
        snr_db: 10 log10(signal / error) in dB, above 0, at most 120. Met within 0.3 dB on nearly
            all gradients measured (one tensor: 0.62; docs/decisions.md). The error of a few values
            among zeros, or of one magnitude, jumps: it may be several dB less, and at most 0.43 dB
            more (``effort="high"`` searches less and may miss by more).
        step: the quantizer's step, above 0, in units of (mean absolute value of the block) **
            exponent: relative to the block's scale with ``"relative"``, absolute with ``"mse"``.
        allocation: how steps follow scales: ``"mse"`` is one step for all (the least squared
            error), ``"relative"`` a step proportional to the scale of each block of 256 elements,
            a number from 0 to 1 (a multiple of 1/8) the exponent in between. ``"auto"`` is
            ``"relative"`` for now. Below 1, matrices take fewer bits for the same error, because
            the scales of their columns are sent where that pays. Of no effect with ``"fixed"``,
            whose steps are always relative, and ``"raw"``.
        rounding: ``"deterministic"`` (to the nearest) or ``"stochastic"`` (unbiased).
        low_rank: largest rank of the low-rank part of a matrix, 0 to 16. Gradients of weights are
            close to matrices of low rank; the strongest directions are sent as two narrow factors
            where that saves bits, and the rest as always. Costs time in the encoder. ``"auto"`` is
            16 where ``allocation`` is below 1, else 0: with a step in proportion to the block's
            scale the rest takes as many bits as the whole, and smaller exponents leave less error.
        effort: ``"high"`` chooses the symbols of all elements together, so that error and bits are
            least in sum (trellis-coded quantization): 0.2 to 1.25 dB less error at equal bits on
            the gradients measured, mostly over 0.3. Encoding takes 9 to 16 times as long with
            AVX-512, which alone has a vector form of it, and 19 to 26 times with AVX2; a small
            tensor alone up to 230 times (16,384 elements at 1.2 bits, AVX2). Decoding takes 3 to 4
            times as long; see docs/decisions.md. Where an estimate says that it would lose, the
            message is one of normal effort. Factors of low-rank parts are always coded with normal
            effort. Only with ``kind="gg"``, deterministic rounding and CPU tensors.
        reconstruction: what symbols decode to. ``"centroid"``: the mean of what they stand for,
            which has the least error and is smaller than the input: where quantizing leaves the
            relative squared error D, what comes out is 1 - D of the input and noise that does not
            depend on it; at 1 bit 0.72 of Laplace and 0.6 of normal values. ``"unit_gain"``: all of
            the input and more noise, D / (1 - D); the scale of DRIVE and EDEN (arXiv 2105.08339),
            here from the generalized Gaussian and not more than 4. Encoding and its bytes are the
            same but for the header.
            Only with ``"gg"`` and ``"eg"``, a target in bits or a step, deterministic rounding
            (stochastic rounding has unit gain by itself) and normal effort.

    Raises:
        TypeError: a value of another type; NumPy's scalars are numbers, True and False aren't.
        ValueError: more than one target, or a value outside its range.
    """

    kind: Kind = "gg"
    _: KW_ONLY
    bits: float | None = None
    snr_db: float | None = None
    step: float | None = None
    allocation: str | float = "auto"
    rounding: Rounding = "deterministic"
    low_rank: int | Literal["auto"] = "auto"
    effort: Effort = "normal"
    reconstruction: Reconstruction = "centroid"

    def __post_init__(self) -> None:
        _check_choice("kind", self.kind, get_args(Kind))
        _check_choice("rounding", self.rounding, get_args(Rounding))
        _check_choice("effort", self.effort, get_args(Effort))
        _check_choice("reconstruction", self.reconstruction, get_args(Reconstruction))
        for name in ("bits", "snr_db", "step", "allocation", "low_rank"):
            object.__setattr__(self, name, plain_number(getattr(self, name)))
        self._target()
        self._max_rank()
        if self.kind == "fixed" and self.rounding != "deterministic":
            raise ValueError('kind="fixed" rounds to its codebook: rounding must be deterministic')
        if self.effort == "high" and (self.kind != "gg" or self.rounding != "deterministic"):
            raise ValueError(
                'effort="high" needs kind="gg" and rounding="deterministic", '
                f"got kind={self.kind!r} and rounding={self.rounding!r}"
            )

        if self.reconstruction == "unit_gain":
            self._check_unit_gain()

    # No field, which dataclasses.asdict and replace would have to copy.
    @cached_property
    def _params(self) -> _C.CodecParams:
        return self._make_params(seed=0)

    def _make_params(self, seed: int) -> _C.CodecParams:
        target, value = self._target()
        return _C.CodecParams(
            kind=self.kind,
            target=target,
            value=value,
            allocation8=_exponent8(self.allocation),
            stochastic=self.rounding == "stochastic",
            seed=seed,
            max_rank=self._max_rank(),
            high_effort=self.effort == "high",
            unit_gain=self.reconstruction == "unit_gain",
        )

    def _key(self) -> tuple[tuple[str, object], ...]:
        """What the settings mean: two codecs with the same one write the same bytes."""
        target, value = self._target()
        meaning: dict[str, object] = {
            "kind": self.kind,
            **({target: value} if self.kind != "raw" else {}),
            "allocation": _exponent8(self.allocation) / 8,
            "rounding": self.rounding,
            "low_rank": self._max_rank(),
            "effort": self.effort,
            "reconstruction": self.reconstruction,
        }
        return tuple(meaning.items())

    def _settled(self) -> str:
        """In words that are the same wherever codecs are equal."""
        return f"Codec({', '.join(f'{name}={value!r}' for name, value in self._key())})"

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, Codec) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _target(self) -> tuple[str, float]:
        """Name and checked value of the target; fills in the default."""
        given = {
            name: value
            for name in ("bits", "snr_db", "step")
            if (value := getattr(self, name)) is not None
        }
        if len(given) > 1:
            raise ValueError(
                f"at most one of bits, snr_db and step may be given, got {given} "
                "(dataclasses.replace keeps the old one: pass it as None)"
            )
        if self.kind == "raw":
            if given:
                raise ValueError(f'kind="raw" loses nothing and takes no target, got {given}')
            return "bits", DEFAULT_BITS  # not used
        if not given:
            object.__setattr__(self, "bits", DEFAULT_BITS)
            given = {"bits": DEFAULT_BITS}
        [(name, value)] = given.items()
        check_number(name, value)
        self._check_value(name, value)
        return name, float(value)

    def _max_rank(self) -> int:
        """Largest rank of low-rank parts, after checks."""
        possible = self.kind in ("gg", "eg") and _exponent8(self.allocation) < 8
        if isinstance(self.low_rank, str) and self.low_rank == "auto":
            return MAX_RANK if possible else 0
        rank = whole_number("low_rank", self.low_rank, ' or "auto"')
        if not 0 <= rank <= MAX_RANK:
            raise ValueError(f"low_rank must be from 0 to {MAX_RANK}, got {rank}")
        if rank and not possible:
            raise ValueError(
                'low_rank needs kind="gg" or "eg" and an allocation below 1 such as 0.5 or "mse"; '
                f"got kind={self.kind!r} and allocation={self.allocation!r}"
            )
        return rank

    def _check_unit_gain(self) -> None:
        name = unit_gain_obstacle(self.kind, self.snr_db, self.rounding, self.effort)
        if name is not None:
            raise ValueError(
                'reconstruction="unit_gain" needs kind="gg" or "eg", bits or a step, '
                'rounding="deterministic" and effort="normal"; '
                f"got {name}={getattr(self, name)!r}"
            )

    def _check_value(self, name: str, value: float) -> None:
        if self.kind == "fixed":
            if name != "bits" or not 1 <= value <= 8 or value != int(value):
                raise ValueError(
                    f'kind="fixed" takes bits, a whole number from 1 to 8, got {name}={value}'
                )
        elif name == "bits" and not (low := _LEAST_BITS[self.kind]) <= value <= MAX_BITS:
            raise ValueError(
                f'bits must be from {low} to {MAX_BITS} for kind="{self.kind}", got {value}'
            )
        elif name == "snr_db" and not 0 < value <= MAX_SNR_DB:
            raise ValueError(f"snr_db must be above 0 and at most {MAX_SNR_DB}, got {value}")
        elif name == "step" and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"step must be a finite number above 0, got {value}")

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in self.__dict__.items() if name != "_params"}

    def __setstate__(self, state: dict[str, object]) -> None:
        for name, value in state.items():
            object.__setattr__(self, name, value)
        self.__post_init__()


def unit_gain_obstacle(kind: str, snr_db: float | None, rounding: str, effort: str) -> str | None:
    """Name of the first of these settings that levels of unit gain don't go with."""
    needed = {
        "kind": kind in ("gg", "eg"),
        "snr_db": snr_db is None,
        "rounding": rounding == "deterministic",
        "effort": effort == "normal",
    }
    return next((name for name, met in needed.items() if not met), None)


def encode(x: Tensor, codec: Codec | None = None, *, seed: int = 0) -> Tensor:
    """Encode a tensor, on one thread; other threads may encode and decode meanwhile.

    A NaN or an infinity anywhere, or a block of 256 elements whose mean magnitude is over 2^124,
    makes all of the tensor decode to NaN; only ``"raw"`` keeps the other values, and infinities.
    float64 is rounded to float32 first, so that values beyond its range are infinities. Not
    differentiable: what comes back has no gradient. docs/codec.md has examples.

    Args:
        x: float32, bfloat16, float16 or float64, on the CPU, contiguous, any shape. Its elements
            are taken in memory order; the shape is not kept, but it tells the columns. Or on a
            CUDA device: not float64, and a codec of kind ``"gg"`` with bits or a step and normal
            effort, ``"fixed"`` or ``"raw"``; waits for the device, to learn the size.
        codec: settings; None is ``Codec()``, 2 bits per element.
        seed: for stochastic rounding, from 0 to 2^64 - 1: the same seed gives the same bytes. Pass
            another one with every call whose rounding is to be independent of the others'.

    Returns:
        1-D uint8 tensor on the same device: the segment that :func:`decode` takes anywhere. The
        same on every machine for a CPU tensor; a GPU chooses the quantizer's step in another way
        and has no column profiles and low-rank parts.

    Raises:
        TypeError: no tensor, no :class:`Codec`, or a seed that is no whole number.
        ValueError: another dtype, device or layout (nested and sparse ones among them), not
            contiguous, or a seed out of range.
    """
    check_values("x", x)
    if not isinstance(codec, Codec | None):
        raise TypeError(f"codec must be a gct.Codec, got {type(codec).__name__}")
    seed = whole_number("seed", seed)
    if not 0 <= seed <= _MAX_SEED:
        raise ValueError(f"seed must be from 0 to 2^64 - 1, got {seed}")
    settings = codec or Codec()
    params = settings._make_params(seed) if seed else settings._params
    x = x.detach().resolve_neg()  # the codec reads memory, where a negative view's signs are not
    return encode_on_device(x, params, seed) if x.is_cuda else _C.encode(x, params)


def decode(wire: Tensor, numel: int | None = None) -> Tensor:
    """Decode a segment, on one thread; other threads may encode and decode meanwhile.

    Args:
        wire: 1-D uint8 tensor on the CPU or a CUDA device, contiguous, from :func:`encode` of any
            gct with the same wire version. On a GPU this waits for the device. Bytes after the
            segment are ignored, since a slot may be larger than what is in it: for several
            segments in a row keep their sizes.
        numel: number of elements that you expect; another one is refused before anything is
            allocated. Pass it for bytes that you don't trust: zeros take no bytes, so 64 of them
            may state 2^48 elements. None: as many as the segment says.

    Returns:
        1-D float32 tensor on the same device, the same on every machine. Shape and dtype are the
        caller's to restore: ``.view(shape).to(dtype)``.

    Raises:
        TypeError: no tensor, or a ``numel`` that is no whole number.
        ValueError: bytes that are no sound segment, whatever they are, or one of another number of
            elements than ``numel``.
        RuntimeError: no memory for the elements that the segment states.
    """
    _check_wire(wire)
    if numel is not None:
        _check_numel(wire, whole_number("numel", numel, " or None"))
    try:
        return decode_on_device(wire) if wire.is_cuda else _C.decode(wire)
    except torch.OutOfMemoryError:  # of the GPU
        pass
    except RuntimeError as error:
        if "allocate memory" not in str(error):  # torch has no class for the CPU's
            raise
    stated = _C.inspect(wire.cpu())["numel"]
    raise RuntimeError(
        f"no memory for {stated} elements of 4 bytes, which these {wire.numel()} bytes state: pass "
        "the number that you expect as numel=, and bytes that state another one are refused before "
        "anything is allocated"
    )


def _check_wire(wire: object) -> None:
    check_tensor("wire", wire)
    assert isinstance(wire, Tensor)
    if wire.dtype != torch.uint8:
        raise ValueError(f"wire must be torch.uint8, as gct.encode returns it, got {wire.dtype}")
    if wire.is_nested or wire.dim() != 1:
        raise ValueError(f"wire must be 1-D, one segment, got {wire.dim()} dimensions")
    check_memory("wire", wire)


def _check_numel(wire: Tensor, numel: int) -> None:
    """By the headers alone: nothing is allocated yet."""
    stated = _C.inspect(wire.cpu())["numel"]
    if stated != numel:
        raise ValueError(
            f"expected a segment of {numel} elements, got {wire.numel()} bytes that state "
            f"{stated}: they belong to another tensor or were tampered with; pass the number that "
            "was encoded"
        )


def _check_choice(name: str, value: object, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(choices)}, got {value!r}")


def _exponent8(allocation: str | float) -> int:
    """The exponent of the block scale, in eighths."""
    if isinstance(allocation, str):
        if allocation not in _ALLOCATIONS:
            names = ", ".join(_ALLOCATIONS)
            raise ValueError(
                f"allocation must be {names} or a number from 0 to 1, got {allocation!r}"
            )
        allocation = _ALLOCATIONS[allocation]
    if isinstance(allocation, bool) or not isinstance(allocation, (int, float)):
        raise TypeError(
            f"allocation must be a name or a number from 0 to 1, got {type(allocation).__name__}"
        )
    eighths = 8 * float(allocation)
    if not 0 <= eighths <= 8 or eighths != int(eighths):
        raise ValueError(f"allocation must be a multiple of 1/8 from 0 to 1, got {allocation!r}")
    return int(eighths)
