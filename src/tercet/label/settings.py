"""A project as the rest of the server sees it, and its settings."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, StrictBool, StrictInt, ValidationError
from sqlalchemy import Connection, Select, bindparam, select

from tercet.label import tables
from tercet.label.errors import Refused, not_found
from tercet.label.schema import Kind, LabelSchema, Model

Share = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[StrictInt, Field(ge=1, le=1000)]


class Settings(Model):
    """What an operator may choose for a project. A change holds for what is given out or imported
    from then on."""

    lease_s: Annotated[StrictInt, Field(ge=10, le=7 * 24 * 3600)] = 3600
    """An opened item is kept for its labeler this long after the last sign of work."""
    ahead: Annotated[StrictInt, Field(ge=0, le=10)] = 2
    """Items fetched before they are needed, so that the next one is there at once."""
    ahead_lease_s: Annotated[StrictInt, Field(ge=10, le=24 * 3600)] = 120
    """A fetched item that nobody opened goes back to the pool after this."""
    overlap_share: Share = 0.15
    """Share of items that several labelers answer, so that their agreement can be measured."""
    overlap_need: Count = 3
    """Labelers on each of those."""
    gold_share: Share = 0.05
    """Share of a labeler's items whose answer is known."""
    repeat_share: Share = 0.02
    """Share of a labeler's items that they have seen before."""
    amend_hours: Annotated[float, Field(ge=0, le=24 * 3650)] = 168
    """An answer may be changed this long; the old one is kept as an earlier revision."""
    rate: StrictBool = True
    """Ask for a rating and flags of each reply before the order."""
    ask_prompt_flags: StrictBool = True
    both_bad: StrictBool = True
    """Offer "both bad" for two replies."""
    strength: StrictBool = False
    """Ask of two replies how clearly one is better."""
    hold_after_reports: Count = 3
    """So many reports take an item out of the queue until an admin has looked at it."""
    valid_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.12
    """Share of prompts held out from reward-model training (kind "rank" only)."""
    valid_need: Count = 2
    """Labelers on each held-out prompt."""
    seed: StrictInt = 0
    identity_names: tuple[Annotated[str, Field(min_length=2, max_length=80)], ...] = ()
    """Further names that a reply must not call itself by."""


@dataclass(frozen=True)
class Project:
    """One queue: what is asked of whom, with the versions that are valid now."""

    id: str
    name: str
    kind: Kind
    criterion: str | None
    settings: Settings
    schema: LabelSchema
    schema_version: int
    guidelines: str
    guidelines_version: int
    paused: bool

    def must_read(self, seen: int | None) -> bool:
        """Are there guidelines of a later version than the one that a labeler confirmed?"""
        return bool(self.guidelines.strip()) and (seen or 0) < self.guidelines_version


def parse(values: Any) -> Settings:
    """Settings from plain values.

    Raises:
        Refused: 422, naming the first setting that cannot be.
    """
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(map(str, first["loc"])) or "settings"
        raise Refused(422, "settings", f"{name}: {first['msg']}") from None


def _get() -> Select[*tuple[Any, ...]]:
    t, s, g = tables.project, tables.label_schema, tables.guidelines
    given = bindparam("project")
    return (
        select(t, s.c.body.label("schema"), g.c.text.label("guidelines"))
        .join_from(t, s, (s.c.project_id == t.c.id) & (s.c.version == t.c.schema_version))
        .join(g, (g.c.project_id == t.c.id) & (g.c.version == t.c.guidelines_version))
        .where((t.c.id == given) | (t.c.name == given))
        .order_by(t.c.id != given)  # an id goes before a name that looks like it
    )


_GET = _get()


def get(conn: Connection, project: str) -> Project:
    """The project of that id or name.

    Raises:
        Refused: 404.
    """
    row = conn.execute(_GET, {"project": project}).first()
    if row is None:
        raise not_found("project")
    return Project(
        id=row.id,
        name=row.name,
        kind=row.kind,
        criterion=row.criterion,
        settings=Settings.model_validate(row.settings),
        schema=LabelSchema.model_validate(row.schema),
        schema_version=row.schema_version,
        guidelines=row.guidelines,
        guidelines_version=row.guidelines_version,
        paused=row.paused,
    )
