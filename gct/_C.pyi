"""Types of the native extension (csrc/bindings.cpp)."""

from typing import TypedDict

class BuildInfo(TypedDict):
    version: str
    torch: str
    cuda: str | None
    compiler: str
    build_type: str
    sanitize: bool

def build_info() -> BuildInfo: ...
