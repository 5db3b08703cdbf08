"""Compressed-gradient communication for PyTorch DDP."""

import torch  # noqa: F401  its libraries have to be loaded before the extension that needs them

from gct._build import load_extension as _load_extension
from gct._version import __version__
from gct.distribution import GeneralizedGaussian, fit

_load_extension()

__all__ = ["GeneralizedGaussian", "__version__", "fit"]
