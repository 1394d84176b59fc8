"""The whole schema on one page. Alembic owns the database: a test compares what is written here with what it makes.

Constraint names follow one convention, because `app.storage.db` translates a violation by its name.
"""

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Computed,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import JSONB

metadata = MetaData(
    naming_convention={
        "pk": "pk_%(table_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
    }
)

Moment = DateTime(timezone=True)

# Rows that every report of a node rewrites: half-empty pages let PostgreSQL put the new version beside the old one
# without touching an index, as long as no index covers a column that changes with each report.
_REWRITTEN = {"fillfactor": 50}


def _of_memory(name: str) -> Computed:
    """A number of the reading as a column, so that SQL can filter and add up what is stored once."""
    return Computed(f"(((reading -> 'memory'::text) ->> '{name}'::text))::bigint", persisted=True)


tokens = Table(
    "tokens",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("secret_sha256", LargeBinary, nullable=False, unique=True),
    Column("prefix", Text, nullable=False),
    Column("node", Text),
    Column("created_at", Moment, nullable=False),
    Column("expires_at", Moment),
    Column("last_used_at", Moment),
    Column("revoked_at", Moment),
    CheckConstraint("role IN ('viewer', 'planner', 'admin', 'agent')", name="role"),
)
# A revoked name may be given again.
Index("uq_tokens_name", tokens.c.name, unique=True, postgresql_where=tokens.c.revoked_at.is_(None))

plans = Table(
    "plans",
    metadata,
    Column("id", Uuid, primary_key=True),
    Column("name", Text, nullable=False),
    Column("description", Text),
    Column("labels", JSONB, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("deleted_at", Moment),
)
Index("ix_plans_created_at_id", plans.c.created_at, plans.c.id, postgresql_where=plans.c.deleted_at.is_(None))
Index("ix_plans_labels", plans.c.labels, postgresql_using="gin", postgresql_ops={"labels": "jsonb_path_ops"})

plan_revisions = Table(
    "plan_revisions",
    metadata,
    Column("plan_id", Uuid, ForeignKey("plans.id"), nullable=False),
    Column("revision", Integer, nullable=False),
    Column("request", JSONB, nullable=False),
    Column("resolved", JSONB, nullable=False),
    Column("estimate", JSONB, nullable=False),
    Column("engine_version", Text, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("created_by", Text, nullable=False),
    PrimaryKeyConstraint("plan_id", "revision"),
)

nodes = Table(
    "nodes",
    metadata,
    Column("id", BigInteger, Identity(always=True), primary_key=True),
    Column("name", Text, nullable=False, unique=True),
    Column("agent_version", Text, nullable=False),
    Column("driver_version", Text),
    Column("cuda_version", Text),
    Column("pool", Text),
    Column("labels", JSONB, nullable=False),
    Column("demo", Boolean, nullable=False),
    Column("error", Text),
    Column("unidentified_gpus", JSONB, nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("first_seen_at", Moment, nullable=False),
    Column("sampled_at", Moment, nullable=False),
    Column("received_at", Moment, nullable=False),
    postgresql_with=_REWRITTEN,
)

gpus = Table(
    "gpus",
    metadata,
    Column("uuid", Text, primary_key=True),
    Column("node_id", BigInteger, ForeignKey("nodes.id"), nullable=False, index=True),
    Column("gpu_index", Integer, nullable=False),
    Column("name", Text),
    Column("present", Boolean, nullable=False),
    Column("reading", JSONB, nullable=False),
    *(
        Column(name, BigInteger, _of_memory(name))
        for name in ("total_bytes", "used_bytes", "free_bytes", "reserved_bytes")
    ),
    Column("error", Text, Computed("(reading ->> 'error'::text)", persisted=True)),
    Column("first_seen_at", Moment, nullable=False),
    Column("sampled_at", Moment, nullable=False),
    Column("received_at", Moment, nullable=False),
    postgresql_with=_REWRITTEN,
)

reports = Table(
    "reports",
    metadata,
    Column("node_id", BigInteger, ForeignKey("nodes.id"), nullable=False),
    Column("boot_id", Text, nullable=False),
    Column("sequence", BigInteger, nullable=False),
    Column("sampled_at", Moment, nullable=False),
    Column("received_at", Moment, nullable=False),
    Column("payload", JSONB, nullable=False),
    PrimaryKeyConstraint("node_id", "boot_id", "sequence"),
)

idempotency_keys = Table(
    "idempotency_keys",
    metadata,
    Column("scope", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("request_sha256", LargeBinary, nullable=False),
    Column("status", Integer, nullable=False),
    Column("headers", JSONB, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", Moment, nullable=False, index=True),
    PrimaryKeyConstraint("scope", "key"),
)

# What the model hub said: files by the commit they are of, which never change, and where a branch was when last asked.
# No foreign key between them: once a config is dropped, the revisions that pointed to it are as good as not asked for.
hub_configs = Table(
    "hub_configs",
    metadata,
    Column("model_id", Text, nullable=False),
    Column("sha", Text, nullable=False),
    Column("config", JSONB, nullable=False),
    Column("host", Text, nullable=False),
    Column("fetched_at", Moment, nullable=False),
    Column("used_at", Moment, nullable=False),
    PrimaryKeyConstraint("model_id", "sha"),
)

hub_revisions = Table(
    "hub_revisions",
    metadata,
    Column("hub", Text, nullable=False),
    Column("model_id", Text, nullable=False),
    Column("revision", Text, nullable=False),
    Column("sha", Text, nullable=False),
    Column("checked_at", Moment, nullable=False),
    PrimaryKeyConstraint("hub", "model_id", "revision"),
)

# What a team adds to the catalogue. A deleted entry stays as a row without being listed, so that the revisions of a key
# go on counting when it is stored again: an ETag never means two states.
team_entries = Table(
    "team_entries",
    metadata,
    Column("kind", Text, nullable=False),
    Column("key", Text, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("content", JSONB, nullable=False),
    Column("created_at", Moment, nullable=False),
    Column("created_by", Text, nullable=False),
    Column("updated_at", Moment, nullable=False),
    Column("updated_by", Text, nullable=False),
    Column("deleted_at", Moment),
    PrimaryKeyConstraint("kind", "key"),
    CheckConstraint("kind IN ('gpu', 'node-shape', 'instance')", name="kind"),
)
