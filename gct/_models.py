"""Models as their users know them: without what torch's wrappers add."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.parallel import DistributedDataParallel

__all__ = ["check_model", "clean_name", "named_parameters", "unwrapped"]

# What wrappers put into names: torch.compile, activation checkpointing, FSDP.
_COMPILED = "_orig_mod"
_WRAPPERS = (_COMPILED, "_checkpoint_wrapped_module", "_fsdp_wrapped_module")


def check_model(model: object) -> None:
    """Raise TypeError for anything but a module, such as a state dict or a list of parameters."""
    if not isinstance(model, nn.Module):
        raise TypeError(
            f"model must be a torch.nn.Module, got {type(model).__name__}: pass the model itself, "
            "not its parameters or its state_dict"
        )


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel and torch.compile, in any order."""
    while True:
        if isinstance(model, DistributedDataParallel):
            model = model.module
        elif _COMPILED in model._modules:
            model = model.get_submodule(_COMPILED)
        else:
            return model


def clean_name(name: str) -> str:
    """The name without the parts that wrappers anywhere in the model put in; DDP's is no such."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def named_parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """As ``model.named_parameters()`` before the model was wrapped."""
    for name, parameter in unwrapped(model).named_parameters():
        yield clean_name(name), parameter
