"""What a live text protects: every form that MLflow's rows take, and everything that cannot be understood."""

from __future__ import annotations

from dataclasses import replace
from urllib.parse import quote

import pytest

from mlflow_artifact_gc.errors import ReferencesIncomplete
from mlflow_artifact_gc.locations import Destination, Location
from mlflow_artifact_gc.model import Reference, Strength
from mlflow_artifact_gc.protection import Candidate, Protection, cores, readings, texts_in

RUN = "0123456789abcdef" * 2
NEXT = "fedcba9876543210" * 2
MODEL = f"m-{'5a' * 16}"
TRACE = f"tr-{'6b' * 16}"
ODD = "Odd id_1"

CANDIDATES = {
    "run": Candidate(RUN, Location("bucket", f"root/1/{RUN}/artifacts/")),
    "next": Candidate(NEXT, Location("bucket", f"root/1/{NEXT}/artifacts/")),
    "model": Candidate(MODEL, Location("bucket", f"root/1/models/{MODEL}/artifacts/")),
    "trace": Candidate(TRACE, Location("bucket", f"root/1/traces/{TRACE}/artifacts/")),
    "odd": Candidate(ODD, Location("bucket", f"root/2/{ODD}/artifacts/")),
    "away": Candidate("run10", Location("another", "root/1/run10/artifacts/")),
}
ALL = set(CANDIDATES)
IN_BUCKET = ALL - {"away"}
PROXY = Destination.parse("s3://bucket/root")
ON_DISK = Destination.parse("./mlartifacts")
NAMES, AREA = Strength.NAMES, Strength.AREA


def protected(
    text: str, strength: Strength = NAMES, destination: Destination = PROXY, workspace: str = "default"
) -> set[str]:
    """The names of the candidates that a reference with this text protects."""
    protection = Protection(tuple(CANDIDATES.values()), destination)
    reference = Reference(holder="holder", text=text, strength=strength, workspace=workspace)
    names = tuple(CANDIDATES)
    return {names[index] for index in protection.protected_by(reference)}


# How the rows of MLflow look: each hard reference, in each of its forms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # model version, source or storage_location
        (f"models:/{MODEL}", {"model"}),
        (f"s3://bucket/root/1/models/{MODEL}/artifacts", {"model"}),
        (f"mlflow-artifacts:/1/models/{MODEL}/artifacts", {"model"}),
        (f"runs:/{RUN}/model", {"run"}),
        (f"runs://profile@databricks/{RUN}/model", {"run"}),
        (f"s3://bucket/root/1/{RUN}/artifacts/model", {"run"}),
        (f"mlflow-artifacts:/1/{RUN}/artifacts/model", {"run"}),
        (f"mlflow-artifacts://host:5000/1/{RUN}/artifacts/model", {"run"}),
        (f"https://host/api/2.0/mlflow-artifacts/artifacts/1/{RUN}/artifacts/model", {"run"}),
        (f"file:///srv/{RUN}/artifacts", {"run"}),
        (f"/mnt/bucket/1/{RUN}/artifacts", {"run"}),
        (f"dbfs:/mnt/1/{RUN}/artifacts", {"run"}),
        (f"gs://copy/1/{RUN}/artifacts", {"run"}),
        ("s3://bucket/root/1", {"run", "next", "model", "trace"}),
        ("s3://bucket/root/1/models", {"model"}),
        ("REDACTED-SOURCE-PATH", set()),
        ("dummy-source", set()),
        ("prompt-template", set()),
        # a logged model or a run of its own under a deleted run
        (f"s3://bucket/root/1/{RUN}/artifacts/{{id}}/artifacts", {"run"}),
        (f"s3://bucket/root/1/{RUN}/artifacts/models/{{id}}/artifacts", {"run"}),
        # traces, and their archives in another place
        (f"mlflow-artifacts:/1/traces/{TRACE}/artifacts", {"trace"}),
        (f"s3://archive/1/traces/{TRACE}/artifacts", {"trace"}),
        # a dataset's source
        (f"s3://bucket/root/2/{ODD}/artifacts/train.csv", {"odd"}),
    ],
)
def test_each_form_of_a_row_protects_what_it_needs(text: str, expected: set[str]) -> None:
    """Every hard reference of MLflow's tables, however it is written, protects what it points at and nothing else."""
    assert expected == protected(text)


