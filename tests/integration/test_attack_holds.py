"""What people want kept, attacked: by other names, by a part, from afar."""

from __future__ import annotations

from tests.command import init
from tests.integration.test_holds import hold
from tests.site import Site


def test_a_proxied_location_is_held_where_the_site_has_it(proxied_site: Site) -> None:
    """A destination that is not the site's would hold another place than the one that was meant."""
    site = proxied_site
    run_id = site.run(site.experiment(), n_objects=1)
    init(site)
    place = ("--location", site.artifact_uri(run_id), "--artifacts-destination", "s3://elsewhere/old")
    refused = hold(site, "add", *place, "--reason", "audit", expect=2)

    assert "s3://elsewhere/old is not the site's" in refused.err
    assert hold(site, "ls", "--all").out == "There has never been a hold.\n"
