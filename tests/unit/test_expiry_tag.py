"""The expiry tag: what S3 takes is taken, and nothing else reaches S3."""

from __future__ import annotations

import pytest

from mlflow_artifact_gc.errors import UsageError
from mlflow_artifact_gc.expiry_tag import DEFAULT, Tag


@pytest.mark.parametrize(
    ("text", "tag"),
    [
        ("mlflow-artifact-gc=expired", Tag("mlflow-artifact-gc", "expired")),
        ("k=", Tag("k", "")),
        ("team:gc/x@y=a=b+c", Tag("team:gc/x@y", "a=b+c")),
        ("größe 1=zwei drei", Tag("größe 1", "zwei drei")),
        ("k" * 128 + "=" + "v" * 256, Tag("k" * 128, "v" * 256)),
        ("ü" * 128 + "=" + "漢" * 256, Tag("ü" * 128, "漢" * 256)),
    ],
)
def test_a_tag_is_read_and_shown_as_it_was_written(text: str, tag: Tag) -> None:
    """Key and value are apart at the first =."""
    assert Tag.parse(text) == tag
    assert str(tag) == text


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("expired", "no '='"),
        ("", "no '='"),
        ("=expired", "key is empty"),
        ("k" * 129 + "=v", "129 characters, and 128"),
        ("k=" + "v" * 257, "257 characters, and 256"),
        ("aws:x=1", "AWS's own"),
        ("AWS:x=1", "AWS's own"),
        ("k=a*b", "'*'"),
        ("k=a\nb", "'\\n'"),
        ("k=a\u2028b", "'\\u2028'"),
        ("k =v", "a space"),
        ("k= v", "a space"),
    ],
)
def test_what_s3_would_not_take_is_refused_in_one_sentence(text: str, words: str) -> None:
    """Before anything is written, with what is wrong."""
    with pytest.raises(UsageError) as raised:
        Tag.parse(text)

    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_site_without_the_setting_has_the_default() -> None:
    """And one with it has its own."""
    assert str(Tag.of_site(None)) == DEFAULT
    assert Tag.of_site("a=b") == Tag("a", "b")
