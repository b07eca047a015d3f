"""The tag that the action ``tag`` puts on objects, and that a bucket's rule expires. Pure."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Final, Self

from mlflow_artifact_gc.errors import UsageError

_LONGEST_KEY: Final = 128
_LONGEST_VALUE: Final = 256
_SIGNS: Final = frozenset("+-=._:/@")
_RESERVED: Final = "aws:"


@dataclass(frozen=True, slots=True, order=True)
class Tag:
    """A tag of an S3 object. Made by ``parse``, it is within S3's limits."""

    key: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The tag that ``key=value`` names; the value may hold further ``=``.

        Raises:
            UsageError: S3 would not take it.
        """
        key, separator, value = text.partition("=")
        problem = _problem(key, value) if separator else "it has no '=': write it as key=value, with or without a value"
        if problem:
            raise UsageError(f"{text[:_LONGEST_VALUE]!r} is no tag that S3 takes: {problem}")
        return cls(key, value)

    @classmethod
    def of_site(cls, text: str | None) -> Self:
        """The site's tag: what its setting says, else the default. Raises as ``parse`` does."""
        return cls.parse(DEFAULT if text is None else text)

    def __str__(self) -> str:
        return f"{self.key}={self.value}"


DEFAULT: Final = "mlflow-artifact-gc=expired"


def _problem(key: str, value: str) -> str:
    """What is wrong with it, or nothing. Characters are counted as S3 counts them: in Unicode's, not in bytes."""
    wrong = next((sign for sign in key + value if not _is_allowed(sign)), "")
    problems = (
        (not key, "its key is empty"),
        (len(key) > _LONGEST_KEY, f"its key has {len(key)} characters, and {_LONGEST_KEY} are the most"),
        (len(value) > _LONGEST_VALUE, f"its value has {len(value)} characters, and {_LONGEST_VALUE} are the most"),
        (key.lower().startswith(_RESERVED), f"keys that begin with {_RESERVED!r} are AWS's own"),
        (wrong, f"it holds {wrong!r}; letters, digits, spaces and {' '.join(sorted(_SIGNS))} are allowed"),
        # S3 takes it, and nobody means it.
        ((key, value) != (key.strip(), value.strip()), "a space is at the beginning or the end of its key or value"),
    )
    return next((said for found, said in problems if found), "")


def _is_allowed(sign: str) -> bool:
    category = unicodedata.category(sign)
    return sign in _SIGNS or category[0] in "LN" or category == "Zs"
