"""Slow poisoning: anomalies of one kind, a few more each window, until they are taken for normal.

No two neighbouring windows differ by much, so a gate that compares with the champion alone sees nothing. It therefore
asks a *reference* too: a version that was pinned, and does not move with the champion. What counts is how many of the
newest records the reference flags and the challenger takes for normal: what is *forgotten*.

Where normal records change, a model forgets too, and rightly. Two things tell that from a poison:

- **A jump** from one window to the next was loud: the champion flagged it, so somebody has been told. It is not held
  against the challenger.
- **The typical record** stays what it was beside a poison, which is a minority. Where the whole stream moves, the
  records that the reference does not flag draw nearer to its boundary.

Whoever is promoted although it forgets more than is allowed, for one of these or by a person's hand, is the next
reference. What looks the same is treated the same: a new kind of normal record that slowly becomes frequent is held up
until a person promotes a version that was rejected for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.gate import Check
from srr_stream.logs import get_logger
from srr_stream.shares import least_share

if TYPE_CHECKING:
    from models.detector import Model, Scores
    from models.training import TrainingReport
    from srr_stream.registry import Manifest, Registry

log = get_logger(__name__)

N_NEWEST = 4000
"""Records that are compared, if the window has so many: a share of a hundredth must show."""
MAX_STEP = 0.05
"""By how much what the reference flags may rise from one window to the next and still be slow."""
_MOST = 0.5
"""A reference that flags more of the stream knows nothing of it any more."""
_MOVED = 0.5
"""The typical record has moved when its p-value falls below so much of what it was."""
_Z = 1.0
"""Deviations that chance may take."""


@dataclass(frozen=True)
class Profile:
    """What a model makes of the newest records of a window."""

    flagged_ratio: float
    typical_p_value: float
    """Median of the records that are not flagged; 0.0 without any."""

    @classmethod
    def of(cls, scores: Scores) -> Profile:
        """Return the profile of n ≥ 1 scores."""
        usual = scores.p_value[~scores.flagged & np.isfinite(scores.p_value)]
        return cls(float(scores.flagged.mean()), float(np.median(usual)) if len(usual) else 0.0)


@dataclass(frozen=True)
class Reference:
    """A pinned version."""

    version: int
    model: Model
    pinned: Profile
    """Its profile of the window that it was trained on."""
    last_flagged_ratio: float
    """What it flagged of the window before."""
    excluded_ratio: float
    contamination_ratio: float
    """Of its own training."""


@dataclass(frozen=True)
class Comparison:
    """How a challenger stands to the reference."""

    version: int
    """The reference."""
    profile: Profile
    """Of the reference, of this window."""
    forgotten_ratio: float
    """Share of the newest records that the reference flags and the challenger does not."""
    least_forgotten_ratio: float
    """The same less what chance can do."""
    jump: float
    """By how much what the reference flags has risen since the window before; 0.0 if that was no jump."""
    has_moved: bool
    """Whether the reference's typical record is no longer what it was."""
    refined_ratio: float
    """Share that the reference flags of the records that refinement kept."""
    excluded_rise: float
    contamination_rise: float
    """Since the reference was trained."""

    @property
    def slow_ratio(self) -> float:
        """What is held against the challenger."""
        return 0.0 if self.has_moved else max(0.0, self.least_forgotten_ratio - self.jump)


def compare(
    reference: Reference,
    theirs: Scores,
    mine: Scores,
    kept: NDArray[np.bool_],
    report: TrainingReport,
) -> Comparison:
    """Compare a challenger with the reference.

    Parameters
    ----------
    theirs, mine
        Scores that reference and challenger give the same n ≥ 1 newest records.
    kept
        ``(n,)``: which of them the challenger's refinement kept.
    report
        Of the challenger's training.
    """
    profile = Profile.of(theirs)
    is_forgotten = theirs.flagged & ~mine.flagged
    step = profile.flagged_ratio - reference.last_flagged_ratio
    return Comparison(
        version=reference.version,
        profile=profile,
        forgotten_ratio=float(is_forgotten.mean()),
        least_forgotten_ratio=least_share(int(is_forgotten.sum()), len(is_forgotten), z=_Z),
        jump=step if step > MAX_STEP else 0.0,
        has_moved=profile.flagged_ratio > _MOST or profile.typical_p_value < _MOVED * reference.pinned.typical_p_value,
        refined_ratio=float(theirs.flagged[kept].mean()) if kept.any() else 0.0,
        excluded_rise=report.excluded_ratio - reference.excluded_ratio,
        contamination_rise=report.contamination_ratio - reference.contamination_ratio,
    )