def test_experiments_that_share_or_nest_protect_only_upwards() -> None:
    """Live experiments at a root, at the bucket, or around one another keep none of the deleted runs beneath."""
    texts = ["s3://bucket", "s3://bucket/root", "s3://bucket/root/1", "mlflow-artifacts:/", "mlflow-artifacts:/1"]

    assert [protected(text, AREA) for text in texts] == [set()] * len(texts)


def test_an_experiment_inside_a_runs_prefix_protects_the_run() -> None:
    """A location that lies in a candidate keeps it, whether or not it names the candidate's id in clear."""
    assert protected(f"s3://bucket/root/1/{RUN}/artifacts/inner", AREA) == {"run"}


# The id rule


@pytest.mark.parametrize("strength", Strength)
@pytest.mark.parametrize("name", ["run", "model", "trace", "odd"])
@pytest.mark.parametrize(
    "form",
    [
        "{}",
        "x{}y",
        "s3://alias/{}/model",
        "S3A://ALIAS/{}",
        "s3://arn:aws:s3:eu:1:accesspoint/ap/{}",
        "https://bucket.s3.amazonaws.com/root/1/{}/artifacts?versionId=1",
        "https://user:secret@host:9000/bucket/{}#x",
        "file:/mnt/{}",
        "hdfs://namenode/{}/",
        "C:\\mount\\{}\\artifacts",
        "../{}/..",
        "git+ssh://host/repo@{}",
        "hf://{}",
        "\n {} \n",
        '{{"uri": "{}"}}',
        "äöü{}\U0001f600",
    ],
)
def test_an_id_protects_in_any_text(form: str, name: str, strength: Strength) -> None:
    """A text that holds a candidate's id protects it, whatever surrounds the id and however the text is meant."""
    assert name in protected(form.format(CANDIDATES[name].id), strength)


@pytest.mark.parametrize("name", ["run", "model", "trace"])
@pytest.mark.parametrize("form", ["runs:/{}", "s3://alias/{}", "{}"])
def test_the_case_of_a_hexadecimal_id_does_not_matter(form: str, name: str) -> None:
    """An id in capitals, as some file systems and databases give it back, protects."""
    assert name in protected(form.format(CANDIDATES[name].id.upper()))


@pytest.mark.parametrize("name", ["run", "model", "trace", "odd"])
@pytest.mark.parametrize("times", [1, 2, 3])
def test_an_encoded_id_protects(name: str, times: int) -> None:
    """Each character of the id percent-encoded, up to three times over, changes nothing."""
    text = "".join(f"%{byte:02X}" for byte in CANDIDATES[name].id.encode())
    for _ in range(times - 1):
        text = quote(text)

    assert name in protected(f"runs:/{text}/model")


@pytest.mark.parametrize(
    "text",
    [
        "runs:%2F{}",
        "runs:%2f{}%2fmodel",
        "s3%3A%2F%2Falias%2F{}",
        "x%25{}",
        "x%{}",
        "0{}",
        "{}0",
        f"{'f' * 40}{{}}{'0' * 40}",
    ],
)
def test_an_id_protects_however_it_is_cut_out(text: str) -> None:
    """Digits and encodings that touch the id do not hide it."""
    assert "run" in protected(text.format(RUN))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (MODEL.removeprefix("m-"), {"model"}),
        (f"tr-{RUN}", {"run"}),
        (f"{RUN} {NEXT}", {"run", "next"}),
        (RUN[:-1], set()),
        (f"{RUN[:16]}-{RUN[16:]}", set()),
        ("Odd id", set()),
        ("run1", set()),
        ("run10", {"away"}),
        ("run100", {"away"}),
    ],
)
def test_only_a_whole_id_protects(text: str, expected: set[str]) -> None:
    """The 32 digits count without what stands before them, an odd id as it stands, and a part of an id not at all."""
    assert expected == protected(text)


