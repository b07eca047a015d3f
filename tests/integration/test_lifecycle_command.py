"""``lifecycle show`` and ``apply``: the buckets of this database's roots, what is asked, and exit codes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.command import init, run
from tests.servers import make_bucket
from tests.site import Site

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.command import Ran
    from tests.servers import S3Server

THEIRS: Any = {"ID": "logs", "Status": "Enabled", "Filter": {"Prefix": "logs/"}, "Expiration": {"Days": 30}}


def lifecycle(site: Site, command: str, *arguments: str, answer: str | None = None) -> Ran:
    """Run it on the site."""
    return run("lifecycle", command, "--backend-store-uri", site.uri, *arguments, answer=answer)


def rules(site: Site, bucket: str = "") -> list[Any]:
    """What the bucket has."""
    client = site.client
    try:
        return list(client.get_bucket_lifecycle_configuration(Bucket=bucket or site.bucket)["Rules"])
    except client.exceptions.ClientError:
        return []


def put(site: Site, *theirs: Any) -> None:
    """Rules of somebody else."""
    site.client.put_bucket_lifecycle_configuration(Bucket=site.bucket, LifecycleConfiguration={"Rules": list(theirs)})


def test_show_then_apply_then_nothing(
    db_uri: str, seaweed: S3Server, bucket: str, make_site: Callable[[Site], Site]
) -> None:
    """Missing, shown, written with --yes beside those of others, ready, and a second time there is nothing to do."""
    site = make_site(Site.direct(db_uri, seaweed, bucket))
    site.experiment()
    init(site)
    put(site, THEIRS)

    shown = lifecycle(site, "show", "--action", "tag")
    assert shown.code == 0
    assert "a rule that expires what is tagged mlflow-artifact-gc=expired is missing for mlruns/" in shown.out
    assert "under mlruns/: objects tagged mlflow-artifact-gc=expired go 1 day after their creation" in shown.out
    assert rules(site) == [THEIRS]

    done = lifecycle(site, "apply", "--action", "tag", "--yes")
    assert done.code == 0
    assert "Written and read back: 2 rules." in done.out
    assert THEIRS in rules(site)
    assert {rule["Status"] for rule in rules(site)} == {"Enabled"}

    (told,) = lifecycle(site, "show", "--action", "tag", "--format", "json").json["buckets"]
    assert (told["verdict"], told["ready"], told["to_be_written"], told["expiry_days"]) == ("ready", True, [], 1)
    before = rules(site)
    assert lifecycle(site, "apply", "--action", "tag").code == 0  # nobody needs to be asked
    assert rules(site) == before


def test_nobody_can_be_asked(site: Site) -> None:
    """Without a terminal and without --yes nothing is written, and what would be is shown."""
    site.experiment()
    init(site)
    refused = lifecycle(site, "apply", "--action", "tag")

    assert refused.code == 4
    assert "Nobody can be asked" in refused.err
    assert "to be written" in refused.out
    assert rules(site) == []


@pytest.mark.parametrize(("answer", "code", "written"), [("y\n", 0, 2), ("n\n", 4, 0), ("", 4, 0)])
def test_a_person_is_asked(answer: str, code: int, written: int, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a terminal; anything but yes is no."""
    site.experiment()
    init(site)
    monkeypatch.setattr("click.testing._NamedTextIOWrapper.isatty", lambda _self: True, raising=False)
    done = lifecycle(site, "apply", "--action", "tag", "--format", "json", answer=answer)

    assert "Write 2 rules to" in done.err
    assert (done.code, len(rules(site))) == (code, written)


