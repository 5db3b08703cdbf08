"""Types of the native extension (csrc/bindings.cpp, csrc/torch/python_*.cpp)."""

from collections.abc import Callable, Sequence
from typing import TypedDict

from torch import Tensor, device, dtype

class BuildInfo(TypedDict):
    version: str
    torch: str
    cuda: str | None
    cuda_architectures: str | None
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
        unit_gain: bool = False,
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
def crc32c(wire: Tensor) -> int: ...
def wire_format() -> str: ...
def implementations() -> list[str]: ...
def implementation() -> str: ...
def set_implementation(name: str) -> bool: ...
def cuda_problem() -> str: ...
def split(numel: int, parts: int) -> list[tuple[int, int]]: ...
def expect(
    params: CodecParams,
    dtype: dtype,
    runs: Sequence[tuple[int, bool, int]],
    begin: int,
    end: int,
) -> tuple[int, int]: ...
def chooses_two_shot(
    params: CodecParams, dtype: dtype, numel: int, world: int, algorithm: str
) -> bool: ...
def status_message(status: int) -> str: ...

class DeviceScratch:
    def __init__(self, device: device) -> None: ...
    def capacity_bytes(self) -> int: ...

class DeviceEncoder:
    def __init__(
        self,
        params: CodecParams,
        dtype: dtype,
        runs: Sequence[tuple[int, bool, int]],
        parts: Sequence[tuple[int, int]],
        origin: int,
        device: device,
    ) -> None: ...
    @property
    def out_bytes(self) -> int: ...
    @property
    def statistics(self) -> Tensor: ...
    def encode(
        self, data: Tensor, out: Tensor, seed: int, stream: int, scratch: DeviceScratch
    ) -> None: ...

class DeviceDecoder:
    def __init__(
        self, segments: Sequence[tuple[int, int, int, int, int]], device: device
    ) -> None: ...
    @property
    def statuses(self) -> Tensor: ...
    def decode(
        self, wire: Tensor, out: Tensor, accumulate: bool, stream: int, scratch: DeviceScratch
    ) -> None: ...

def divide_by_scales(gradient: Tensor, averages: Tensor, factor: float) -> None: ...
def multiply_by_scales(gradient: Tensor, averages: Tensor, factor: float) -> None: ...
def learn_squares(gradient: Tensor, averages: Tensor, decay: float) -> bool: ...
def hang_up(group_name: str) -> None: ...

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
    def __init__(
        self, first_group: str, second_group: str, threads: int, check_hashes: bool
    ) -> None: ...
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
        checksum: bool,
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
