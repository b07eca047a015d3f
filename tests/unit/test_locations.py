"""MLflow's URIs and the S3 places that they name: the rules of MLflow's own repository and proxy, and nothing else."""

from __future__ import annotations

from urllib.parse import urlparse

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mlflow_artifact_gc.errors import NotOnS3, UnreadableUri
from mlflow_artifact_gc.locations import Destination, Location, proxied_host, proxied_path

NOWHERE = Destination()
ON_DISK = Destination.parse("/srv/mlartifacts")
PROXY = Destination.parse("s3://bucket/root")


def of(prefix: str, bucket: str = "bucket") -> Location:
    """A location in the bucket that most of these tests use."""
    return Location(bucket, prefix)


# A location


@pytest.mark.parametrize("prefix", ["run1", "1/run1", "/run1", " "])
def test_a_prefix_without_its_slash_cannot_be_made(prefix: str) -> None:
    """A prefix that would delete the neighbour's objects too is no location."""
    with pytest.raises(ValueError, match="ends in '/'"):
        Location("bucket", prefix)


@pytest.mark.parametrize(
    ("key", "prefix"), [("", ""), ("1/run1", "1/run1/"), ("1/run1/", "1/run1/"), ("a//", "a//"), ("/", "/")]
)
def test_a_key_gets_its_slash_once(key: str, prefix: str) -> None:
    """A key becomes the location that begins at it, whether or not it ended in a slash."""
    assert of(prefix) == Location.of_key("bucket", key)


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        (of("1/"), of("1/run1/"), True),
        (of("1/run1/"), of("1/run1/"), True),
        (of(""), of("1/"), True),
        (of(""), of(""), True),
        (of("1/run1/"), of("1/"), False),
        (of("1/run1/"), of("1/run10/"), False),
        (of("1/run10/"), of("1/run1/"), False),
        (of("1/"), of("/1/"), False),
        (of("1/"), of("1//"), True),
        (of("1/"), of("1/", "another"), False),
        (of(""), of("1/", "another"), False),
        (of("a/"), of("A/"), False),
    ],
)
def test_containment_ends_at_a_slash_and_at_the_bucket(outer: Location, inner: Location, *, expected: bool) -> None:
    """One location contains another only by whole segments, in the same bucket."""
    assert expected == outer.contains(inner)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        (of("1/"), of("1/run1/"), True),
        (of("1/run1/"), of("1/"), True),
        (of("1/run1/"), of("1/run1/"), True),
        (of("1/run1/"), of("1/run10/"), False),
        (of("1/"), of("1/", "another"), False),
    ],
)
def test_overlap_is_containment_in_either_direction(one: Location, other: Location, *, expected: bool) -> None:
    """Two locations overlap when one of them contains the other."""
    assert expected == one.overlaps(other)


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("", [""]),
        ("1/", ["1/", ""]),
        ("1/run1/artifacts/", ["1/run1/artifacts/", "1/run1/", "1/", ""]),
        ("/1/", ["/1/", "/", ""]),
        ("a//b/", ["a//b/", "a//", "a/", ""]),
    ],
)
def test_ancestors_are_all_that_contain_it(prefix: str, expected: list[str]) -> None:
    """The ancestors of a location are itself and every location above, longest first, empty segments kept."""
    assert expected == [above.prefix for above in of(prefix).ancestors()]


@pytest.mark.parametrize(("levels", "prefix"), [(0, "a/b/c/"), (1, "a/b/"), (2, "a/"), (3, ""), (9, "")])
def test_a_parent_is_so_many_levels_up(levels: int, prefix: str) -> None:
    """The parent is the location that many segments up, and the whole bucket where there are not as many."""
    assert of(prefix) == of("a/b/c/").parent(levels)


def test_a_location_has_one_uri() -> None:
    """A location is written as S3's own URI, which parses to the same location."""
    location = of("1/run1/artifacts/")

    assert location.uri == "s3://bucket/1/run1/artifacts/"
    assert location == Location.parse(location.uri, NOWHERE)


# Direct URIs


