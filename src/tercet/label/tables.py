"""The tables of a store, and the constraints that carry the guarantees (docs/labeling.md).

Times are integer milliseconds since 1970 UTC by the server's clock. Ids are ULIDs. JSON columns
hold what the pydantic models of `schema` and `projects` validate.
"""

from functools import cache
from typing import Any

from sqlalchemy import JSON as AnyJSON
from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    Float,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    and_,
    literal_column,
)
from sqlalchemy.dialects import postgresql, sqlite

STORE_VERSION = 1

# States of an assignment; the others are open and expired.
ANSWERED = ("done", "extra")
HANDED_BACK = ("skipped", "reported")
FINAL = (*ANSWERED, *HANDED_BACK)  # this labeler is not asked again

metadata = MetaData()

JSON = AnyJSON(none_as_null=True)  # None is SQL's NULL, so that `is null` finds it


def _id() -> Column[str]:
    return Column("id", String(26), primary_key=True)


def _ref(name: str, target: str, **options: Any) -> Column[str]:
    return Column(name, String(26), ForeignKey(f"{target}.id"), **options)


def _time(name: str, nullable: bool = False) -> Column[int]:
    return Column(name, BigInteger, nullable=nullable)


meta = Table(
    "meta",
    metadata,
    Column("key", String(64), primary_key=True),
    Column("value", Text, nullable=False),
)

project = Table(
    "project",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),
    Column("kind", String(16), nullable=False),  # demonstration | rank | evaluate
    Column("criterion", Text),
    Column("settings", JSON, nullable=False),  # projects.Settings
    Column("schema_version", Integer, nullable=False),
    Column("guidelines_version", Integer, nullable=False),
    Column("paused", Boolean, nullable=False, default=False),
    _time("created_at"),
)