def test_two_candidates_with_the_same_digits_are_both_protected() -> None:
    """A run and a model that share their digits are not told apart by the id rule."""
    twin = Candidate(f"m-{RUN}", Location("bucket", f"root/1/models/m-{RUN}/artifacts/"))
    protection = Protection((CANDIDATES["run"], twin), PROXY)

    assert protection.protected_by(Reference(holder="holder", text=f"runs:/{RUN}")) == {0, 1}


# Containment of places

INNER = Candidate("inner", Location("bucket", "a/b/inner/artifacts/"))


def keeps_inner(text: str, strength: Strength = NAMES, destination: Destination = PROXY) -> bool:
    """Whether the text protects the one candidate at ``a/b/inner/artifacts/``, asked with another id."""
    # The id is one that no text holds: what protects here is the place alone.
    protection = Protection((replace(INNER, id="\0"),), destination)
    return bool(protection.protected_by(Reference(holder="holder", text=text, strength=strength)))


PLACES = [
    ("", True, False),
    ("a", True, False),
    ("a/b/", True, False),
    ("a/b/inner", True, False),
    ("a/b/inner/artifacts", True, True),
    ("a/b/inner/artifacts/", True, True),
    ("a/b/inner/artifacts/model", True, True),
    ("a/b/inner/artifacts/deep/er/file.txt", True, True),
    ("a/b/inner/artifacts//", True, True),
    ("a/b/inner1/artifacts", False, False),
    ("a/b/inne", False, False),
    ("a/b/inner/artifact", False, False),
    ("a/b/inner/artifacts1", False, False),
    ("a/b/c", False, False),
    ("/a", False, False),
    ("A/b", False, False),
]


@pytest.mark.parametrize("scheme", ["s3", "S3", "s3a", "s3n"])
@pytest.mark.parametrize(("key", "by_names", "by_area"), PLACES)
def test_a_place_protects_by_containment(key: str, scheme: str, *, by_names: bool, by_area: bool) -> None:
    """A named place protects what contains it and what it contains; an area only what contains it."""
    text = f"{scheme}://bucket/{key}"

    assert (by_names, by_area) == (keeps_inner(text), keeps_inner(text, AREA))


@pytest.mark.parametrize("strength", Strength)
def test_a_place_in_another_bucket_protects_nothing_here(strength: Strength) -> None:
    """The same key in another bucket is another place."""
    assert not keeps_inner("s3://another/a/b/inner/artifacts", strength)


@pytest.mark.parametrize(("neighbour", "expected"), [("run1", {0}), ("run10", {1})])
def test_run1_is_not_run10(neighbour: str, expected: set[int]) -> None:
    """A sibling whose name begins with the other's is not protected with it."""
    places = [Candidate("\0", Location("bucket", f"1/{name}/artifacts/")) for name in ("run1", "run10")]
    reference = Reference(holder="holder", text=f"s3://bucket/1/{neighbour}")

    assert expected == Protection(places, PROXY).protected_by(reference)


def test_all_that_a_place_contains_is_protected() -> None:
    """Every candidate beneath a named place is kept, and none beside it."""
    keys = ["a/", "a/1/", "a/1/x/", "a/2/", "a0/", "a!/", "b/"]
    candidates = [Candidate("\0", Location("bucket", key)) for key in keys]
    reference = Reference(holder="holder", text="s3://bucket/a/1")

    assert [keys[index] for index in sorted(Protection(candidates, PROXY).protected_by(reference))] == [
        "a/",
        "a/1/",
        "a/1/x/",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/a%2Fb",
        "s3://bucket/a%2fb%2Finner",
        "s3://bucket/%61/b",
        "s3://bucket/a%252Fb",
        "s3://bucket/a%25252Fb",
        "s3://bucket%2Fa/b/inner",
        "s3:%2F%2Fbucket/a",
    ],
)
def test_an_encoded_place_protects(text: str) -> None:
    """Slashes and letters of the key, percent-encoded up to three times, are read as what they may mean."""
    assert keeps_inner(text)


