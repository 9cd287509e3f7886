"""The first tables. History, not the present: later changes to `tables.py` come as further migrations."""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

ID, KEY, SHA, WORD = sa.String(36), sa.String(200), sa.String(64), sa.String(20)
JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
ORDER = (
    "prompt run model annotator edge completion score snapshot rollout_shard "
    "project guideline criterion aggregation task task_item estimate seat judgement rating"
)


def col(name: str, kind: Any, *rest: Any, **options: Any) -> Any:
    return sa.Column(name, kind, *rest, nullable=False, **options)


def maybe(name: str, kind: Any, *rest: Any, **options: Any) -> Any:
    return sa.Column(name, kind, *rest, nullable=True, **options)


def ref(target: str) -> Any:
    return sa.ForeignKey(target, ondelete="RESTRICT")


def row() -> list[Any]:
    return [col("id", ID, primary_key=True), col("created_at", sa.BigInteger)]


def where(condition: str) -> dict[str, Any]:
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def upgrade() -> None:
    _prompts_and_models()
    _people_and_edges()
    _completions()
    _files()
    _projects()
    _tasks()
    _seats()
    _answers()


def downgrade() -> None:
    for table in reversed(ORDER.split()):
        op.drop_table(table)


def _prompts_and_models() -> None:
    op.create_table(
        "prompt",
        *row(),
        col("key", KEY, unique=True),
        col("messages", JSON),
        col("text_sha256", SHA, unique=True),
        col("cluster_id", SHA),
        col("split", WORD),
        col("source", sa.Text),
        col("meta", JSON),
    )
    op.create_index("ix_prompt_cluster_id", "prompt", ["cluster_id"])
    op.create_table(
        "run",
        *row(),
        col("name", KEY),
        col("kind", sa.String(40)),
        col("method", sa.String(40)),
        col("config", JSON),
        col("config_sha256", SHA),
        col("path", sa.Text),
        col("state", WORD),
        col("metrics", JSON),
        maybe("finished_at", sa.BigInteger),
        sa.CheckConstraint("state IN ('running', 'done', 'failed')", name="state"),
    )
    op.create_index("ix_run_config_sha256", "run", ["config_sha256"])
    op.create_index("ix_run_name", "run", ["name"])
    op.create_table(
        "model",
        *row(),
        col("key", KEY, unique=True),
        col("name", KEY),
        col("role", WORD),
        col("stage", WORD),
        col("path", sa.Text),
        maybe("sha256", SHA),
        col("base_model", sa.Text),
        maybe("tokenizer_sha256", SHA),
        maybe("run_id", ID, ref("run.id")),
    )
    op.create_index("ix_model_name", "model", ["name"])
    op.create_index("ix_model_run_id", "model", ["run_id"])


def _people_and_edges() -> None:
    op.create_table(
        "annotator",
        *row(),
        col("handle", KEY, unique=True),
        col("display_name", sa.Text),
        maybe("email", sa.Text),
        col("kind", WORD),
        col("role", WORD),
        col("state", WORD),
        col("langs", JSON),
        col("skills", JSON),
        sa.CheckConstraint("kind IN ('human', 'ai', 'rule', 'simulated', 'import')", name="kind"),
        sa.CheckConstraint("state IN ('invited', 'active', 'paused', 'left')", name="state"),
    )
    op.create_table(
        "edge",
        col("parent_type", WORD, primary_key=True),
        col("parent_id", KEY, primary_key=True),
        col("child_type", WORD, primary_key=True),
        col("child_id", KEY, primary_key=True),
        col("kind", sa.String(40), primary_key=True),
    )
    op.create_index("ix_edge_child", "edge", ["child_type", "child_id"])