@pytest.mark.parametrize(
    ("uri", "prefix"),
    [
        ("s3://bucket/1/run1/artifacts", "1/run1/artifacts/"),
        ("s3://bucket/1/run1/artifacts/", "1/run1/artifacts/"),
        ("S3://bucket/1", "1/"),
        ("s3a://bucket/1", "1/"),
        ("s3n://bucket/1", "1/"),
        ("s3://bucket", ""),
        ("s3://bucket/", ""),
        ("s3://bucket//root", "/root/"),
        ("s3://bucket/a%20b%2Fc", "a%20b%2Fc/"),
        ("s3://bucket/exp/run1/artifacts#1", "exp/run1/artifacts/"),
        ("s3://bucket/exp/run1/artifacts?versionId=1#2", "exp/run1/artifacts/"),
        ("s3://bucket/a;b=c/d;e", "a;b=c/d;e/"),
        ("s3://bucket/a..b/...", "a..b/.../"),
        ("s3://bucket/ü b", "ü b/"),
    ],
)
def test_a_key_is_read_as_mlflow_reads_it(uri: str, prefix: str) -> None:
    """One leading slash, the query and the fragment are dropped; nothing is decoded or tidied up."""
    assert of(prefix) == Location.parse(uri, NOWHERE)


@pytest.mark.parametrize("bucket", ["BUCKET", "my.bucket_1-x", "b2", "b" * 255])
def test_a_bucket_keeps_its_letters(bucket: str) -> None:
    """A bucket's name is taken as it stands, old names with capitals and underscores included."""
    assert Location(bucket, "1/") == Location.parse(f"s3://{bucket}/1", NOWHERE)


@pytest.mark.parametrize(
    "uri",
    [
        "s3:",
        "s3:bucket/1",
        "s3:/bucket/1",
        "s3:///bucket/1",
        "s3://b/1",
        "s3://-bucket/1",
        f"s3://{'b' * 256}/1",
        "s3://bucket:9000/1",
        "s3://key@bucket/1",
        "s3://bu cket/1",
        "s3://bücket/1",
        "s3://bucket%2F1",
        "s3://[bucket/1",
        "s3://bucket]/1",
        "s3://bucket/..",
        "s3://bucket/../1",
        "s3://bucket/1/./2",
        "s3://bucket/1/..",
        "s3://bucket/1/../",
        "http://[host/1",
    ],
)
def test_a_uri_without_bucket_and_key_is_unreadable(uri: str) -> None:
    """No bucket that S3 could have, or a segment that some reader resolves and S3 does not: no location."""
    with pytest.raises(UnreadableUri):
        Location.parse(uri, NOWHERE)


@pytest.mark.parametrize(
    ("uri", "scheme"),
    [
        ("file:///srv/1", "file"),
        ("/srv/1", "no scheme"),
        ("bucket/1", "no scheme"),
        ("", "no scheme"),
        ("gs://bucket/1", "gs"),
        ("wasbs://container@account/1", "wasbs"),
        ("runs:/run1/model", "runs"),
        ("models:/m-1", "models"),
        ("https://bucket.s3.amazonaws.com/1", "https"),
        ("s3x://bucket/1", "s3x"),
        ("s 3://bucket/1", "no scheme"),
    ],
)
def test_another_scheme_is_not_on_s3(uri: str, scheme: str) -> None:
    """What no S3 repository of MLflow's would open has no location, and the error says what it is."""
    with pytest.raises(NotOnS3) as raised:
        Location.parse(uri, PROXY)

    assert scheme == str(raised.value)


# The artifact proxy


@pytest.mark.parametrize(
    ("uri", "path", "host"),
    [
        ("mlflow-artifacts:/1/run1/artifacts", "1/run1/artifacts", None),
        ("mlflow-artifacts:///1/run1/artifacts", "1/run1/artifacts", None),
        ("MLFLOW-ARTIFACTS:/1", "1", None),
        ("mlflow-artifacts:1", "1", None),
        ("mlflow-artifacts:", "", None),
        ("mlflow-artifacts://host:5000/1", "1", "host:5000"),
        ("mlflow-artifacts://me:secret@host/1", "1", "host"),
        ("mlflow-artifacts:/a%2Fb%20c", "a%2Fb%20c", None),
        ("mlflow-artifacts:/1?x#y", "1", None),
        ("http://host/api/2.0/mlflow-artifacts/artifacts/1/run1", "1/run1", "host"),
        ("https://host/prefix/api/2.0/mlflow-artifacts/artifacts//1", "1", "host"),
        ("https://host/api/2.0/mlflow/runs/get", None, None),
        ("ftp://host/api/2.0/mlflow-artifacts/artifacts/1", None, None),
        ("s3://bucket/api/2.0/mlflow-artifacts/artifacts/1", None, None),
        ("dummy-source", None, None),
    ],
)
def test_a_proxied_uri_names_a_path_and_perhaps_a_host(uri: str, path: str | None, host: str | None) -> None:
    """The path is what MLflow's handlers take from the URI, undecoded; the host is told apart and never a secret."""
    assert (path, host) == (proxied_path(uri), proxied_host(uri))


