"""Committed segments: this build writes the same bytes and reads the same values as the one that
wrote them. Other bytes are another wire version; `pytest --update-golden` rewrites the files.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import wire_builder
import wire_decoder as wd

import gct

FOLDER = Path(__file__).parent / "golden"
HASHES = FOLDER / "values.json"
NUMEL = 3000
SEED = 20260701
MAX_FOLDER_BYTES = 60_000

ENCODED = {
    **{f"gg-{bits}": gct.Codec("gg", bits=bits) for bits in (0.5, 2, 6)},
    "gg-mse": gct.Codec("gg", bits=2, allocation="mse"),
    "gg-step": gct.Codec("gg", step=0.25, allocation=0.5),
    "gg-snr": gct.Codec("gg", snr_db=12),
    "gg-stochastic": gct.Codec("gg", bits=2, rounding="stochastic"),
    "gg-trellis": gct.Codec("gg", bits=2, effort="high"),
    # Encoded three to six times until the size fits: the search for the step.
    "gg-searched": gct.Codec("gg", bits=1.5, allocation="mse", low_rank=0),
    "gg-trellis-searched": gct.Codec("gg", bits=0.4, allocation=0.5, low_rank=0, effort="high"),
    "eg-searched": gct.Codec("eg", bits=1.6, allocation=0.5, low_rank=0),
    "eg-2": gct.Codec("eg", bits=2),
    "eg-stochastic": gct.Codec("eg", bits=3, rounding="stochastic"),
    **{f"fixed-{bits}": gct.Codec("fixed", bits=bits) for bits in (1, 3, 8)},
    "raw": gct.Codec("raw"),
}
MATRIX_COLUMNS = 30
MATRICES = {  # with a column profile
    "gg-columns": gct.Codec("gg", bits=3, allocation="mse"),
    "gg-trellis-columns": gct.Codec("gg", bits=3, allocation="mse", effort="high"),
    "eg-columns": gct.Codec("eg", snr_db=15, allocation=0.5),
}
LOW_RANK_COLUMNS = 60
LOW_RANK_MATRICES = {  # with a low-rank part
    "gg-low-rank": gct.Codec("gg", bits=1.5, allocation="mse"),
    "eg-low-rank": gct.Codec("eg", bits=3, allocation=0.5),
}
BUILT = {"built-raw": wd.RAW, "built-gg": wd.GG, "built-eg": wd.EG, "built-fixed": wd.FIXED}
BUILT |= {"built-gg-columns": wd.GG, "built-eg-columns": wd.EG}
BUILT |= {"built-gg-low-rank": wd.GG, "built-eg-low-rank": wd.EG, "built-gg-trellis": wd.GG}
NAMES = [*ENCODED, *MATRICES, *LOW_RANK_MATRICES, *BUILT]


pytestmark = pytest.mark.usefixtures("implementation")


def gradient_like(numel: int, seed: int) -> npt.NDArray[np.float32]:
    """Peaked, heavy-tailed values whose scale differs by block; from the raw bits of PCG64 by exact
    or correctly rounded operations only, so that they are the same everywhere."""
    raw = np.random.PCG64(seed).random_raw(3 * numel).reshape(3, numel)
    uniform = (raw >> np.uint64(11)).astype(np.float64) * 2.0**-53
    scales = 2.0 ** (np.arange(numel) // 512 - 9)
    peaked = (uniform[0] - 0.5) * uniform[1] * uniform[2] / (0.05 + uniform[1])
    return (scales * peaked).astype(np.float32)


def matrix_like(numel: int, seed: int) -> npt.NDArray[np.float32]:
    """The same with scales by column."""
    x = gradient_like(numel, seed).reshape(-1, MATRIX_COLUMNS)
    scales = 2.0 ** (np.arange(MATRIX_COLUMNS) % 7)
    return (x * scales.astype(np.float32)).astype(np.float32)


def low_rank_like(numel: int, seed: int) -> npt.NDArray[np.float32]:
    """Twice as many values, close to a matrix of rank 2; term by term, for a matrix product may sum
    in any order."""
    values = gradient_like(2 * numel, seed).astype(np.float64)
    x = values.reshape(-1, LOW_RANK_COLUMNS) * 2.0**-12
    for at in (0, 256):  # stretches of one scale
        left, right = values[at : at + len(x)], values[at + 512 : at + 512 + LOW_RANK_COLUMNS]
        x = x + 2.0**14 * left[:, np.newaxis] * right
    return x.astype(np.float32)


def digest(values: npt.NDArray[np.float32]) -> str:
    bits = np.where(np.isnan(values), np.uint32(0x7FC00000), values.view(np.uint32))
    return hashlib.sha256(bits.astype("<u4").tobytes()).hexdigest()


def decode(wire: bytes) -> npt.NDArray[np.float32]:
    return gct.decode(torch.frombuffer(bytearray(wire), dtype=torch.uint8)).numpy()


def golden_hashes() -> dict[str, str]:
    return json.loads(HASHES.read_text())


def read(name: str) -> bytes:
    return (FOLDER / f"{name}.gct").read_bytes()


def encode(name: str) -> bytes:
    make = gradient_like
    if name in MATRICES:
        make = matrix_like
    if name in LOW_RANK_MATRICES:
        make = low_rank_like
    codec = {**ENCODED, **MATRICES, **LOW_RANK_MATRICES}[name]
    return gct.encode(torch.from_numpy(make(NUMEL, SEED)), codec).numpy().tobytes()


def built(name: str, kind: int) -> bytes:
    return wire_builder.random_segment(
        kind,
        SEED,
        num_runs=8,
        profiles=name.endswith("-columns"),
        low_rank=name.endswith("-low-rank"),
        trellis="-trellis" in name,
    )


@pytest.fixture(scope="session", autouse=True)
def _update_golden(request: pytest.FixtureRequest) -> None:
    if not request.config.getoption("--update-golden"):
        return
    FOLDER.mkdir(exist_ok=True)
    wires = {name: encode(name) for name in [*ENCODED, *MATRICES, *LOW_RANK_MATRICES]}
    for name, kind in BUILT.items():
        wires[name] = built(name, kind)
    for name, wire in wires.items():
        (FOLDER / f"{name}.gct").write_bytes(wire)
    hashes = {name: digest(decode(wire)) for name, wire in wires.items()}
    HASHES.write_text(json.dumps(hashes, indent=2) + "\n")


@pytest.mark.parametrize("name", NAMES)
def test_values_are_the_same(name: str) -> None:
    assert digest(decode(read(name))) == golden_hashes()[name]


@pytest.mark.parametrize("name", [*ENCODED, *MATRICES, *LOW_RANK_MATRICES])
def test_bytes_are_the_same(name: str) -> None:
    ours, golden = encode(name), read(name)
    assert len(ours) == len(golden)
    first = next((i for i, (a, b) in enumerate(zip(ours, golden, strict=True)) if a != b), None)
    assert first is None, f"byte {first} of {len(golden)}: {ours[first]}, was {golden[first]}"


@pytest.mark.parametrize("name", NAMES)
def test_the_page_reads_the_same(name: str) -> None:
    """The values don't rest on one decoder's word."""
    assert digest(wd.decode(read(name)).values) == golden_hashes()[name]


@pytest.mark.parametrize("name", NAMES)
def test_sections_are_where_the_name_says(name: str) -> None:
    segment, runs = wd.read_headers(read(name))
    assert any(run.columns for run in runs) == name.endswith("-columns")
    assert segment.low_rank == name.endswith("-low-rank")
    assert segment.trellis == ("-trellis" in name)


def test_folder_holds_these_files_and_is_small() -> None:
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {HASHES.name, *(f"{name}.gct" for name in NAMES)}
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < MAX_FOLDER_BYTES