def _completions() -> None:
    op.create_table(
        "completion",
        *row(),
        col("key", KEY, unique=True),
        col("prompt_id", ID, ref("prompt.id")),
        maybe("parent_completion_id", ID, ref("completion.id")),
        maybe("model_id", ID, ref("model.id")),
        maybe("model_version", sa.BigInteger),
        col("author", sa.Text),
        maybe("author_id", ID, ref("annotator.id")),
        col("messages", JSON),
        col("text", sa.Text),
        col("text_sha256", SHA),
        maybe("sample_id", KEY),
        col("sampling", JSON),
        maybe("n_tokens", sa.BigInteger),
        maybe("finish_reason", WORD),
        maybe("logprob_sum", sa.Double),
    )
    op.create_index("ix_completion_content", "completion", ["prompt_id", "text_sha256"])
    op.create_index("ix_completion_model_id", "completion", ["model_id"])
    op.create_index("ix_completion_sample_id", "completion", ["sample_id"])
    op.create_table(
        "score",
        *row(),
        col("completion_id", ID, ref("completion.id")),
        col("scorer", KEY),
        maybe("model_id", ID, ref("model.id")),
        maybe("value", sa.Double),
        maybe("std", sa.Double),
        col("parts", JSON),
        sa.UniqueConstraint("completion_id", "scorer"),
    )
    op.create_index("ix_score_scorer", "score", ["scorer"])


def _files() -> None:
    op.create_table(
        "snapshot",
        *row(),
        col("name", KEY, unique=True),
        col("kind", WORD),
        col("spec", JSON),
        col("n_rows", sa.BigInteger),
        col("manifest_sha256", SHA),
        maybe("parent_id", ID, ref("snapshot.id")),
        col("path", sa.Text),
    )
    op.create_index("ix_snapshot_manifest_sha256", "snapshot", ["manifest_sha256"])
    op.create_table(
        "rollout_shard",
        *row(),
        col("run_id", ID, ref("run.id")),
        maybe("model_id", ID, ref("model.id")),
        col("path", sa.Text),
        col("sha256", SHA),
        col("n_samples", sa.BigInteger),
        col("version", sa.BigInteger),
        sa.UniqueConstraint("run_id", "path"),
    )


def _projects() -> None:
    op.create_table(
        "project",
        *row(),
        col("slug", KEY, unique=True),
        col("name", sa.Text),
        col("kind", WORD),
        col("state", WORD),
        col("config", JSON),
        col("blind", sa.Boolean),
        col("lease_s", sa.BigInteger),
        col("seed", sa.BigInteger),
        col("pseudonym_key", SHA),
        sa.CheckConstraint("state IN ('draft', 'open', 'paused', 'closed')", name="state"),
        sa.CheckConstraint("kind IN ('pairwise', 'rank', 'rate', 'thumbs', 'edit', 'mixed')", name="kind"),
    )
    op.create_table(
        "guideline",
        *row(),
        col("project_id", ID, ref("project.id")),
        col("version", sa.BigInteger),
        col("body_md", sa.Text),
        col("sha256", SHA),
        sa.UniqueConstraint("project_id", "version"),
    )
    op.create_table(
        "criterion",
        *row(),
        col("project_id", ID, ref("project.id")),
        col("key", sa.String(60)),
        col("label", sa.Text),
        col("help_md", sa.Text),
        col("scale", WORD),
        col("required", sa.Boolean),
        col("position", sa.BigInteger),
        sa.UniqueConstraint("project_id", "key"),
    )
    op.create_table(
        "aggregation",
        *row(),
        col("project_id", ID, ref("project.id")),
        col("method", sa.String(40)),
        col("params", JSON),
        col("params_sha256", SHA),
        col("votes_sha256", SHA),
        col("report", JSON),
        sa.UniqueConstraint("project_id", "params_sha256", "votes_sha256"),
    )


