"""Is the fake an S3? The same checks, each after AWS's documentation, on the fake, on moto and on SeaweedFS.

The fake passes every one. Where moto or SeaweedFS does otherwise it is listed below and is expected to: a check that a
listed server passes fails, so that the list stays true.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from botocore.exceptions import ClientError, ParamValidationError

from tests.fakes3 import FakeS3, fake_s3
from tests.servers import S3Server, make_bucket, s3_client
from tests.site import DAY_MS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

Check = Callable[[Any, str], None]
CHECKS: dict[str, Check] = {}
_LOOSE_RULES = {
    "days_of_none_are_refused": "accepted",
    "a_rule_s_name_is_its_own": "accepted",
    "a_rule_does_something": "accepted",
    "tags_do_not_go_with_uploads": "accepted",
    "a_thousand_rules_and_no_more": "accepted",
}
_BOTH = {
    "another_owner_is_expected": "the owner is not compared",
    "a_page_has_a_thousand_at_most": "as many as are asked for",
    "a_version_marker_needs_a_key_marker": "accepted",
    "a_delete_hides": "the answer of 404 does not tell of the delete marker",
    "several_versions_go_at_once": "the answer does not tell which of them was a delete marker",
    "a_body_that_was_changed_is_refused": "the digest is not compared",
    "uploads_are_listed_by_key_and_age": "in another order",
    "a_tag_twice_is_refused": "accepted",
    **_LOOSE_RULES,
}
DEVIATIONS: dict[str, dict[str, str]] = {
    "fake": {},
    "moto": {
        **_BOTH,
        "a_long_key_is_refused": "accepted",
        "odd_keys_go_round": "a key with a newline is 404",
        "keys_are_encoded_when_that_is_asked": "a space is %20",
        "a_delete_marker_that_goes_shows_what_it_hid": "the answer does not tell that it was a delete marker",
        "deleting_what_is_not_there_hides_it": "no delete marker is made",
        "a_suspended_bucket_has_one_null_version": "a put takes the older versions away",
        "a_suspended_bucket_s_delete_takes_the_null_version": "no delete marker is made",
        "a_thousand_go_at_once_and_no_more": "more are accepted",
        "quiet_tells_errors_alone": "it tells all",
        "an_upload_is_as_old_as_it_is": "each began in 2010",
        "parts_go_in_order": "their size is looked at first",
        "a_wrong_secret_is_refused": "accepted",
        "an_unknown_key_is_refused": "accepted",
    },
    "seaweedfs": {
        **_BOTH,
        "folded_names_are_keys_of_their_own": "keys are paths of files",
        "keys_come_in_the_order_of_their_bytes": "folders sort apart",
        "a_suspended_bucket_has_one_null_version": "the null version is not told to be the latest",
        "a_thousand_go_at_once_and_no_more": "refused as InvalidArgument",
        "none_at_all_is_malformed": "accepted",
        "pages_of_uploads_are_complete": "a truncated page does not tell where the next one begins",
        "an_upload_is_aborted_once": "accepted again",
        "ten_tags_and_no_more": "refused as InvalidTag",
        "a_reserved_tag_is_refused": "accepted",
    },
}


def check(function: Check) -> Check:
    """Puts a check on the list."""
    CHECKS[function.__name__] = function
    return function


def refused(call: Callable[..., Any], *codes: str, **arguments: Any) -> dict[str, Any]:
    """Asserts that S3 refuses, with one of these codes; the answer."""
    answer: dict[str, Any] = {}
    try:
        call(**arguments)
    except ClientError as error:
        answer = dict(error.response)
    code = answer["Error"]["Code"] if answer else "accepted"
    assert code in codes, f"{code}; one of {codes} was expected"
    return answer


def keys(client: S3Client, bucket: str, **arguments: Any) -> list[str]:
    """The keys of a listing of objects, all pages."""
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, **arguments)
    return [found["Key"] for page in pages for found in page.get("Contents", [])]


def versions(client: S3Client, bucket: str, **arguments: Any) -> list[tuple[str, str, str, bool]]:
    """Kind, key, version id and whether it is the latest, of a listing of versions, all pages; objects first."""
    found: list[tuple[str, str, str, bool]] = []
    for page in client.get_paginator("list_object_versions").paginate(Bucket=bucket, **arguments):
        found += [("object", one["Key"], one["VersionId"], one["IsLatest"]) for one in page.get("Versions", [])]
        found += [("marker", one["Key"], one["VersionId"], one["IsLatest"]) for one in page.get("DeleteMarkers", [])]
    return sorted(found, key=lambda one: one[0] == "marker")


def version(client: S3Client, bucket: str, status: str = "Enabled") -> None:
    """Has the bucket keep versions, or stop doing so."""
    client.put_bucket_versioning(Bucket=bucket, VersioningConfiguration={"Status": status})  # type: ignore[typeddict-item]


def put(client: S3Client, bucket: str, *names: str, body: bytes = b"x") -> list[str | None]:
    """Puts objects; their version ids."""
    return [client.put_object(Bucket=bucket, Key=name, Body=body).get("VersionId") for name in names]


# Objects


@check
def an_object_comes_back_as_it_went(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"one", ContentType="text/plain", Metadata={"k": "v"})
    found = client.get_object(Bucket=bucket, Key="a")
    head = client.head_object(Bucket=bucket, Key="a")

    assert found["Body"].read() == b"one"
    for answer in (found, head):
        assert answer["ETag"] == '"f97c5d29941bfb1b2fdab0874906ab82"'
        assert (answer["ContentType"], answer["Metadata"]) == ("text/plain", {"k": "v"})
        assert answer["ContentLength"] == 3


@check
def a_range_is_a_part(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a", body=b"0123456789")

    assert client.get_object(Bucket=bucket, Key="a", Range="bytes=2-4")["Body"].read() == b"234"
    assert client.get_object(Bucket=bucket, Key="a", Range="bytes=8-")["Body"].read() == b"89"


@check
def what_is_not_there_is_404(client: S3Client, bucket: str) -> None:
    refused(client.get_object, "NoSuchKey", Bucket=bucket, Key="nothing")
    refused(client.head_object, "404", Bucket=bucket, Key="nothing")
    refused(client.list_objects_v2, "NoSuchBucket", Bucket="no-such-bucket-anywhere")
    refused(client.head_bucket, "404", Bucket="no-such-bucket-anywhere")
    refused(client.get_bucket_versioning, "NoSuchBucket", Bucket="no-such-bucket-anywhere")
    refused(client.delete_objects, "NoSuchBucket", Bucket="no-such-bucket-anywhere", Delete={"Objects": [{"Key": "a"}]})


@check
def only_where_none_is(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"1", IfNoneMatch="*")
    refused(client.put_object, "PreconditionFailed", Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*")

    assert client.get_object(Bucket=bucket, Key="a")["Body"].read() == b"1"


@check
def only_where_none_is_counts_no_delete_marker(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    put(client, bucket, "a")
    client.delete_object(Bucket=bucket, Key="a")

    client.put_object(Bucket=bucket, Key="a", Body=b"2", IfNoneMatch="*")


@check
def deleting_what_is_not_there_succeeds(client: S3Client, bucket: str) -> None:
    answer = client.delete_object(Bucket=bucket, Key="nothing")

    assert answer["ResponseMetadata"]["HTTPStatusCode"] == 204


@check
def a_full_bucket_cannot_be_deleted(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a")

    refused(client.delete_bucket, "BucketNotEmpty", Bucket=bucket)
    assert bucket in [one["Name"] for one in client.list_buckets()["Buckets"]]


@check
def a_copy_takes_the_tags_along(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"x", Tagging="k=v")
    client.copy_object(Bucket=bucket, Key="b", CopySource={"Bucket": bucket, "Key": "a"})

    assert client.get_object_tagging(Bucket=bucket, Key="b")["TagSet"] == [{"Key": "k", "Value": "v"}]


@check
def another_owner_is_expected(client: S3Client, bucket: str) -> None:
    refused(client.list_objects_v2, "AccessDenied", Bucket=bucket, ExpectedBucketOwner="999999999999")


@check
def a_long_key_is_refused(client: S3Client, bucket: str) -> None:
    put(client, bucket, "/".join(["n" * 250] * 4))
    refused(client.put_object, "KeyTooLongError", Bucket=bucket, Key="n" * 200 + "/" + "m" * 824, Body=b"")


# Keys

ODD = (
    "space bar", "double  space", " around ", "plus+plus", "per%cent", "enc%20oded", "<&>\"'", "ünïcode", "e\u0301",
    "hash#question?", "a=b&c=d", "semi;colon,comma", "(){}[]~*!$^`|", ".hidden", "new\nline", "tab\there", "😀",
)  # fmt: skip


@check
def odd_keys_go_round(client: S3Client, bucket: str) -> None:
    names = sorted((f"o/{name}" for name in ODD), key=str.encode)
    put(client, bucket, *names)

    assert sorted(keys(client, bucket, Prefix="o/"), key=str.encode) == names
    for name in names:
        assert client.get_object(Bucket=bucket, Key=name)["Body"].read() == b"x"
    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": name} for name in names]})
    assert sorted((one["Key"] for one in answer["Deleted"]), key=str.encode) == names
    assert keys(client, bucket) == []


@check
def folded_names_are_keys_of_their_own(client: S3Client, bucket: str) -> None:
    names = ["/lead", "a", "a/", "a//b", "a/b", "b\\c"]
    put(client, bucket, *names)

    assert keys(client, bucket) == names


@check
def a_control_character_is_a_key_and_no_xml(client: S3Client, bucket: str) -> None:
    put(client, bucket, "o/a\x01b")

    assert keys(client, bucket) == ["o/a\x01b"]
    client.delete_object(Bucket=bucket, Key="o/a\x01b")
    assert keys(client, bucket) == []


@check
def a_carriage_return_is_a_key(client: S3Client, bucket: str) -> None:
    put(client, bucket, "o/a\rb")

    assert keys(client, bucket) == ["o/a\rb"]
    client.delete_object(Bucket=bucket, Key="o/a\rb")
    assert keys(client, bucket) == []


@check
def keys_are_encoded_when_that_is_asked(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a b+c")
    page = client.list_objects_v2(Bucket=bucket, EncodingType="url")  # Who asks for it decodes it.

    assert page["Contents"][0]["Key"] == "a+b%2Bc"
    assert page["EncodingType"] == "url"


# Listings


@check
def keys_come_in_the_order_of_their_bytes(client: S3Client, bucket: str) -> None:
    names = ["a", "a-b", "a/b", "aa/b", "b", "é", "😀"]
    put(client, bucket, *reversed(names))

    assert keys(client, bucket) == sorted(names, key=str.encode)
    assert keys(client, bucket, Prefix="a/") == ["a/b"]
    assert keys(client, bucket, StartAfter="aa/b") == ["b", "é", "😀"]


@check
def pages_are_complete_at_every_size(client: S3Client, bucket: str) -> None:
    names = sorted(f"r/{number:02}/f" for number in range(11))
    put(client, bucket, *names, "s")

    for size in (1, 3, 11, 12, 1000):
        assert keys(client, bucket, Prefix="r/", PaginationConfig={"PageSize": size}) == names, size
    page = client.list_objects_v2(Bucket=bucket, MaxKeys=3)
    assert (page["KeyCount"], page["IsTruncated"], page["MaxKeys"]) == (3, True, 3)
    last = client.list_objects_v2(Bucket=bucket, Prefix="s")
    assert not last["IsTruncated"]
    assert "NextContinuationToken" not in last


@check
def a_delimiter_makes_folders(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a/1", "a/2", "b/1", "c", "d/e/f")
    page = client.list_objects_v2(Bucket=bucket, Delimiter="/")

    assert [one["Prefix"] for one in page["CommonPrefixes"]] == ["a/", "b/", "d/"]
    assert [one["Key"] for one in page["Contents"]] == ["c"]
    paged = list(
        client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Delimiter="/", PaginationConfig={"PageSize": 1})
    )
    assert [one["Prefix"] for page in paged for one in page.get("CommonPrefixes", [])] == ["a/", "b/", "d/"]
    assert [one["Key"] for page in paged for one in page.get("Contents", [])] == ["c"]


@check
def a_page_of_none_is_empty(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a")
    page = client.list_objects_v2(Bucket=bucket, MaxKeys=0)

    assert (page["KeyCount"], page["IsTruncated"], "Contents" in page) == (0, False, False)


@check
def a_page_has_a_thousand_at_most(client: S3Client, bucket: str) -> None:
    # Asked of the answer alone: to write a thousand objects takes moto seven seconds.
    assert client.list_objects_v2(Bucket=bucket, MaxKeys=3000)["MaxKeys"] == 1000
    assert client.list_object_versions(Bucket=bucket, MaxKeys=3000)["MaxKeys"] == 1000


@check
def deleting_while_paging_skips_nothing(client: S3Client, bucket: str) -> None:
    names = [f"p/{number:02}" for number in range(10)]
    put(client, bucket, *names)
    seen: list[str] = []
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket, PaginationConfig={"PageSize": 3}):
        for found in page.get("Contents", []):
            seen.append(found["Key"])
            client.delete_object(Bucket=bucket, Key=found["Key"])

    assert seen == names


# Versions


@check
def a_bucket_that_never_kept_versions_says_nothing(client: S3Client, bucket: str) -> None:
    assert "Status" not in client.get_bucket_versioning(Bucket=bucket)
    assert put(client, bucket, "a") == [None]
    assert versions(client, bucket) == [("object", "a", "null", True)]
    put(client, bucket, "a")
    assert len(versions(client, bucket)) == 1
    client.delete_object(Bucket=bucket, Key="a")
    assert versions(client, bucket) == []


@check
def versions_stay_and_the_newest_comes_first(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a", body=b"0")
    version(client, bucket)
    (first,) = put(client, bucket, "a", body=b"1")
    (second,) = put(client, bucket, "a", body=b"2")

    assert versions(client, bucket) == [
        ("object", "a", second, True),
        ("object", "a", first, False),
        ("object", "a", "null", False),
    ]
    assert client.get_object(Bucket=bucket, Key="a", VersionId=str(first))["Body"].read() == b"1"
    assert client.get_object(Bucket=bucket, Key="a", VersionId="null")["Body"].read() == b"0"
    refused(client.delete_bucket, "BucketNotEmpty", Bucket=bucket)


@check
def a_delete_hides(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    (first,) = put(client, bucket, "a")
    answer = client.delete_object(Bucket=bucket, Key="a")

    assert answer["DeleteMarker"] is True
    assert versions(client, bucket) == [("object", "a", first, False), ("marker", "a", answer["VersionId"], True)]
    assert keys(client, bucket) == []
    told = refused(client.get_object, "NoSuchKey", Bucket=bucket, Key="a")["ResponseMetadata"]["HTTPHeaders"]
    assert told["x-amz-delete-marker"] == "true"
    refused(client.get_object, "MethodNotAllowed", Bucket=bucket, Key="a", VersionId=answer["VersionId"])


@check
def a_delete_marker_that_goes_shows_what_it_hid(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    (first,) = put(client, bucket, "a")
    marker = client.delete_object(Bucket=bucket, Key="a")["VersionId"]
    answer = client.delete_object(Bucket=bucket, Key="a", VersionId=marker)

    assert (answer["DeleteMarker"], answer["VersionId"]) == (True, marker)
    assert versions(client, bucket) == [("object", "a", first, True)]
    assert keys(client, bucket) == ["a"]


@check
def a_version_goes_for_good(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    first, second = (*put(client, bucket, "a"), *put(client, bucket, "a"))
    client.delete_object(Bucket=bucket, Key="a", VersionId=str(second))

    assert versions(client, bucket) == [("object", "a", first, True)]
    client.delete_object(Bucket=bucket, Key="a", VersionId=str(first))
    assert versions(client, bucket) == []


@check
def deleting_what_is_not_there_hides_it(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    client.delete_object(Bucket=bucket, Key="nothing")

    assert [one[0] for one in versions(client, bucket)] == ["marker"]


@check
def a_suspended_bucket_has_one_null_version(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    (first,) = put(client, bucket, "a")
    version(client, bucket, "Suspended")
    put(client, bucket, "a")
    put(client, bucket, "a", body=b"newest")

    assert versions(client, bucket) == [("object", "a", "null", True), ("object", "a", first, False)]
    assert client.get_object(Bucket=bucket, Key="a", VersionId="null")["Body"].read() == b"newest"


@check
def a_suspended_bucket_s_delete_takes_the_null_version(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    (first,) = put(client, bucket, "a")
    version(client, bucket, "Suspended")
    put(client, bucket, "a")
    client.delete_object(Bucket=bucket, Key="a")

    assert versions(client, bucket) == [("object", "a", first, False), ("marker", "a", "null", True)]


@check
def pages_of_versions_are_complete_at_every_size(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    for _ in range(3):
        put(client, bucket, "v/a", "v/b", "v/c")
    client.delete_object(Bucket=bucket, Key="v/b")
    put(client, bucket, "w")

    for size in (1, 2, 3, 4, 1000):
        found = versions(client, bucket, Prefix="v/", PaginationConfig={"PageSize": size})
        assert len(found) == len(set(found)) == 10, size
    page = client.list_object_versions(Bucket=bucket, Prefix="v/", MaxKeys=2)
    assert (page["NextKeyMarker"], page["NextVersionIdMarker"]) == ("v/a", page["Versions"][-1]["VersionId"])


@check
def a_version_marker_needs_a_key_marker(client: S3Client, bucket: str) -> None:
    refused(client.list_object_versions, "InvalidArgument", Bucket=bucket, VersionIdMarker="whatever")


# DeleteObjects


@check
def a_thousand_go_at_once_and_no_more(client: S3Client, bucket: str) -> None:
    names = [{"Key": f"{number:04}"} for number in range(1001)]

    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": names[:1000]})  # type: ignore[typeddict-item]
    assert len(answer["Deleted"]) == 1000
    refused(client.delete_objects, "MalformedXML", Bucket=bucket, Delete={"Objects": names})


@check
def none_at_all_is_malformed(client: S3Client, bucket: str) -> None:
    refused(client.delete_objects, "MalformedXML", Bucket=bucket, Delete={"Objects": []})


@check
def quiet_tells_errors_alone(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a")
    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}], "Quiet": True})

    assert "Deleted" not in answer
    assert keys(client, bucket) == []


@check
def several_versions_go_at_once(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    first, second = (*put(client, bucket, "a"), *put(client, bucket, "a"))
    marker = client.delete_object(Bucket=bucket, Key="a")["VersionId"]
    chosen = [{"Key": "a", "VersionId": str(first)}, {"Key": "a", "VersionId": marker}]
    answer = client.delete_objects(Bucket=bucket, Delete={"Objects": chosen})  # type: ignore[typeddict-item]

    told = {one["VersionId"]: one for one in answer["Deleted"]}
    assert told.keys() == {first, marker}
    assert (told[marker]["DeleteMarker"], told[marker]["DeleteMarkerVersionId"]) == (True, marker)
    assert "DeleteMarker" not in told[str(first)]
    assert versions(client, bucket) == [("object", "a", second, True)]


@check
def without_a_version_each_is_hidden(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    put(client, bucket, "a")
    (told,) = client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "a"}]})["Deleted"]

    assert (told["DeleteMarker"], "VersionId" in told) == (True, False)
    assert ("marker", "a", told["DeleteMarkerVersionId"], True) in versions(client, bucket)


@check
def a_body_that_was_changed_is_refused(client: S3Client, bucket: str) -> None:
    def changed(params: dict[str, Any], **_context: object) -> None:
        params["headers"]["Content-MD5"] = "AAAAAAAAAAAAAAAAAAAAAA=="

    put(client, bucket, "a")
    client.meta.events.register("before-call.s3.DeleteObjects", changed)
    try:
        refused(client.delete_objects, "BadDigest", Bucket=bucket, Delete={"Objects": [{"Key": "a"}]})
    finally:
        client.meta.events.unregister("before-call.s3.DeleteObjects", changed)


# Uploads


@check
def an_upload_is_no_object_before_it_ends(client: S3Client, bucket: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key="m/a")["UploadId"]
    part = client.upload_part(Bucket=bucket, Key="m/a", UploadId=upload, PartNumber=1, Body=b"part")

    assert keys(client, bucket) == []
    assert [one["Size"] for one in client.list_parts(Bucket=bucket, Key="m/a", UploadId=upload)["Parts"]] == [4]
    client.delete_objects(Bucket=bucket, Delete={"Objects": [{"Key": "m/a"}]})
    client.complete_multipart_upload(
        Bucket=bucket,
        Key="m/a",
        UploadId=upload,
        MultipartUpload={"Parts": [{"PartNumber": 1, "ETag": part["ETag"]}]},
    )
    assert client.get_object(Bucket=bucket, Key="m/a")["Body"].read() == b"part"
    assert client.head_object(Bucket=bucket, Key="m/a")["ETag"].endswith('-1"')
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")


@check
def uploads_are_listed_by_key_and_age(client: S3Client, bucket: str) -> None:
    made = [(key, client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]) for key in ("m/b", "m/a", "n")]
    made.append(("m/a", client.create_multipart_upload(Bucket=bucket, Key="m/a")["UploadId"]))
    listed = client.list_multipart_uploads(Bucket=bucket, Prefix="m/")["Uploads"]

    assert [(one["Key"], one["UploadId"]) for one in listed] == [made[1], made[3], made[0]]


@check
def pages_of_uploads_are_complete(client: S3Client, bucket: str) -> None:
    made = {(key, client.create_multipart_upload(Bucket=bucket, Key=key)["UploadId"]) for key in ("m/a", "m/b", "m/a")}
    found: list[tuple[str, str]] = []
    markers: dict[str, str] = {}
    for _ in range(5):
        page = client.list_multipart_uploads(Bucket=bucket, Prefix="m/", MaxUploads=1, **markers)  # type: ignore[arg-type]
        found += [(one["Key"], one["UploadId"]) for one in page.get("Uploads", [])]
        if not page["IsTruncated"]:
            break
        markers = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    assert len(found) == len(made)
    assert set(found) == made


@check
def an_upload_is_aborted_once(client: S3Client, bucket: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key="m/a")["UploadId"]
    client.abort_multipart_upload(Bucket=bucket, Key="m/a", UploadId=upload)

    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
    refused(client.abort_multipart_upload, "NoSuchUpload", Bucket=bucket, Key="m/a", UploadId=upload)


@check
def an_upload_is_as_old_as_it_is(client: S3Client, bucket: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key="m/a")
    (listed,) = client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    put(client, bucket, "b")
    written = client.head_object(Bucket=bucket, Key="b")["LastModified"]

    assert listed["UploadId"] == upload["UploadId"]
    assert abs((listed["Initiated"] - written).total_seconds()) < 60


@check
def parts_go_in_order(client: S3Client, bucket: str) -> None:
    upload = client.create_multipart_upload(Bucket=bucket, Key="m/a")["UploadId"]
    parts = [
        {
            "PartNumber": number,
            "ETag": client.upload_part(Bucket=bucket, Key="m/a", UploadId=upload, PartNumber=number, Body=b"p")["ETag"],
        }
        for number in (1, 2)
    ]

    for chosen, code in ((list(reversed(parts)), "InvalidPartOrder"), (parts, "EntityTooSmall")):
        refused(
            client.complete_multipart_upload,
            code,
            Bucket=bucket,
            Key="m/a",
            UploadId=upload,
            MultipartUpload={"Parts": chosen},
        )


# Tags


def tags(client: S3Client, bucket: str, key: str, **version_id: str) -> dict[str, str]:
    """The tags of a version."""
    found = client.get_object_tagging(Bucket=bucket, Key=key, **version_id)["TagSet"]  # type: ignore[arg-type]
    return {one["Key"]: one["Value"] for one in found}


def tag(client: S3Client, bucket: str, key: str, values: dict[str, str], **version_id: str) -> None:
    """Sets them."""
    chosen = [{"Key": name, "Value": value} for name, value in values.items()]
    client.put_object_tagging(Bucket=bucket, Key=key, Tagging={"TagSet": chosen}, **version_id)  # type: ignore[typeddict-item,arg-type]


@check
def tags_are_replaced_as_a_whole(client: S3Client, bucket: str) -> None:
    client.put_object(Bucket=bucket, Key="a", Body=b"x", Tagging="a=1&b=2")
    before = client.head_object(Bucket=bucket, Key="a")
    tag(client, bucket, "a", {"c": "3 +-=._:/@"})
    after = client.head_object(Bucket=bucket, Key="a")

    assert tags(client, bucket, "a") == {"c": "3 +-=._:/@"}
    assert (after["LastModified"], after["ETag"]) == (before["LastModified"], before["ETag"])
    client.delete_object_tagging(Bucket=bucket, Key="a")
    assert tags(client, bucket, "a") == {}


@check
def each_version_has_its_own_tags(client: S3Client, bucket: str) -> None:
    version(client, bucket)
    first, second = (*put(client, bucket, "a"), *put(client, bucket, "a"))
    tag(client, bucket, "a", {"k": "v"}, VersionId=str(first))

    assert tags(client, bucket, "a", VersionId=str(first)) == {"k": "v"}
    assert tags(client, bucket, "a") == tags(client, bucket, "a", VersionId=str(second)) == {}


@check
def ten_tags_and_no_more(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a")
    tag(client, bucket, "a", {str(number): "v" for number in range(10)})
    chosen = [{"Key": str(number), "Value": "v"} for number in range(11)]

    refused(client.put_object_tagging, "BadRequest", Bucket=bucket, Key="a", Tagging={"TagSet": chosen})
    assert len(tags(client, bucket, "a")) == 10


@check
def a_tag_twice_is_refused(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a")
    twice = [{"Key": "k", "Value": value} for value in ("1", "2")]

    refused(client.put_object_tagging, "InvalidTag", Bucket=bucket, Key="a", Tagging={"TagSet": twice})


@check
def a_reserved_tag_is_refused(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a")
    reserved = [{"Key": "aws:k", "Value": "v"}]

    refused(client.put_object_tagging, "InvalidTag", Bucket=bucket, Key="a", Tagging={"TagSet": reserved})


@check
def a_long_tag_is_refused(client: S3Client, bucket: str) -> None:
    put(client, bucket, "a")
    for name, value in (("k" * 129, "v"), ("k", "v" * 257)):
        long = [{"Key": name, "Value": value}]
        refused(client.put_object_tagging, "InvalidTag", Bucket=bucket, Key="a", Tagging={"TagSet": long})


@check
def what_is_not_there_has_no_tags(client: S3Client, bucket: str) -> None:
    refused(client.get_object_tagging, "NoSuchKey", Bucket=bucket, Key="nothing")
    refused(client.put_object_tagging, "NoSuchKey", Bucket=bucket, Key="nothing", Tagging={"TagSet": []})


# Lifecycle rules


def rule(name: str, **fields: Any) -> dict[str, Any]:
    """An enabled rule."""
    return {"ID": name, "Status": "Enabled", "Filter": {"Prefix": ""}, **fields}


EXPIRES = {"Expiration": {"Days": 1}}
TAGGED = {"Filter": {"Tag": {"Key": "k", "Value": "v"}}}


@check
def rules_come_back_as_they_went(client: S3Client, bucket: str) -> None:
    refused(client.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration", Bucket=bucket)
    rules = [
        rule("tagged", **EXPIRES, **TAGGED),
        rule("noncurrent", NoncurrentVersionExpiration={"NoncurrentDays": 7}, Filter={"Prefix": "p/"}),
        rule("uploads", AbortIncompleteMultipartUpload={"DaysAfterInitiation": 7}),
    ]
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})  # type: ignore[typeddict-item]
    found = client.get_bucket_lifecycle_configuration(Bucket=bucket)["Rules"]

    assert found == rules
    client.delete_bucket_lifecycle(Bucket=bucket)
    refused(client.get_bucket_lifecycle_configuration, "NoSuchLifecycleConfiguration", Bucket=bucket)


def _refuses_rules(client: S3Client, bucket: str, rules: list[dict[str, Any]], *codes: str) -> None:
    refused(client.put_bucket_lifecycle_configuration, *codes, Bucket=bucket, LifecycleConfiguration={"Rules": rules})


@check
def days_of_none_are_refused(client: S3Client, bucket: str) -> None:
    _refuses_rules(client, bucket, [rule("a", Expiration={"Days": 0})], "InvalidArgument")


@check
def a_rule_s_name_is_its_own(client: S3Client, bucket: str) -> None:
    _refuses_rules(client, bucket, [rule("a", **EXPIRES), rule("a", **EXPIRES)], "InvalidArgument", "InvalidRequest")


@check
def a_rule_does_something(client: S3Client, bucket: str) -> None:
    _refuses_rules(client, bucket, [rule("a")], "InvalidRequest", "MalformedXML")


@check
def tags_do_not_go_with_uploads(client: S3Client, bucket: str) -> None:
    uploads = {"AbortIncompleteMultipartUpload": {"DaysAfterInitiation": 1}}
    _refuses_rules(client, bucket, [rule("a", **uploads, **TAGGED)], "InvalidRequest")


@check
def a_thousand_rules_and_no_more(client: S3Client, bucket: str) -> None:
    _refuses_rules(
        client, bucket, [rule(str(number), **EXPIRES) for number in range(1001)], "InvalidRequest", "MalformedXML"
    )


# Keys of the caller


@check
def a_wrong_secret_is_refused(client: S3Client, bucket: str) -> None:
    refused(_other(client, secret_key="wrong").list_objects_v2, "SignatureDoesNotMatch", Bucket=bucket)


@check
def an_unknown_key_is_refused(client: S3Client, bucket: str) -> None:
    refused(_other(client, access_key="AKIANOBODYKNOWSTHIS0").list_objects_v2, "InvalidAccessKeyId", Bucket=bucket)


def _other(client: S3Client, *, access_key: str = "", secret_key: str = "") -> S3Client:
    credentials = client._request_signer._credentials  # type: ignore[attr-defined]
    return s3_client(
        S3Server(
            endpoint=client.meta.endpoint_url,
            access_key=access_key or credentials.access_key,
            secret_key=secret_key or credentials.secret_key,
        )
    )


# The servers


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeS3]:
    """The fake, without faults."""
    with fake_s3() as server:
        yield server


@pytest.fixture(params=[*DEVIATIONS])
def server(request: pytest.FixtureRequest) -> tuple[str, S3Server]:
    """Each server in turn."""
    name: str = request.param
    if name == "fake":
        fake: FakeS3 = request.getfixturevalue("fake")
        return name, fake.server
    found: S3Server = request.getfixturevalue("moto_s3" if name == "moto" else "seaweed")
    return name, found


@pytest.mark.parametrize("name", [*CHECKS])
def test_as_aws_documents_it(name: str, server: tuple[str, S3Server]) -> None:
    """The check passes, or the server is known to do otherwise."""
    which, found = server
    why = DEVIATIONS[which].get(name)
    bucket = make_bucket(found)
    failed: Exception | AssertionError | None = None
    try:
        CHECKS[name](s3_client(found), bucket)
    except (AssertionError, ClientError, ParamValidationError, KeyError, ValueError) as error:
        if why is None:
            raise
        failed = error

    assert why is None or failed is not None, f"{which} does as AWS does now: strike out {name!r} ({why})"


def test_the_known_differences_are_of_checks_that_there_are() -> None:
    """No name in the list has outlived its check, and the fake differs in nothing."""
    assert all(name in CHECKS for known in DEVIATIONS.values() for name in known)
    assert not DEVIATIONS["fake"]


def test_the_fake_carries_out_lifecycle_rules(fake: FakeS3) -> None:
    """What a rule names goes when its day is over, not before, and the rest stays. The others cannot be told to."""
    client, bucket = s3_client(fake.server), make_bucket(fake.server)
    rules = [
        rule("tagged", **EXPIRES, **TAGGED),
        rule("noncurrent", NoncurrentVersionExpiration={"NoncurrentDays": 3}),
        rule("uploads", AbortIncompleteMultipartUpload={"DaysAfterInitiation": 5}),
    ]
    version(client, bucket)
    put(client, bucket, "plain", "tagged")
    tag(client, bucket, "tagged", {"k": "v"})
    client.create_multipart_upload(Bucket=bucket, Key="m")
    client.put_bucket_lifecycle_configuration(Bucket=bucket, LifecycleConfiguration={"Rules": rules})  # type: ignore[typeddict-item]

    fake.expire(bucket)
    assert keys(client, bucket) == ["plain", "tagged"]
    fake.age(2 * DAY_MS)
    fake.expire(bucket)
    assert keys(client, bucket) == ["plain"]
    assert len(versions(client, bucket)) == 3, "on a bucket that keeps versions, to expire is to hide"
    assert client.list_multipart_uploads(Bucket=bucket)["Uploads"]
    fake.age(4 * DAY_MS)
    fake.expire(bucket)
    assert [one[:2] for one in versions(client, bucket)] == [("object", "plain"), ("marker", "tagged")]
    assert not client.list_multipart_uploads(Bucket=bucket).get("Uploads")
