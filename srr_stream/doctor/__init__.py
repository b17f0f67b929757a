"""Whether everything that the service stands on is as it must be: looked at from outside, nothing is changed.

A check looks at one thing and says what it found, each finding with its remedy. What a check knows of the world comes
through :class:`srr_stream.doctor.facts.World`, so that each of its answers can be tried without the world.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from consumers.errors import ConsumersError
from srr_stream import assembly
from srr_stream.doctor import kafka, machine
from srr_stream.doctor.facts import FAILURE, OK, SKIPPED, WARNING, Check, Facts, Finding, Status, World
from srr_stream.errors import RegistryError, SettingsError
from srr_stream.loading import load_settings

__all__ = ["CHECKS", "Finding", "Status", "World", "diagnose", "to_dict", "worst"]

LIMIT_S = 10.0


def diagnose(
    path: Path,
    *,
    world: World | None = None,
    limit_s: float = LIMIT_S,
    on_finding: Callable[[Finding], None] = lambda finding: None,
) -> list[Finding]:
    """Read a settings file, run every check, and return what was found.

    Parameters
    ----------
    limit_s
        So long a check may take; then it has failed.
    on_finding
        Told each finding as it comes.
    """
    findings: list[Finding] = []

    def tell(finding: Finding) -> None:
        findings.append(finding)
        on_finding(finding)

    try:
        settings = load_settings(path)
        facts = Facts(settings, world or World(), assembly.make_registry(settings))
    except SettingsError as error:
        for problem in error.problems:
            tell(Finding("settings", FAILURE, problem, f"correct {path}; configs/reference.yaml has every setting"))
    except RegistryError as error:
        tell(Finding("settings", FAILURE, str(error), "correct registry.url, or install the extra for it: s3, gcs"))
    if findings:
        for check in CHECKS:
            tell(Finding(check.name, SKIPPED, "needs settings that can be read"))
        return findings
    n = len(settings.record.fields)
    tell(Finding("settings", OK, f"{path}: good; {n} field{'s' * (n > 1)} of {', '.join(settings.input.topics)}"))
    failed: set[str] = set()
    for check in CHECKS:
        lacking = [name for name in check.needs if name in failed]
        if lacking:
            failed.add(check.name)
            tell(Finding(check.name, SKIPPED, f"needs {' and '.join(lacking)}"))
            continue
        for status, text, remedy in _within(limit_s, check, facts):
            if status is FAILURE:
                failed.add(check.name)
            tell(Finding(check.name, status, text, remedy))
    return findings


def worst(findings: Collection[Finding]) -> Status:
    """Return the worst status that there is; what was skipped counts for nothing."""
    found = {finding.status for finding in findings}
    return FAILURE if FAILURE in found else WARNING if WARNING in found else OK


def to_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """Return a JSON-able form."""
    counts = Counter(finding.status for finding in findings)
    return {
        "status": worst(findings).value,
        "counts": {status.value: counts[status] for status in Status},
        "findings": [asdict(finding) | {"status": finding.status.value} for finding in findings],
    }


def _within(limit_s: float, check: Check, facts: Facts) -> list[tuple[Status, str, str]]:
    """Return what a check finds within a time; its thread is left behind if it takes longer."""
    found: list[tuple[Status, str, str]] = []
    defects: list[BaseException] = []

    def look() -> None:
        try:
            found.extend(check.look(facts))
        except (ConsumersError, RegistryError, OSError) as error:
            text, _, remedy = str(error).partition("; ")
            found.append((FAILURE, text, remedy))
        except BaseException as error:
            defects.append(error)

    thread = threading.Thread(target=look, name=f"doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        return [(FAILURE, f"no answer within {limit_s:g} s", "look whether what it asks is overloaded or out of reach")]
    if defects:
        raise defects[0]
    return found


CHECKS: tuple[Check, ...] = (
    Check("broker", kafka.broker),
    Check("rights", kafka.rights, ("broker",)),
    Check("topics", kafka.topics, ("broker",)),
    Check("outputs", kafka.outputs, ("broker",)),
    Check("partitions", kafka.partitions, ("broker", "topics")),
    Check("replication", kafka.replication, ("broker",)),
    Check("labels", kafka.labels, ("broker",)),
    Check("message sizes", kafka.message_sizes, ("broker",)),
    Check("records", kafka.records, ("broker", "rights", "topics")),
    Check("retention", kafka.retention, ("broker", "rights", "topics")),
    Check("clock", kafka.clock, ("broker", "rights", "topics")),
    Check("disk", machine.disk),
    Check("memory", machine.memory_left),
    Check("device", machine.device),
    Check("registry", machine.registry),
    Check("models", machine.models, ("registry",)),
    Check("ports", machine.ports),
    Check("token", machine.token),
    Check("service", machine.service),
)
