"""What has to be the same on all ranks, compared before it can do harm.

Ranks that differ expect messages of other sizes, which Gloo answers by ending the process, or they
read each other's bytes wrong.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping

import torch
import torch.distributed as dist

from gct import _C
from gct._version import __version__

_HASH_BYTES = 8
# Of a rank's text: a layout of 10,000 parameters is under 1 MiB. Lengths come from peers, and every
# rank reserves the longest for each of them.
_MAX_TEXT_BYTES = 16 << 20


def debug_setting() -> str:
    """GCT_DEBUG: ``"hash"`` has ranks compare their results; :func:`agree_on_settings` knows what
    else it may be."""
    return os.environ.get("GCT_DEBUG", "")


def gather_text(group: dist.ProcessGroup, text: str) -> list[str]:
    """Every rank's text; a collective call. Not all_gather_object: that needs numpy and pickle.

    Raises:
        RuntimeError: on all ranks, where one announces more than 16 MiB or less than nothing.
    """
    mine = torch.tensor(list(text.encode()), dtype=torch.uint8)
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(group.size())]
    dist.all_gather(lengths, torch.tensor([mine.numel()]), group=group)
    for rank, length in enumerate(lengths):
        if not 0 <= int(length) <= _MAX_TEXT_BYTES:
            raise RuntimeError(
                f"gct: rank {rank} announces a text of {int(length)} bytes, and a rank's text has "
                f"at most {_MAX_TEXT_BYTES}: does it run another program?"
            )
    longest = max(int(length) for length in lengths)
    texts = [torch.zeros(longest, dtype=torch.uint8) for _ in lengths]
    padded = torch.nn.functional.pad(mine, (0, longest - mine.numel()))
    dist.all_gather(texts, padded, group=group)
    return [
        bytes(text[: int(length)].tolist()).decode()
        for text, length in zip(texts, lengths, strict=True)
    ]


def agree_on_settings(group: dist.ProcessGroup, settings: Mapping[str, object]) -> None:
    """Raise ValueError on all ranks unless they have the same gct and the same ``settings``.

    Also where GCT_DEBUG has a value that means nothing: here, so that no rank raises alone.
    """
    debug = debug_setting()
    mine = {
        "gct's version": __version__,
        "gct's format": _C.wire_format(),
        "GCT_DEBUG": debug,  # hashes are messages
        **settings,
    }
    everyone = [json.loads(text) for text in gather_text(group, json.dumps(mine))]
    first = everyone[0]
    for rank, other in enumerate(everyone):
        # Another version may have other settings.
        for name in [*first, *(name for name in other if name not in first)]:
            if first.get(name) != other.get(name):
                raise ValueError(
                    f"all ranks need the same gct and the same settings, but {name} is "
                    f"{first.get(name)!r} on rank 0 and {other.get(name)!r} on rank {rank}"
                )
    if debug not in ("", "hash"):
        raise ValueError(f"GCT_DEBUG must be unset or hash, got {debug!r}")


def agree_on_layout(group: dist.ProcessGroup, what: str, layout: str) -> None:
    """Raise RuntimeError on all ranks unless ``layout``, of any length, is the same on all of them.

    ``what`` is what messages call it.
    """
    digest = hashlib.blake2b(layout.encode(), digest_size=_HASH_BYTES).digest()
    mine = torch.tensor(list(digest), dtype=torch.uint8)
    everyone = [torch.empty_like(mine) for _ in range(group.size())]
    dist.all_gather(everyone, mine, group=group)
    if all(torch.equal(other, everyone[0]) for other in everyone):
        return
    texts = gather_text(group, layout)
    rank = next(rank for rank, text in enumerate(texts) if text != texts[0])
    raise RuntimeError(
        f"gct: all ranks need the same model, but {what} holds {texts[0]} on rank 0 and "
        f"{texts[rank]} on rank {rank}"
    )
