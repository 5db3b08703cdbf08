"""Which modules of a model the activation constraint acts on."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping

from torch import nn

from gct._checks import plain_number
from gct._models import check_model, clean_name, unwrapped
from gct._patterns import matches

__all__ = ["Modules", "choose_modules"]

Pattern = str | nn.Module
Modules = Pattern | Iterable[Pattern] | Mapping[str, float]

# Class names in torch.nn, torchvision, timm, Hugging Face's transformers, nanoGPT and its kin.
_BLOCKS = ("*Block", "*Layer", "*Bottleneck")
_MLPS = ("*MLP", "*Mlp", "*FeedForward", "*FFN", "*FF")
_NOT = ("*Embed*",)
_LISTED = 24  # candidates in an error


def choose_modules(model: nn.Module, wanted: Modules | None) -> dict[str, tuple[nn.Module, float]]:
    """Name -> (module, weight) of the chosen modules, in the model's order.

    Raises:
        TypeError: ``model`` is no module, or ``wanted`` holds something that is neither a name
            nor a module.
        ValueError: nothing was found, or one of ``wanted`` matches nothing.
    """
    check_model(model)
    named = _named_modules(model)
    if wanted is None:
        chosen = {name: (m, 1.0) for name, m in named.items() if _is_block_or_mlp(m)}
        if not chosen:
            raise ValueError(
                "found no transformer block or MLP by class name "
                f"({', '.join(_BLOCKS + _MLPS)}): pass modules=, names or patterns among "
                + _candidates(named)
            )
        return chosen
    weights: dict[str, float] = {}
    for pattern, weight in _patterns(wanted):
        for name in _matches(named, pattern):
            weights.setdefault(name, weight)
    if not weights:
        raise ValueError("modules: expected at least one, got none")
    return {name: (named[name], weights[name]) for name in named if name in weights}


def _named_modules(model: nn.Module) -> dict[str, nn.Module]:
    """All submodules by name, without the parts of the name that wrappers add."""
    named: dict[str, nn.Module] = {}
    for name, module in unwrapped(model).named_modules():
        # Of a wrapper and what it wraps, the latter, which comes later.
        named[clean_name(name)] = module
    return named


def _patterns(wanted: Modules) -> list[tuple[Pattern, float]]:
    if isinstance(wanted, Mapping):
        for pattern, weight in wanted.items():
            weight = plain_number(weight)
            if not isinstance(weight, (int, float)) or not 0 <= weight < float("inf"):
                raise ValueError(
                    f"modules: expected a weight from 0 on for {pattern!r}, got {weight!r}"
                )
        return list(wanted.items())
    if isinstance(wanted, (str, nn.Module)):
        return [(wanted, 1.0)]
    if not isinstance(wanted, Iterable):
        raise TypeError(
            "modules: expected names, patterns or modules, or a mapping from them to weights, got "
            f"{type(wanted).__name__}"
        )
    return [(pattern, 1.0) for pattern in wanted]


def _matches(named: Mapping[str, nn.Module], pattern: Pattern) -> list[str]:
    if isinstance(pattern, nn.Module):
        found = [name for name, module in named.items() if module is pattern]
    elif isinstance(pattern, str):
        found = fnmatch.filter(named, pattern)
    else:
        raise TypeError(
            f"modules: expected names, patterns or modules, got {type(pattern).__name__}"
        )
    if found:
        return found
    what = pattern if isinstance(pattern, str) else f"this {type(pattern).__name__}"
    raise ValueError(f"modules: {what} is not in the model; it has " + _candidates(named))


def _is_block_or_mlp(module: nn.Module) -> bool:
    name = type(module).__name__
    if matches(name, _NOT):
        return False
    if not matches(name, _BLOCKS + _MLPS):
        return False
    # Two matrices at least: a "DenseLayer" that is a wrapped nn.Linear is no block.
    return sum(parameter.dim() >= 2 for parameter in module.parameters()) >= 2


def _candidates(named: Mapping[str, nn.Module]) -> str:
    lines = [f"{name} ({type(module).__name__})" for name, module in named.items() if name]
    more = f" and {len(lines) - _LISTED} more" if len(lines) > _LISTED else ""
    return ", ".join(lines[:_LISTED]) + more
