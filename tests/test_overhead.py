"""What a segment has beside its symbols, at 2 bits an element and buckets of 2^20 elements.

The gradient is the example GPT's, of one batch; docs/decisions.md has later steps too
(``python tests/test_overhead.py build/gradients/grad_step*.pt``).
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
import wire_decoder as wd
from torch import Tensor

import gct

BUCKET = 1 << 20
MOST = 0.015  # of the segment: headers, classes, lanes
EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def buckets(gradients: Iterable[Tensor]) -> list[Tensor]:
    """The weights' gradients end to end, cut into whole buckets."""
    flat = torch.cat([g.flatten() for g in gradients if g.ndim > 1])
    return list(flat.split(BUCKET)[: len(flat) // BUCKET])


def parts(bucket: Tensor, bits: float = 2.0) -> wd.Parts:
    return wd.parts(gct.encode(bucket, gct.Codec(bits=bits)).numpy().tobytes())


def generalized_gaussian(shape: int) -> Tensor:
    """Shape 2 is the normal distribution, 1 is Laplace's."""
    torch.manual_seed(1)
    if shape == 2:
        return torch.randn(BUCKET)
    return torch.empty(BUCKET).exponential_() * torch.randn(BUCKET).sign()


@pytest.mark.parametrize("shape", [1, 2])
def test_generalized_gaussian_data(shape: int) -> None:
    found = parts(generalized_gaussian(shape))
    assert found.overhead <= MOST, found


def test_real_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    from model import GPT, GPTConfig, loss_per_byte

    torch.manual_seed(1)
    config = GPTConfig()
    model = GPT(config)
    tokens = torch.randint(32, 127, (2, config.context + 1))
    loss_per_byte(model(tokens[:, :-1]), tokens[:, 1:]).backward()
    gradient = [p.grad for p in model.parameters() if p.grad is not None]
    found = [parts(bucket) for bucket in buckets(gradient)]
    assert len(found) == 3
    for bucket in found:
        assert bucket.overhead <= MOST, bucket
        assert bucket.symbols > 0.9 * BUCKET * 2 / 8  # and 2 bits it is


def test_the_parts_are_the_whole() -> None:
    """Counted by reading the segment to its end: what is left when classes are read are symbols."""
    x = generalized_gaussian(1)[:20000]
    wire = gct.encode(x, gct.Codec(bits=2.0)).numpy().tobytes()
    found, decoded = wd.parts(wire), wd.decode(wire)
    assert found.headers == 64
    assert 8 + 128 / 2 < found.lanes < 136  # 16 to 32 of a lane's 32 bits hold nothing
    # rANS meets the ideal length to 0.1 % (its divisions round), and bytes are whole ones.
    assert found.classes + found.symbols == pytest.approx(decoded.ideal_bits / 8, rel=1e-3, abs=1)


def main() -> None:
    print("| gradients | headers | lanes | classes | all |\n|---|---|---|---|---|")
    for path in sys.argv[1:]:
        for i, bucket in enumerate(buckets(torch.load(path).values())):
            found = parts(bucket)
            shares = [f"{100 * part / sum(found):.2f} %" for part in found[:3]]
            all_of_them = f"{100 * found.overhead:.2f} %"
            print(f"| {Path(path).stem}, bucket {i} | {' | '.join([*shares, all_of_them])} |")


if __name__ == "__main__":
    main()
