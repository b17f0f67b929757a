"""Versions of the registry as the desk shows them: pure functions over manifests, pointer and training records."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from srr_stream.cli.model_text import facts_of, role_of
from srr_stream.errors import ModelRefused
from srr_stream.training_record import load_refinement
from srr_stream.web.problems import DeskError
from srr_stream.web.views import CheckView, ExcludedRow, InUse, ModelRow, ModelView, RangeView, RefinementView

if TYPE_CHECKING:
    from srr_stream.labels import Label
    from srr_stream.registry import Manifest, Pointer, Registry
    from srr_stream.training_record import Excluded


def model_row(registry: Registry, version: int, size: int, pointer: Pointer) -> ModelRow:
    """Return a version's row, also of one that is refused."""
    try:
        return _row(registry.manifest(version), size, pointer)
    except ModelRefused as error:
        return ModelRow(version, role_of(version, pointer), size, problem=f"refused ({error.reason}): {error}")


def model_view(manifest: Manifest, size: int, pointer: Pointer) -> ModelView:
    """Return all that people want to know of a version."""
    row = _row(manifest, size, pointer)
    ranges = tuple(
        RangeView(r["topic"], r["partition"], r["start"], r["stop"]) for r in manifest.window.get("ranges", ())
    )
    return ModelView(row, ranges, facts_of(manifest, row.role))


def _row(manifest: Manifest, size: int, pointer: Pointer) -> ModelRow:
    gate, training = manifest.gate, manifest.training
    return ModelRow(
        version=manifest.version,
        role=role_of(manifest.version, pointer),
        size=size,
        created_at=manifest.created_at,
        reason=manifest.reason,
        representation=manifest.model.get("representation"),
        n_records=manifest.window.get("n_records"),
        excluded_ratio=training.get("excluded_ratio"),
        contamination_ratio=training.get("contamination_ratio"),
        passed=gate.get("passed"),
        decision=gate.get("reason"),
        checks=tuple(map(_check, gate.get("checks", ()))),
    )


def _check(said: Mapping[str, Any]) -> CheckView:
    return CheckView(said["name"], said["value"], said["bound"], said["passed"], said.get("advice", ""))


def in_use(pointer: Pointer) -> InUse:
    """Return which versions are in use."""
    can_roll_back = pointer.previous is not None and pointer.previous != pointer.rolled_back
    return InUse(pointer.champion, pointer.previous, pointer.challenger, pointer.reason, pointer.at, can_roll_back)


def refinement_view(registry: Registry, version: int, label_of: Callable[[str], Label | None]) -> RefinementView:
    """Return what the refinement of a version's window left out.

    Raises
    ------
    DeskError
        not_found: the version has kept nothing of it.
    """
    kept = load_refinement(registry, version)
    if kept is None:
        raise DeskError(
            "not_found",
            detail=f"version {version} has kept nothing of its refinement; versions of this release do, train anew",
        )
    return RefinementView(
        version=version,
        gamma=kept.gamma,
        rows_by_votes=tuple(kept.rows_by_votes),
        n_rows=kept.n_rows,
        n_excluded=kept.n_excluded,
        rows=tuple(_excluded(row, label_of) for row in kept.excluded),
    )


def _excluded(row: Excluded, label_of: Callable[[str], Label | None]) -> ExcludedRow:
    label = label_of(row.id)
    return ExcludedRow(
        row.id, row.topic, row.partition, row.offset, row.votes, label.label if label is not None else None
    )
