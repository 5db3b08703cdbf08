"""What benchmarks/codec.py --scaling measures: what a second thread gives, beside what it could.

One thread and all of them take turns call by call, and work that shares nothing takes turns with
the codec: sums (as many operations as a core begins), a chain of multiplications (each waits for
the one before) and reading memory. The processors of a virtual machine may be two threads of one
core, which only the controls tell. Results of one thread and of all are compared in the same run.
"""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Scaling:
    name: str  # the codec's kind and bits with the work, or the control
    numel: int
    one_seconds: list[float]  # of a call, by repeat
    all_seconds: list[float]

    @property
    def ratios(self) -> list[float]:
        """Sorted, of neighbouring turns."""
        return sorted(a / b for a, b in zip(self.one_seconds, self.all_seconds, strict=True))

    def __str__(self) -> str:
        one, both = statistics.median(self.one_seconds), statistics.median(self.all_seconds)
        low, _, high = statistics.quantiles(self.ratios, n=4)
        return (
            f"{self.name:17} {self.numel:9} | {1e3 * one:8.3f} {1e3 * both:8.3f}"
            f" | {one / both:5.2f}  {statistics.median(self.ratios):5.2f}  {low:5.2f} {high:5.2f}"
        )


HEAD = (
    f"{'':17} {'elements':>9} |  one: ms  all: ms"
    " | ratio of the medians, median and quartiles of the turns' ratios"
)


def rows(result: dict[str, Any], bits: float, numel: int) -> list[Scaling]:
    """From a line of the program."""
    return [
        Scaling(
            f"{result['name']} {bits:g} {work}" if work in ("encode", "decode_add") else work,
            numel,
            seconds["one"],
            seconds["all"],
        )
        for work, seconds in result["seconds"].items()
    ]