@pytest.mark.parametrize("ask", [proxied_path, proxied_host])
@pytest.mark.parametrize("uri", ["mlflow-artifacts://host]/1", "http://[host/api/2.0/mlflow-artifacts/artifacts/1"])
def test_what_is_no_uri_is_unreadable(uri: str, ask: object) -> None:
    """A text that Python's urlparse refuses raises an error of ours."""
    assert callable(ask)
    with pytest.raises(UnreadableUri):
        ask(uri)


@pytest.mark.parametrize(
    ("uri", "workspace", "prefix"),
    [
        ("mlflow-artifacts:/1/run1/artifacts", "default", "root/1/run1/artifacts/"),
        ("mlflow-artifacts:/1/run1/artifacts/", "default", "root/1/run1/artifacts/"),
        ("mlflow-artifacts:/", "default", "root/"),
        ("mlflow-artifacts:/workspaces", "default", "root/workspaces/"),
        ("mlflow-artifacts:/workspaces/default/1", "default", "root/workspaces/default/1/"),
        ("mlflow-artifacts:/workspaces/team/2/run1", "team", "root/workspaces/team/2/run1/"),
        ("http://host/api/2.0/mlflow-artifacts/artifacts/1/a%20b", "default", "root/1/a%20b/"),
    ],
)
def test_a_proxied_path_lies_under_the_destination(uri: str, workspace: str, prefix: str) -> None:
    """A path is joined to the destination, inside the folder of its workspace, as the server does it."""
    assert of(prefix) == Location.parse(uri, PROXY, workspace)


@pytest.mark.parametrize("workspace", ["default", "red"])
def test_a_path_of_another_workspace_is_unreadable(workspace: str) -> None:
    """A row whose path lies in another workspace has no location of its own."""
    with pytest.raises(UnreadableUri, match="another workspace"):
        Location.parse("mlflow-artifacts:/workspaces/blue/1/run1", PROXY, workspace)


@pytest.mark.parametrize("uri", ["mlflow-artifacts:/..", "mlflow-artifacts:/1/../2", "mlflow-artifacts:/./1"])
def test_a_path_never_leaves_the_destination(uri: str) -> None:
    """A dot segment in a proxied path makes it unreadable."""
    with pytest.raises(UnreadableUri):
        Location.parse(uri, PROXY)


def test_a_destination_at_the_bucket_itself_adds_nothing() -> None:
    """Under ``s3://bucket`` a proxied path is the key."""
    assert of("1/run1/") == Location.parse("mlflow-artifacts:/1/run1", Destination.parse("s3://bucket"))


@pytest.mark.parametrize(
    ("destination", "message"), [(NOWHERE, "mlflow-artifacts, destination not known"), (ON_DISK, "mlflow-artifacts")]
)
def test_without_a_destination_on_s3_a_proxied_path_is_not_on_s3(destination: Destination, message: str) -> None:
    """An unknown destination and one that is no bucket give no location, and the error tells them apart."""
    with pytest.raises(NotOnS3) as raised:
        Location.parse("mlflow-artifacts:/1/run1", destination)

    assert message == str(raised.value)


@pytest.mark.parametrize(
    ("uri", "known", "root"),
    [
        (None, False, None),
        ("s3://bucket", True, of("")),
        ("s3://bucket/root/", True, of("root/")),
        ("./mlartifacts", True, None),
        ("gs://bucket/root", True, None),
        ("hdfs://host/root", True, None),
    ],
)
def test_a_destination_is_unknown_elsewhere_or_on_s3(uri: str | None, *, known: bool, root: Location | None) -> None:
    """Not said, said and not on S3, and on S3 are three different things."""
    destination = Destination.parse(uri)

    assert (known, root) == (destination.known, destination.root)


