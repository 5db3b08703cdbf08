"""Names chosen by patterns, as on a command line."""

import fnmatch
from collections.abc import Iterable, Sequence

_LISTED = 8  # names in an error


def as_tuple(argument: str, patterns: str | Iterable[str]) -> tuple[str, ...]:
    """One pattern or several: a string alone is not a sequence of letters here.

    Raises:
        TypeError: something else, such as a module; ``argument`` is what the caller calls it.
    """
    if isinstance(patterns, str):
        return (patterns,)
    each = tuple(patterns) if isinstance(patterns, Iterable) else (patterns,)
    for pattern in each:
        if not isinstance(pattern, str):
            raise TypeError(
                f"{argument}: expected names or patterns of names, got {type(pattern).__name__}"
            )
    return each


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether one of the fnmatch patterns fits the whole name; upper and lower case differ."""
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def check_patterns(
    argument: str,
    patterns: Iterable[str],
    names: Iterable[Sequence[str]],
    what: str,
    hint: str = "",
) -> None:
    """Raise ValueError for the first pattern that fits no name: likely a slip.

    Args:
        argument: what the caller calls the patterns.
        names: of each thing that can be chosen all its names, the one to show first.
        what: a word for such a thing.
        hint: what else to say.
    """
    known = list(names)
    for pattern in patterns:
        if not any(matches(name, (pattern,)) for each in known for name in each):
            shown = [each[0] for each in known[:_LISTED]] + ["..."] * (len(known) > _LISTED)
            raise ValueError(
                f"{argument}: {pattern!r} fits no {what}; there are "
                f"{', '.join(shown) or 'none'}{hint}"
            )