def test_a_key_that_looks_encoded_is_taken_raw_too() -> None:
    """S3 keeps ``%2F`` in a key as it is, so the undecoded place counts as well."""
    candidate = Candidate("\0", Location("bucket", "a%2Fb/inner/artifacts/"))
    reference = Reference(holder="holder", text="s3://bucket/a%2Fb")

    assert Protection((candidate,), PROXY).protected_by(reference) == {0}


@pytest.mark.parametrize(
    "pattern",
    [
        "s3://bucket/a/*",
        "s3://bucket/a/*/inner/artifacts",
        "s3://bucket/a/b/in*/artifacts",
        "s3://bucket/a/?/inner",
        "s3://bucket/a/[a-c]/inner",
        "s3://bucket/a/{b,c}/inner",
        "s3://bucket/a/b/inner/artifacts/*.parquet",
        "s3://bucket/*",
        "s3://bucket*",
        "s3://*/a",
        "s3://bucket/a/x#y",
        "s3://bucket/a/x?versionId=1",
        "s3://bucket?x",
        "arn:aws:s3:::bucket/a/*",
        "arn:aws:s3:::bucket*",
        "arn:aws:s3:::*",
        "mlflow-artifacts:/*",
    ],
)
def test_a_pattern_means_all_beside_it(pattern: str) -> None:
    """From the first sign of a pattern, query or fragment on, everything in that folder may be meant."""
    assert keeps_inner(pattern, destination=Destination.parse("s3://bucket/a"))


@pytest.mark.parametrize(
    "text", ["s3://bucket/c/*", "s3://bucket/a/c/x#y", "s3://another/*", "arn:aws:s3:::bucket/c*/"]
)
def test_a_pattern_means_nothing_elsewhere(text: str) -> None:
    """A pattern in another folder or bucket protects nothing here."""
    expected = text.startswith("arn:")  # its folder is the bucket itself

    assert expected == keeps_inner(text)


@pytest.mark.parametrize(
    ("arn", "expected"),
    [
        ("arn:aws:s3:::bucket", True),
        ("arn:aws:s3:::bucket/a/b", True),
        ("ARN:AWS:S3:::bucket/a/b/inner/artifacts/file", True),
        ("arn:aws-cn:s3:::bucket/a", True),
        ("arn:aws:s3:eu-west-1:123456789012:bucket/a", True),
        ("arn:aws:s3:::bucket/a%2Fb", True),
        ("arn:aws:s3:::bucket/c", False),
        ("arn:aws:s3:::another/a", False),
        ("arn:aws:s3:eu-west-1:123456789012:accesspoint/point/object/a", False),
        ("arn:aws:sqs:eu-west-1:123456789012:bucket/a", False),
    ],
)
def test_an_arn_names_its_place(arn: str, *, expected: bool) -> None:
    """An ARN of S3 is read as bucket and key; one of another service, or of an access point, names no place here."""
    assert expected == keeps_inner(arn)


def test_an_access_point_is_left_to_the_id_rule() -> None:
    """An access point stands for a bucket that the text does not tell, and the id protects all the same."""
    assert protected(f"arn:aws:s3:eu-west-1:123456789012:accesspoint/point/object/root/1/{RUN}") == {"run"}


# What does not parse


@pytest.mark.parametrize(
    "text",
    [
        "s3:",
        "s3://",
        "s3:bucket/c",
        "s3:/bucket/c",
        "s3:///bucket/c",
        "s3a://",
        "s3://b/c",
        "s3://key:secret@elsewhere/c",
        "s3://elsewhere:9000/c",
        "s3://else where/c",
        "s3://elsewhere]/c",
        "s3://[elsewhere/c",
        "s3://../c",
        "s3://%/c",
        "arn:aws:s3:::/c",
    ],
)
@pytest.mark.parametrize("strength", Strength)
def test_an_s3_text_without_a_bucket_protects_everything(text: str, strength: Strength) -> None:
    """A text that is meant for S3 and whose bucket cannot be read may mean any place."""
    assert protected(text, strength) == ALL