@pytest.mark.parametrize("uri", ["s3:bucket", "s3://b", "s3://bucket/..", "mlflow-artifacts:/", "s3://[x"])
def test_a_destination_that_names_no_bucket_is_refused(uri: str) -> None:
    """A destination is a place that the proxy can write to, or an error."""
    with pytest.raises(UnreadableUri):
        Destination.parse(uri)


# What a proxied reference may mean


@pytest.mark.parametrize(
    ("path", "workspace", "prefixes"),
    [
        ("1/run1", "default", {"root/1/run1/", "root/workspaces/default/1/run1/"}),
        ("1/run1/", "team", {"root/1/run1/", "root/workspaces/team/1/run1/"}),
        (
            "1/a%2Fb",
            "team",
            {"root/1/a%2Fb/", "root/1/a/b/", "root/workspaces/team/1/a%2Fb/", "root/workspaces/team/1/a/b/"},
        ),
        (
            "workspaces/team/1",
            "team",
            {"root/workspaces/team/1/", "root/workspaces/team/workspaces/team/1/"},
        ),
        ("", "default", {"root/", "root/workspaces/default/"}),
    ],
)
def test_a_proxied_reference_may_mean_several_places(path: str, workspace: str, prefixes: set[str]) -> None:
    """Decoded or not, moved into its workspace or not: each reading counts."""
    assert {of(prefix) for prefix in prefixes} == set(PROXY.every_reading(path, workspace))


@pytest.mark.parametrize("destination", [NOWHERE, ON_DISK])
def test_a_proxied_reference_means_nothing_of_ours_off_s3(destination: Destination) -> None:
    """Where the proxy does not write to S3, its paths name no location."""
    assert destination.every_reading("1/run1", "default") == ()


@pytest.mark.parametrize("path", ["1/..", "1/%2E%2E/2", "%2e"])
def test_a_proxied_reference_that_leaves_the_destination_is_unreadable(path: str) -> None:
    """A dot segment, encoded or not, is for the caller to treat as meaning everything."""
    with pytest.raises(UnreadableUri):
        PROXY.every_reading(path, "default")


@pytest.mark.parametrize("path", ["2/run1", "workspaces"])
def test_a_path_outside_the_folder_of_its_workspace_is_unreadable(path: str) -> None:
    """What was moved into a workspace kept its URI: where its objects lie is not clear, so it is not swept."""
    with pytest.raises(UnreadableUri, match="it was moved"):
        Location.parse(f"mlflow-artifacts:/{path}", Destination.parse("s3://bucket/root"), "team")


@given(st.text(alphabet="s3:/bucket-.#?;=%\t\n[]@A_", max_size=24))
@example("bucket/a/b")
@example("bucket//a")
@example("bucket/../a")
@example("bucket/a/.")
@example("bu/a;b?c#d")
@example("buc\tket/a")
@example("[bucket/a")
@example("bucket/a=b")
def test_plain_uris_are_read_as_all_others_are(rest: str) -> None:
    """What is not taken apart by ``urlparse`` names what ``urlparse`` finds in it, or fails as it would."""
    uri = f"s3://{rest}"

    def read() -> Location | str:
        try:
            return Location.parse(uri, Destination())
        except (NotOnS3, UnreadableUri) as error:
            return type(error).__name__

    def expected() -> Location | str:
        try:
            parsed = urlparse(uri)
            return Location.checked(uri, parsed.netloc, parsed.path.removeprefix("/"))
        except (UnreadableUri, ValueError):
            return "UnreadableUri"

    assert read() == expected()


@pytest.mark.parametrize("prefix", ["", "a/", "a/b/", "a//b/", "/", "//"])
def test_folders_are_every_prefix_that_ends_in_a_slash(prefix: str) -> None:
    """Longest first, the whole bucket last, empty segments counted; and ``parent`` goes up along them."""
    location = Location("bucket", prefix)
    folders = [prefix[: end + 1] for end in range(len(prefix) - 1, -1, -1) if prefix[end] == "/"]
    assert list(location.folders()) == [*folders, ""]
    assert [one.prefix for one in location.ancestors()] == [*folders, ""]
    for levels in range(4):
        assert location.parent(levels).prefix == [*folders, "", "", "", "", ""][levels]