def _tasks() -> None:
    op.create_table(
        "task",
        *row(),
        col("project_id", ID, ref("project.id")),
        col("key", KEY),
        col("kind", WORD),
        col("prompt_id", ID, ref("prompt.id")),
        col("n_items", sa.BigInteger),
        maybe("repeat_of", ID, ref("task.id")),
        col("priority", sa.Double),
        col("order_key", sa.BigInteger),
        col("state", WORD),
        col("created_by_strategy", WORD),
        maybe("acq_score", sa.Double),
        sa.UniqueConstraint("project_id", "key"),
        sa.CheckConstraint("state IN ('open', 'done', 'review', 'void')", name="state"),
        sa.CheckConstraint(
            "kind IN ('normal', 'gold', 'attention', 'repeat', 'calibration', 'adjudication')", name="kind"
        ),
    )
    op.create_index("ix_task_prompt_id", "task", ["prompt_id"])
    op.create_table(
        "task_item",
        col("task_id", ID, ref("task.id"), primary_key=True),
        col("slot", sa.BigInteger, primary_key=True, autoincrement=False),
        col("completion_id", ID, ref("completion.id")),
        sa.UniqueConstraint("task_id", "completion_id"),
    )
    op.create_index("ix_task_item_completion", "task_item", ["completion_id"])
    op.create_table(
        "estimate",
        col("aggregation_id", ID, ref("aggregation.id"), primary_key=True),
        col("task_id", ID, ref("task.id"), primary_key=True),
        col("p_slot0", sa.Double),
        col("margin", sa.Double),
        col("d_mean", sa.Double),
        maybe("d_sd", sa.Double),
        col("n_votes", sa.BigInteger),
        col("entropy", sa.Double),
        col("tie", sa.Boolean),
        col("disputed", sa.Boolean),
    )


def _seats() -> None:
    op.create_table(
        "seat",
        *row(),
        col("project_id", ID, ref("project.id")),
        col("task_id", ID, ref("task.id")),
        col("state", WORD),
        maybe("annotator_id", ID, ref("annotator.id")),
        maybe("lease_token", ID),
        maybe("leased_at", sa.BigInteger),
        maybe("lease_until", sa.BigInteger),
        col("batch", sa.BigInteger),
        col("place", sa.Double),
        col("order_key", sa.BigInteger),
        sa.UniqueConstraint("task_id", "annotator_id"),
        sa.CheckConstraint("state IN ('open', 'leased', 'done', 'released', 'late')", name="state"),
    )
    op.create_index("ix_seat_leased", "seat", ["project_id", "lease_until"], **where("state = 'leased'"))
    op.create_index("ix_seat_open", "seat", ["project_id", "place", "order_key", "id"], **where("state = 'open'"))
    op.create_index(
        "uq_seat_one_lease",
        "seat",
        ["annotator_id", "project_id"],
        unique=True,
        **where("state = 'leased' AND batch = 0"),
    )


def _answers() -> None:
    op.create_table(
        "judgement",
        *row(),
        col("seat_id", ID, ref("seat.id")),
        col("task_id", ID, ref("task.id")),
        col("revision", sa.BigInteger),
        maybe("supersedes_id", ID, ref("judgement.id"), unique=True),
        col("annotator_id", ID, ref("annotator.id")),
        col("outcome", WORD),
        maybe("strength", sa.BigInteger),
        col("shown_order", JSON),
        col("both_bad", sa.Boolean),
        col("both_good", sa.Boolean),
        maybe("ranking", JSON),
        maybe("skip_reason", sa.Text),
        col("comment", sa.Text),
        maybe("active_ms", sa.BigInteger),
        maybe("wall_ms", sa.BigInteger),
        col("n_focus_loss", sa.BigInteger),
        col("ui", WORD),
        col("app_version", sa.String(40)),
        maybe("guideline_id", ID, ref("guideline.id")),
        sa.CheckConstraint("outcome IN ('answer', 'skip', 'flag', 'undo')", name="outcome"),
        sa.UniqueConstraint("seat_id", "revision"),
        sa.CheckConstraint("strength BETWEEN -2 AND 2", name="strength"),
    )
    op.create_index("ix_judgement_annotator", "judgement", ["annotator_id", "created_at"])
    op.create_index("ix_judgement_task_id", "judgement", ["task_id"])
    op.create_table(
        "rating",
        col("judgement_id", ID, ref("judgement.id"), primary_key=True),
        col("criterion_id", ID, ref("criterion.id"), primary_key=True),
        col("slot", sa.BigInteger, primary_key=True, autoincrement=False),
        col("value", sa.BigInteger),
    )