UNREADABLE_KEYS = [
    "s3://bucket/..",
    "s3://bucket/c/../d",
    "s3a://bucket/./c",
    "s3://bucket/c/%2E%2E",
    "arn:aws:s3:::bucket/..",
]


@pytest.mark.parametrize("text", UNREADABLE_KEYS)
def test_an_s3_text_with_an_unreadable_key_protects_its_bucket(text: str) -> None:
    """Where the bucket can be read and the key cannot, everything in that bucket may be meant."""
    assert protected(text) == IN_BUCKET


@pytest.mark.parametrize("text", UNREADABLE_KEYS)
def test_an_area_with_an_unreadable_key_protects_its_bucket(text: str) -> None:
    """What cannot be understood protects, an experiment's location too: nobody knows what contains it."""
    assert protected(text, AREA) == IN_BUCKET


@pytest.mark.parametrize("text", ["s3://elsewhere/..", "s3://elsewhere/%2e%2e/c"])
def test_an_unreadable_key_in_another_bucket_protects_nothing_here(text: str) -> None:
    """A bucket that can be read is not any bucket."""
    assert protected(text) == set()


@pytest.mark.parametrize("text", ["mlflow-artifacts:/..", "mlflow-artifacts:/c/%2E%2E/d", "mlflow-artifacts://x/./c"])
def test_an_unreadable_proxied_path_protects_the_destination(text: str) -> None:
    """A path that may leave its folder may mean anything under the destination, and nothing outside."""
    assert protected(text) == IN_BUCKET
    assert protected(text, destination=Destination.parse("s3://bucket/root/2")) == {"odd"}


@pytest.mark.parametrize("text", ["mlflow-artifacts:/..", "mlflow-artifacts:/c/%2E%2E/d"])
def test_a_proxied_area_that_is_unreadable_protects_the_destination(text: str) -> None:
    """What cannot be understood protects, an experiment's location too: nobody knows what contains it."""
    assert protected(text, AREA) == IN_BUCKET


@pytest.mark.parametrize("text", ["mlflow-artifacts://host]/c", "MLFLOW-ARTIFACTS://host]"])
def test_a_proxied_text_that_is_no_uri_protects_the_destination(text: str) -> None:
    """A text that is meant for the proxy and that no one can parse may mean anything under the destination."""
    assert protected(text) == IN_BUCKET


def test_a_proxied_text_that_is_no_uri_asks_for_the_destination() -> None:
    """What cannot be understood stops the plan where nobody has said what it could mean."""
    with pytest.raises(ReferencesIncomplete):
        protected("mlflow-artifacts://host]/c", destination=Destination())


# Forms that mean no artifact


@pytest.mark.parametrize("strength", Strength)
@pytest.mark.parametrize("destination", [PROXY, ON_DISK, Destination()])
@pytest.mark.parametrize(
    "form",
    [
        "",
        " ",
        "dummy-source",
        "prompt-template",
        "REDACTED-SOURCE-PATH",
        "hf:bert-base-uncased",
        "hf://org/model",
        "huggingface:org/model",
        "git:https://host/repo",
        "git@host:repo.git",
        "file:///bucket/root/1",
        "file:bucket/root",
        "/bucket/root/1",
        "bucket/root/1",
        "./root",
        "..",
        "*",
        "C:\\bucket\\root",
        "http://host/bucket/root/1",
        "https://bucket.s3.amazonaws.com/root/1",
        "https://host/api/2.0/mlflow/runs/get",
        "https://host]/x",
        "gs://bucket/root",
        "dbfs:/bucket/root",
        "models:/churn/7",
        "models:/churn@champion",
        "runs:/",
        "s3",
        "s3x://bucket/root",
        "arn:aws:iam::123456789012:role/bucket",
    ],
)
def test_a_text_that_names_no_object_of_ours_protects_nothing(
    form: str, destination: Destination, strength: Strength
) -> None:
    """Placeholders, other services and local paths protect nothing, and need no destination."""
    assert protected(form, strength, destination) == set()