def test_the_buckets_are_those_of_the_roots(site: Site, seaweed: S3Server) -> None:
    """The destination's, those of experiments, deleted ones too; each once, with its outermost roots."""
    other, third = make_bucket(seaweed), make_bucket(seaweed)
    site.experiment()
    site.experiment(artifact_location=f"s3://{other}/team/a")
    gone = site.experiment(artifact_location=f"s3://{other}/team/a/b")
    site.experiment(artifact_location="file:///srv/mlruns/1")
    site.delete_experiment(gone)
    init(site)
    told = lifecycle(
        site, "show", "--action", "tag", "--format", "json", "--artifacts-destination", f"s3://{third}"
    ).json["buckets"]

    assert {one["bucket"]: one["roots"] for one in told} == {
        site.bucket: ["mlruns/"],
        other: ["team/a/"],
        third: [""],
    }
    (whole,) = (one for one in told if one["bucket"] == third)
    assert any("WHOLE bucket" in note for note in whole["notes"])
    only = lifecycle(site, "apply", "--action", "tag", "--bucket", other, "--yes", "--format", "json").json
    assert [one["bucket"] for one in only["buckets"]] == [other]
    assert (len(rules(site, other)), rules(site), rules(site, third)) == (2, [], [])
    wrong = lifecycle(site, "show", "--action", "tag", "--bucket", "nowhere")
    assert (wrong.code, "No root of this database is in the bucket 'nowhere'" in wrong.err) == (2, True)


def test_hide_only_where_versions_are_kept(site: Site) -> None:
    """Impossible on a plain bucket; with versions the rule is offered with what it does to live runs."""
    site.experiment()
    init(site)
    assert lifecycle(site, "show", "--action", "hide").code == 0
    refused = lifecycle(site, "apply", "--action", "hide", "--yes")
    assert (refused.code, "keeps no versions" in refused.err) == (4, True)

    site.switch_versioning(on=True)
    done = lifecycle(site, "apply", "--action", "hide", "--noncurrent-days", "14", "--yes", "--format", "json")

    assert (done.code, done.json["buckets"][0]["undo_days"]) == (0, 14)
    again = lifecycle(site, "show", "--action", "hide", "--noncurrent-days", "30")
    assert "was changed" in again.out
    assert "live runs" in again.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "give --action tag"),
        (("--action", "tag", "--noncurrent-days", "3"), 2, "belongs to --action hide"),
        (("--action", "purge"), 2, "purge"),
    ],
)
def test_what_makes_no_sense(arguments: tuple[str, ...], code: int, words: str, site: Site) -> None:
    """One sentence, exit code 2."""
    init(site)
    ran = lifecycle(site, "show", *arguments)

    assert (ran.code, words in ran.err) == (code, True)


def test_without_our_tables(site: Site) -> None:
    """As every command: init comes first."""
    assert lifecycle(site, "show", "--action", "tag").code == 5


def test_a_bucket_that_cannot_be_read(site: Site) -> None:
    """It is named, the others are shown, and the exit code is 1; what is behind an unknown proxy is said."""
    site.experiment(artifact_location="s3://there-is-no-such-bucket/x")
    site.experiment(artifact_location="mlflow-artifacts:/77")
    site.experiment()
    init(site)
    shown = lifecycle(site, "show", "--action", "tag")

    assert shown.code == 1
    assert "there is no such bucket" in shown.out
    assert "is missing for mlruns/" in shown.out
    assert "behind the artifact proxy" in shown.out
    done = lifecycle(site, "apply", "--action", "tag", "--yes")
    assert (done.code, len(rules(site))) == (1, 2)


def test_a_copy_of_the_database_writes_nothing(site: Site) -> None:
    """As with a sweep: its roots are another database's."""
    site.experiment()
    init(site)
    with site.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE artifact_gc_site SET database_fingerprint = 'elsewhere'")
    ran = lifecycle(site, "apply", "--action", "tag", "--yes")

    assert (ran.code, "it is a copy" in ran.err, rules(site)) == (1, True, [])


def test_the_sites_action_and_tag_count(site: Site) -> None:
    """Where --action is not given; the tag is never asked for on the command line."""
    site.experiment()
    init(site)
    with site.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE artifact_gc_site SET action = 'tag', expiry_tag = 'team=gone'")
    done = lifecycle(site, "apply", "--yes", "--format", "json")

    assert (done.code, done.json["tag"]) == (0, "team=gone")
    filters = [rule["Filter"] for rule in rules(site)]
    assert {"And": {"Prefix": "mlruns/", "Tags": [{"Key": "team", "Value": "gone"}]}} in filters
