"""Types of the native extension (csrc/bindings.cpp, csrc/torch/python_*.cpp)."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from torch import Tensor

class BuildInfo(TypedDict):
    version: str
    torch: str
    cuda: str | None
    compiler: str
    build_type: str
    sanitize: bool

def build_info() -> BuildInfo: ...

class CodecParams:
    def __init__(
        self,
        *,
        kind: str,
        target: str,
        value: float,
        allocation8: int,
        stochastic: bool,
        seed: int = 0,
        max_rank: int = 0,
        high_effort: bool = False,
    ) -> None: ...

class WireInfo(TypedDict):
    kind: str
    numel: int
    num_runs: int
    size_bytes: int

class EncodeReport(TypedDict):
    attempts: int
    model_bits: float
    nonfinite_runs: int

def encode(values: Tensor, params: CodecParams) -> Tensor: ...
def encode_report(values: Tensor, params: CodecParams) -> tuple[Tensor, EncodeReport]: ...
def decode(wire: Tensor) -> Tensor: ...
def inspect(wire: Tensor) -> WireInfo: ...
def implementations() -> list[str]: ...
def implementation() -> str: ...
def set_implementation(name: str) -> bool: ...

class EngineStats(TypedDict):
    jobs: int
    raw_bytes: int
    wire_bytes: int
    encoded_numel: int
    encoded_bytes: int
    nonfinite_runs: int
    encode_seconds: float
    decode_seconds: float
    wait_seconds: float

class Engine:
    def __init__(self, first_group: str, second_group: str, threads: int) -> None: ...
    def submit(
        self,
        *,
        collective: str,
        input: Tensor,
        output: Tensor | None,
        residual: Tensor | None,
        runs: Sequence[tuple[int, bool, int]],
        codec: CodecParams,
        mean: bool,
        algorithm: str,
        seed: int,
        name: str,
        call: str,
        probe: bool,
        on_done: Callable[[str, bool, Tensor], None],
    ) -> None: ...
    def close(self) -> None: ...
    def stats(self) -> EngineStats: ...
    def scratch_bytes(self) -> int: ...
    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def threads(self) -> int: ...