@pytest.mark.parametrize(
    "form",
    [
        "dummy-source {}",
        "prompt-template/{}",
        "hf:{}",
        "git:{}",
        "file:///{}",
        "/{}",
        "{}",
        "http://host/{}",
        "models:/{}",
    ],
)
def test_a_text_that_names_no_object_of_ours_protects_an_id_in_it(form: str) -> None:
    """The closed table of forms that mean nothing does not hold against an id."""
    assert protected(form.format(RUN), destination=Destination()) == {"run"}


# The artifact proxy


@pytest.mark.parametrize(
    "text",
    [
        "mlflow-artifacts:/c",
        "mlflow-artifacts:",
        "mlflow-artifacts://another-host/c",
        "MLFLOW-ARTIFACTS:/c",
        "http://host/api/2.0/mlflow-artifacts/artifacts/c",
        f"mlflow-artifacts:/1/{RUN}/artifacts",
        "mlflow-artifacts:/..",
    ],
)
@pytest.mark.parametrize("strength", Strength)
def test_a_proxied_text_stops_the_plan_while_the_destination_is_unknown(text: str, strength: Strength) -> None:
    """Nobody can say what it protects, so nothing is planned; the error says whose text it is and what to give."""
    with pytest.raises(ReferencesIncomplete) as raised:
        protected(text, strength, Destination())

    assert text in str(raised.value)
    assert "holder" in str(raised.value)
    assert "--artifacts-destination" in str(raised.value)


def test_a_proxied_text_names_nothing_on_s3_when_the_proxy_writes_elsewhere() -> None:
    """With a destination that is no bucket, only the id rule is left."""
    assert protected("mlflow-artifacts:/1", destination=ON_DISK) == set()
    assert protected("mlflow-artifacts:/..", destination=ON_DISK) == set()
    assert protected(f"mlflow-artifacts:/1/{RUN}", destination=ON_DISK) == {"run"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mlflow-artifacts:/1", {"run", "next", "model", "trace"}),
        ("mlflow-artifacts:1", {"run", "next", "model", "trace"}),
        ("mlflow-artifacts://any-host/1", {"run", "next", "model", "trace"}),
        ("mlflow-artifacts:/1/models", {"model"}),
        ("mlflow-artifacts:/1%2Fmodels", {"model"}),
        ("mlflow-artifacts:/2", {"odd"}),
        ("mlflow-artifacts:/", IN_BUCKET),
        ("https://host/mlflow/api/2.0/mlflow-artifacts/artifacts/2", {"odd"}),
        ("mlflow-artifacts:/3", set()),
        ("mlflow-artifacts:/root/1", set()),
    ],
)
def test_a_proxied_text_names_a_place_under_the_destination(text: str, expected: set[str]) -> None:
    """The host does not matter, and the path counts as it is and decoded."""
    assert expected == protected(text)


@pytest.mark.parametrize(("workspace", "expected"), [("team", True), ("default", False)])
def test_a_proxied_text_may_mean_its_workspace(workspace: str, *, expected: bool) -> None:
    """A path is looked for in the workspace of its row too."""
    candidate = Candidate("\0", Location("bucket", "root/workspaces/team/1/x/artifacts/"))
    reference = Reference(holder="holder", text="mlflow-artifacts:/1", workspace=workspace)

    assert expected == bool(Protection((candidate,), PROXY).protected_by(reference))


# The parts


