"""Who plays: six runs of one experiment, and what becomes of each in MLflow and in the bucket."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, NamedTuple

EXPERIMENT: Final = "churn prediction"
MODEL: Final = "churn"
ALIAS: Final = "champion"


@dataclass(frozen=True, kw_only=True, slots=True)
class Role:
    """A run's part: how much it logs, what MLflow says of it at the end, and whether its objects stay."""

    name: str
    epochs: int
    ends: str
    stays: bool


LIVE: Final = Role(name="baseline", epochs=2, ends="live", stays=True)
CHAMPION: Final = Role(name="deeper", epochs=4, ends=f"deleted, @{ALIAS}", stays=True)
MISTAKE: Final = Role(name="no-dropout", epochs=3, ends="restored in time", stays=True)
WASTE: Final = (
    Role(name="wider", epochs=3, ends="deleted", stays=False),
    Role(name="warm-restart", epochs=5, ends="deleted", stays=False),
)
OLD: Final = Role(name="typo-in-config", epochs=1, ends="deleted before init", stays=False)
ROLES: Final = (LIVE, CHAMPION, MISTAKE, *WASTE, OLD)
_BY_NAME: Final = {role.name: role for role in ROLES}


class Run(NamedTuple):
    """A run of the demo, logged."""

    role: Role
    id: str

    @classmethod
    def named(cls, name: str, run_id: str) -> Run:
        return cls(_BY_NAME[name], run_id)
