"""Compressed-gradient communication for PyTorch DDP."""

import torch  # noqa: F401  its libraries have to be loaded before the extension that needs them

from gct import init
from gct._build import load_extension as _load_extension
from gct._fit import fit
from gct._version import __version__
from gct.distribution import GeneralizedGaussian

_load_extension()

# Everything below needs the extension.
from gct.activation import ActivationConstraint  # noqa: E402
from gct.codec import Codec, decode, encode  # noqa: E402
from gct.collectives import Work, all_gather, all_reduce, reduce_scatter  # noqa: E402
from gct.gradient import GradientConstraint  # noqa: E402
from gct.hooks import hook  # noqa: E402
from gct.monitor import Monitor  # noqa: E402
from gct.state import GCTState  # noqa: E402

__all__ = [
    "ActivationConstraint",
    "Codec",
    "GCTState",
    "GeneralizedGaussian",
    "GradientConstraint",
    "Monitor",
    "Work",
    "__version__",
    "all_gather",
    "all_reduce",
    "decode",
    "encode",
    "fit",
    "hook",
    "init",
    "reduce_scatter",
]