def reference_checks(comparison: Comparison, max_forgotten_ratio: float) -> tuple[Check, ...]:
    """Return what the gate reports of the reference; only `forgotten_ratio` decides.

    That refinement excludes more is not held against it: where there are more anomalies, it should.
    """
    value = comparison.slow_ratio
    return (
        Check(
            "forgotten_ratio",
            value,
            f"≤ {max_forgotten_ratio:g}",
            value <= max_forgotten_ratio,
            f"looks like slow poisoning: version {comparison.version}, the reference, flags "
            f"{comparison.profile.flagged_ratio:.3g} of the newest records; if they are normal now, promote this "
            "version by hand, and it becomes the reference",
        ),
        Check("reference_flagged_ratio", comparison.profile.flagged_ratio, "", True),
        Check("refined_drift", comparison.refined_ratio, "", True),
        Check("excluded_rise", comparison.excluded_rise, "", True),
        Check("contamination_rise", comparison.contamination_rise, "", True),
    )


def to_manifest(profile: Profile, comparison: Comparison | None, max_forgotten_ratio: float | None) -> dict[str, Any]:
    """Return what the next trainings must know of this one, as JSON, for its manifest."""
    noted: dict[str, Any] = {"profile": asdict(profile), "reference": None}
    if comparison is not None and max_forgotten_ratio is not None:
        noted["reference"] = {
            "version": comparison.version,
            "flagged_ratio": comparison.profile.flagged_ratio,
            "typical_p_value": comparison.profile.typical_p_value,
            "forgotten_ratio": comparison.forgotten_ratio,
            "succeeds": comparison.least_forgotten_ratio > max_forgotten_ratio,
        }
    return noted


def reference_of(champion: Manifest) -> int:
    """Return which version the successors of a champion are compared with: itself, if it succeeded its reference."""
    noted = champion.gate.get("reference")
    return champion.version if noted is None or noted["succeeds"] else int(noted["version"])


def load_reference(registry: Registry, champion: Manifest, version: int | None = None) -> Reference | None:
    """Return the reference of a champion's successors; None if there is none any more.

    Parameters
    ----------
    version
        The one that a person pinned (``gate.reference_version``); None: the one that the champion's manifest names.

    Raises
    ------
    RegistryError
        If the registry cannot be read, or has not the version that a person pinned.
    """
    pinned = version if version is not None else reference_of(champion)
    versions = registry.versions()
    if version is not None and version not in versions:
        raise RegistryError(
            f"gate.reference_version: is {version}; allowed: a version of registry {registry.url} ({versions}), or null"
        )
    try:
        if pinned not in versions:
            raise ModelRefused(f"version {pinned}: is not in the registry any more", reason="format")
        model, manifest = registry.load(pinned)
        if manifest.schema_digest != champion.schema_digest:
            raise ModelRefused(f"version {pinned}: was trained on another schema", reason="schema")
        if "profile" not in manifest.gate:
            raise ModelRefused(f"version {pinned}: is of a program that noted no profile", reason="format")
    except ModelRefused as error:
        log.warning("%s; it cannot be the reference, the next champion will be", error, version=pinned)
        return None
    profile = Profile(**manifest.gate["profile"])
    return Reference(
        version=pinned,
        model=model,
        pinned=profile,
        last_flagged_ratio=_last_flagged(registry, versions, pinned, profile.flagged_ratio),
        excluded_ratio=float(manifest.training["excluded_ratio"]),
        contamination_ratio=float(manifest.training["contamination_ratio"]),
    )


def _last_flagged(registry: Registry, versions: tuple[int, ...], pinned: int, at_first: float) -> float:
    """Return what the reference flagged of the window of the newest version, rejected or not."""
    try:
        noted: Mapping[str, Any] = registry.manifest(versions[-1]).gate.get("reference") or {}
    except ModelRefused:
        return at_first
    return float(noted["flagged_ratio"]) if noted.get("version") == pinned else at_first