def test_no_candidate_is_no_problem() -> None:
    """Where nothing may be swept, nothing is protected."""
    assert Protection((), PROXY).protected_by(Reference(holder="holder", text="s3:")) == set()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", set()),
        (RUN[:31], set()),
        (RUN, {RUN}),
        (RUN.upper(), {RUN}),
        (f"m-{RUN}/tr-{NEXT}", {RUN, NEXT}),
        (f"{RUN}ab", {RUN, RUN[1:] + "a", RUN[2:] + "ab"}),
    ],
)
def test_cores_are_all_runs_of_32_digits(text: str, expected: set[str]) -> None:
    """Overlapping ones are found too, so that no digit beside an id hides it."""
    assert expected == cores(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ("",)),
        ("a/b", ("a/b",)),
        ("100%", ("100%",)),
        ("a%2Fb", ("a%2Fb", "a/b")),
        ("a%25252Fb", ("a%25252Fb", "a%252Fb", "a%2Fb", "a/b")),
        ("a%2525252Fb", ("a%2525252Fb", "a%25252Fb", "a%252Fb", "a%2Fb")),
    ],
)
def test_a_text_has_a_reading_for_each_decoding(text: str, expected: tuple[str, ...]) -> None:
    """Decoding goes on while it changes the text, three times at most."""
    assert expected == readings(text)


@pytest.mark.parametrize(
    ("document", "expected"),
    [
        ("", ("",)),
        ("s3://bucket/a", ("s3://bucket/a",)),
        ('{"uri": "s3://bucket/a"', ('{"uri": "s3://bucket/a"',)),
        ('"s3://bucket/a"', ("s3://bucket/a",)),
        ('{"uri": "s3:\\/\\/bucket\\u002fa"}', ("uri", "s3://bucket/a")),
        ('{"a": ["b", {"c": "d"}, 1, null, true, 1.5]}', ("a", "b", "c", "d")),
        ("[]", ()),
        ("12", ()),
    ],
)
def test_every_text_of_a_document_is_found(document: str, expected: tuple[str, ...]) -> None:
    """Keys and values at any depth; what is no JSON is a text itself."""
    assert expected == texts_in(document)


@pytest.mark.parametrize("document", ["[" * 100_000, f'{"[" * 2_000}"s3://bucket/a"{"]" * 2_000}'])
def test_a_document_nested_too_deep_is_a_text_itself(document: str) -> None:
    """One odd row does not stop every plan; the ids in it still protect."""
    assert texts_in(document) == (document,)


@pytest.mark.parametrize("tail", ["model ", "data%231/", "model\u200b", "model"])
def test_a_part_is_told_only_by_a_text_of_one_reading(tail: str) -> None:
    """As the border of what stays a text has to be exact: another reader's key would lie beyond it."""
    place = Location("bucket", f"1/{'a' * 32}/artifacts/")
    protection = Protection([Candidate("a" * 32, place, "1")], Destination())

    parts = protection.parts_needed(Reference(holder="version 1", text=f"s3://bucket/1/{'a' * 32}/artifacts/{tail}"))

    exact = {0: (Location("bucket", f"{place.prefix}model/"),)}
    assert parts == (exact if tail == "model" else {0: ()})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mlflow-artifacts:/1/{}/artifacts/model", "root/1/{}/artifacts/model/"),
        ("mlflow-artifacts:/workspaces/default/1/{}/artifacts/model", ""),
        ("mlflow-artifacts:/1/{}/artifacts", ""),
        ("mlflow-artifacts:/1/{}/artifacts/a%20b", ""),
    ],
)
def test_behind_the_proxy_a_part_is_told_where_the_other_reading_is_apart(text: str, expected: str) -> None:
    """One reading lies in the workspace's folder; a part is what lies inside by the other."""
    id_ = "a" * 32
    protection = Protection(
        [Candidate(id_, Location("bucket", f"root/1/{id_}/artifacts/"), "1")], Destination.parse("s3://bucket/root")
    )

    parts = protection.parts_needed(Reference(holder="version 1", text=text.format(id_)))

    assert parts == {0: (Location("bucket", expected.format(id_)),) if expected else ()}


def test_no_part_is_told_where_another_reading_is_around_the_whole() -> None:
    """Then all of it may be meant."""
    place = Location("bucket", "root/workspaces/default/")
    protection = Protection([Candidate("odd", place, "1")], Destination.parse("s3://bucket/root"))

    assert protection.parts_needed(Reference(holder="v", text="mlflow-artifacts:/workspaces")) == {0: ()}
