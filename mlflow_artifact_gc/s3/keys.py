"""Keys as servers write them into listings: url-encoded, not encoded, or said to be and not. Pure.

Keys are byte-exact or not told at all: a wrong one would be a request to delete another object.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes

if TYPE_CHECKING:
    from collections.abc import Iterable

_NEVER_IN_URLS = re.compile(r"[^!#-;=?-\[\]_a-z~]")  # outside printable ASCII, and " < > \ ^ ` { | }


class PlusSign:
    """What ``+`` means in a server's url-encoded keys, as far as it has shown.

    AWS and SeaweedFS write a space as ``+`` and a plus as ``%2B``; moto writes a space as ``%20``. A server that writes
    ``%2B`` for a plus can mean only a space by ``+``, and one that writes ``%20`` for a space can mean only a plus.
    A race of two threads is harmless: both write what the same server shows.
    """

    def __init__(self) -> None:
        self._is_space: bool | None = None

    def watch(self, text: str) -> None:
        """Takes some encoded keys, one after the other."""
        if "%2B" in text or "%2b" in text:
            self._is_space = True
        elif "%20" in text:
            self._is_space = False

    def learn(self, encoded: Iterable[str], plain: Iterable[str]) -> None:
        """Takes a page with and without encoding; concludes only where the two readings differ."""
        names = set(plain)
        for text in encoded:
            try:
                space, plus = _decode(text, plus_is_space=True), _decode(text, plus_is_space=False)
            except UnicodeDecodeError:  # teaches nothing; the page that counts is the one without encoding
                continue
            if (space in names) is not (plus in names):
                self._is_space = space in names
                return

    @property
    def is_space(self) -> bool | None:
        return self._is_space


def is_encoded(text: str) -> bool:
    """Whether keys are url-encoded as their answer says. SeaweedFS says so of its uploads and does not do it."""
    return _NEVER_IN_URLS.search(text) is None


def decoded_keys(texts: list[str], plus: PlusSign) -> list[str] | None:
    """The keys, or None where a ``+`` may be a space or a plus.

    Raises:
        UnicodeDecodeError: a key that is not UTF-8.
    """
    together = "/".join(texts)
    if "%" not in together and "+" not in together:
        return texts
    plus.watch(together)
    if plus.is_space is None and "+" in together:
        return None
    return [_decode(text, plus_is_space=plus.is_space is True) for text in texts]


def _decode(text: str, *, plus_is_space: bool) -> str:
    if plus_is_space and "+" in text:
        text = text.replace("+", " ")
    if "%" not in text:
        return text
    # Not urllib.parse.unquote: it puts U+FFFD where the bytes are no UTF-8, which is the name of another key.
    return unquote_to_bytes(text).decode()


def decoded_marker(text: str, keys: list[str], plus: PlusSign) -> str:
    """A marker is encoded as the keys are, except by servers that forget to: then it is one of the keys as it stands.

    Decoding it twice would skip keys.
    """
    marker = _decode(text, plus_is_space=plus.is_space is not False)
    return text if marker not in keys and text in keys else marker
