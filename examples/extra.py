"""How to install what the examples need beside gct and torch: the extra ``examples``."""

from __future__ import annotations


def how_to_install(*packages: str) -> str:
    """The command; gct is installed from its repository, not from an index."""
    return (
        "pip install '.[examples]' in the repository's folder, "
        f"or only: pip install {' '.join(packages)}"
    )