label_schema = Table(
    "label_schema",
    metadata,
    _ref("project_id", "project", primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("body", JSON, nullable=False),  # schema.LabelSchema
)

guidelines = Table(
    "guidelines",
    metadata,
    _ref("project_id", "project", primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("text", Text, nullable=False),
    _time("created_at"),
)

prompt = Table(
    "prompt",
    metadata,
    _id(),
    _ref("project_id", "project", nullable=False),
    Column("external_id", Text, nullable=False),  # the record's prompt_id
    Column("text", Text, nullable=False),
    Column("source", Text),
    Column("split", Text),
    Column("tags", JSON),
    Column("user_id", Text),
    Column("sha256", String(64), nullable=False),
    UniqueConstraint("project_id", "external_id"),
)

candidate = Table(
    "candidate",
    metadata,
    _id(),
    _ref("project_id", "project", nullable=False),
    Column("external_id", Text, nullable=False),  # Candidate.id, unique inside its set
    Column("text", Text, nullable=False),
    Column("finish", String(8), nullable=False),
    # Who wrote it: never selected by a labeler's route.
    Column("policy", Text),
    Column("temperature", Float),
    Column("seed", BigInteger),
)

item = Table(
    "item",
    metadata,
    _id(),
    _ref("project_id", "project", nullable=False),
    _ref("prompt_id", "prompt", nullable=False),
    Column("external_id", Text, nullable=False),  # CandidateSet.id, or the prompt's id
    Column("candidate_ids", JSON, nullable=False),  # K = 2..9 ids; [] for a demonstration
    Column("split", Text),
    Column("need", Integer, nullable=False),  # counted answers wanted
    Column("done", Integer, nullable=False, default=0),  # counted answers given
    Column("leased", Integer, nullable=False, default=0),  # open assignments
    Column("priority", Integer, nullable=False, default=0),
    Column("shuffle", Float, nullable=False),  # the seeded random order
    Column("state", String(8), nullable=False, default="open"),  # open | held
    Column("held_reason", Text),
    Column("reports", Integer, nullable=False, default=0),
    Column("gold", JSON),  # the known bins of candidate ids, best first; null: not a gold item
    _ref("repeat_of", "item"),  # a silent repeat, for `only_labeler`
    _ref("only_labeler", "labeler"),
    UniqueConstraint("project_id", "external_id"),
    CheckConstraint("done >= 0 and leased >= 0"),
    # Exact overlap: no transaction can promise or count one answer too many. Gold items and
    # repeats count too; gold items simply need very many.
    CheckConstraint("done + leased <= need"),
)

# Items that some labeler could start now, in the order in which they are given out. Constants, not
# parameters: SQLite uses a partial index only where the query repeats its condition, and a bare
# column must stand on the left for it to see that.
QUEUED = and_(
    item.c.state == literal_column("'open'"),
    item.c.need > item.c.done + item.c.leased,
    item.c.gold.is_(None),
    item.c.repeat_of.is_(None),
)
Index(
    "item_queue",
    item.c.project_id,
    item.c.priority.desc(),
    item.c.shuffle,
    sqlite_where=QUEUED,
    postgresql_where=QUEUED,
)
Index(
    "item_gold",
    item.c.project_id,
    item.c.shuffle,
    sqlite_where=item.c.gold.is_not(None),
    postgresql_where=item.c.gold.is_not(None),
)
Index("item_prompt", item.c.prompt_id)
Index("item_repeats", item.c.repeat_of, item.c.only_labeler)

labeler = Table(
    "labeler",
    metadata,
    _id(),
    Column("name", Text, nullable=False, unique=True),  # an alias; all that exports carry
    Column("role", String(8), nullable=False),  # labeler | admin
    Column("group", String(16), nullable=False),  # train | heldout | research
    Column("fold", Integer, nullable=False),  # 0..4, for cross-validation over labelers
    Column("simulated", Boolean, nullable=False, default=False),
    Column("status", String(8), nullable=False, default="active"),  # active | paused | removed
    _time("created_at"),
)

guidelines_read = Table(
    "guidelines_read",
    metadata,
    _ref("labeler_id", "labeler", primary_key=True),
    _ref("project_id", "project", primary_key=True),
    Column("version", Integer, nullable=False),
    _time("at"),
)

invite = Table(
    "invite",
    metadata,
    Column("token_sha256", String(64), primary_key=True),
    _ref("labeler_id", "labeler", nullable=False),
    _time("expires_at"),
    _time("used_at", nullable=True),
)

session = Table(
    "session",
    metadata,
    Column("sid_sha256", String(64), primary_key=True),
    _ref("labeler_id", "labeler", nullable=False),
    Column("csrf", String(64), nullable=False),
    _time("created_at"),
    _time("expires_at"),  # pushed on while in use
    Column("revoked", Boolean, nullable=False, default=False),
)

assignment = Table(
    "assignment",
    metadata,
    _id(),
    _ref("item_id", "item", nullable=False),
    _ref("project_id", "project", nullable=False),
    _ref("labeler_id", "labeler", nullable=False),
    # open: leased now.  expired: lease over, draft kept, late work welcome.
    # done: counted.  extra: late and not counted.  skipped, reported: handed back.
    Column("state", String(8), nullable=False),
    _time("lease_until"),
    _time("opened_at", nullable=True),  # null: fetched ahead, never looked at
    _time("submitted_at", nullable=True),
    Column("display_order", JSON, nullable=False),  # candidate ids as shown: A, B, C, ...
    Column("draft", JSON),
    Column("rev", Integer, nullable=False, default=0),
    Column("active_ms", BigInteger, nullable=False, default=0),
    Column("schema_version", Integer, nullable=False),
    Column("guidelines_version", Integer, nullable=False),
    _time("created_at"),
    UniqueConstraint("item_id", "labeler_id"),  # nobody gets an item twice
    Index("assignment_leases", "state", "lease_until"),
    Index("assignment_labeler", "labeler_id", "project_id", "state"),
)

annotation = Table(
    "annotation",
    metadata,
    _id(),
    _ref("assignment_id", "assignment", nullable=False),
    Column("revision", Integer, nullable=False),  # 1, then one more for each amendment
    Column("payload", JSON, nullable=False),  # schema.RankPayload or DemonstrationPayload
    Column("active_ms", BigInteger, nullable=False),
    _time("at"),
    Column("schema_version", Integer, nullable=False),
    Column("guidelines_version", Integer, nullable=False),
    Column("app_version", String(32), nullable=False),
    UniqueConstraint("assignment_id", "revision"),
)

submission_key = Table(
    "submission_key",
    metadata,
    _ref("labeler_id", "labeler", primary_key=True),
    Column("key", String(64), primary_key=True),
    _ref("annotation_id", "annotation", nullable=False),
)

event = Table(
    "event",
    metadata,
    Column("seq", Integer, primary_key=True, autoincrement=False),
    _time("at"),
    Column("actor", Text, nullable=False),  # a labeler's id, or "command"
    Column("kind", String(32), nullable=False),
    Column("ref", Text, nullable=False),  # the row it is about
    Column("body", Text, nullable=False),  # canonical JSON, so that its hash is of these bytes
    Column("prev_hash", String(64), nullable=False),
    Column("hash", String(64), nullable=False),
    Index("event_ref", "ref"),
)

chain = Table(
    "chain",
    metadata,
    # One row, the head of the events; locking it orders their writers.
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("seq", Integer, nullable=False),
    Column("hash", String(64), nullable=False),
)


def insert_new(conn: Connection, table: Table, **values: Any) -> bool:
    """Inserts a row; False when one with the same key is there already."""
    return conn.execute(_insert_new(conn.dialect.name, table), values).first() is not None


@cache
def _insert_new(dialect: str, table: Table) -> Any:
    insert = postgresql.insert if dialect == "postgresql" else sqlite.insert
    # RETURNING, because the row count of an INSERT is not known on PostgreSQL.
    return insert(table).on_conflict_do_nothing().returning(*table.primary_key)
