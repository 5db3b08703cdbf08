"""Tests of this folder need a GPU that kernels run on; elsewhere each says why it is skipped."""

from __future__ import annotations

import pytest
import torch

from gct import _C


def missing() -> str:
    """What keeps these tests from running; empty if nothing does."""
    if not torch.cuda.is_available():
        return "torch finds no GPU"
    return _C.cuda_problem()


@pytest.fixture(autouse=True)
def _needs_gpu() -> None:
    if reason := missing():
        pytest.skip(reason)
