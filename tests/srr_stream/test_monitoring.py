"""Rules, runbook and Alertmanager's example: each alert is tried both ways, explained, and goes where it should."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client import CollectorRegistry

from srr_stream import cli
from srr_stream.metrics import ROLES

ROOT = Path(__file__).parents[2]
PROMETHEUS = ROOT / "deploy" / "prometheus"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
RULE_TESTS = sorted(PROMETHEUS.glob("rules_test_*.yml"))
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
OF_THE_ISSUE = [
    "FlaggedRateHigh",
    "FlaggedRateZero",
    "ScoringStalled",
    "LagGrowing",
    "PartitionSilent",
    "DeadLetterRate",
    "TrainingStale",
    "TrainingRejectedTwice",
    "ContaminationRising",
    "ModelSkew",
    "NoModel",
    "RebalanceStorm",
    "RestartLoop",
    "MemoryNearLimit",
    "ConfigReloadFailed",
    "TargetDown",
]


def needs(program: str, package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(program) is None, reason=f"NOT RUN: needs {program} (Debian package {package})"
    )


needs_promtool = needs("promtool", "prometheus")
needs_amtool = needs("amtool", "prometheus-alertmanager")


def rules(kind: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"] if kind in rule]


ALERTS = rules("alert")
NAMES = sorted({rule["alert"] for rule in ALERTS})


def rule_tests() -> list[dict[str, Any]]:
    return [test for path in RULE_TESTS for test in yaml.safe_load(path.read_text())["tests"]]


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=PROMETHEUS, capture_output=True, text=True, timeout=100)


# --- rules


def test_the_alerts_of_the_design_are_there() -> None:
    assert {f"Srr{name}" for name in OF_THE_ISSUE} <= set(NAMES)


@needs_promtool
@pytest.mark.parametrize("command", [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml")])
def test_promtool_accepts_the_rules_and_the_example(command: tuple[str, ...]) -> None:
    done = run("promtool", *command)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_recording_rules_come_first_in_their_tests(path: Path) -> None:
    groups = [group["name"] for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]]
    assert yaml.safe_load(path.read_text())["group_eval_order"] == groups


@needs_promtool
@pytest.mark.parametrize("path", RULE_TESTS, ids=lambda path: path.stem)
def test_the_rules_do_what_their_own_tests_say(path: Path) -> None:
    done = run("promtool", "test", "rules", path.name)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_has_a_rule_test_that_fires_it_and_one_that_must_not() -> None:
    outcomes = [
        (test["name"], {(each["alertname"], bool(each["exp_alerts"])) for each in test["alert_rule_test"]})
        for test in rule_tests()
        if "alert_rule_test" in test
    ]
    for name in NAMES:
        assert any((name, True) in seen for _, seen in outcomes), f"nothing fires {name}"
        assert any((name, False) in seen and (name, True) not in seen for _, seen in outcomes), f"{name} always fires"
    assert len({name for name, _ in outcomes}) >= 32


def test_every_rule_of_an_alert_that_has_several_is_fired() -> None:
    fired = [
        (each["alertname"], alert["exp_labels"])
        for test in rule_tests()
        for each in test.get("alert_rule_test", ())
        for alert in each["exp_alerts"]
    ]
    for rule in ALERTS:
        assert any(name == rule["alert"] and rule["labels"].items() <= labels.items() for name, labels in fired), rule


def test_every_recording_rule_is_asked_for_and_named_as_prometheus_wants_it() -> None:
    asked = " ".join(each["expr"] for test in rule_tests() for each in test.get("promql_expr_test", ()))
    for rule in rules("record"):
        assert re.fullmatch(r"[a-z_]+:srr_[a-z_]+:[a-z0-9_]+", rule["record"])
        assert rule["record"] in asked


def test_the_rules_ask_only_for_metrics_labels_and_values_that_are_there() -> None:
    described = {each.name: each for kind in ROLES.values() for each in kind(CollectorRegistry()).descriptions}
    recorded = {rule["record"] for rule in rules("record")}
    used = set()
    for rule in rules("alert") + rules("record"):
        for name, selector in re.findall(r"(?<![:\w])((?:srr|process)_\w+)(?:\{([^}]*)\})?", rule["expr"]):
            used.add(name)
            for label, operator, value in re.findall(r'(\w+)(=~|=)"([^"]*)"', selector or ""):
                values = described[name].labels[label]
                assert any(re.fullmatch(value if operator == "=~" else re.escape(value), each) for each in values)
        for name in re.findall(r"\b\w+:srr_\w+:\w+\b", rule["expr"]):
            assert name in recorded
    assert used <= described.keys()
    assert len(used) >= 18


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels'].get('cause', '')}")
def test_every_alert_says_how_urgent_it_is_what_is_so_and_where_to_read_on(rule: dict[str, Any]) -> None:
    assert rule["labels"]["severity"] in ("page", "ticket")
    annotations = rule["annotations"]
    assert "{{ $labels." in annotations["summary"]
    assert annotations["description"].endswith(".")
    assert annotations["runbook_url"].endswith(f"/runbook.md#{rule['alert'].lower()}")


# --- the runbook


def test_the_runbook_has_a_section_for_each_alert_and_no_other() -> None:
    assert sorted(re.findall(r"^## (\w+)$", RUNBOOK, flags=re.M)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_section_says_what_is_seen_how_to_check_what_to_do_and_when_to_ignore(name: str) -> None:
    section = RUNBOOK.split(f"## {name}\n")[1].split("\n## ")[0]
    severities = {rule["labels"]["severity"] for rule in ALERTS if rule["alert"] == name}
    assert severities == set(re.findall(r"\*(page|ticket)\b", section.split("\n\n")[0]))
    for heading in ("What people see.", "How to check.", "What to do.", "When to ignore."):
        assert f"**{heading}**" in section
    for cause in {rule["labels"].get("cause") for rule in ALERTS if rule["alert"] == name} - {None}:
        assert f'cause="{cause}"' in section


def test_the_runbook_names_only_commands_metrics_and_settings_that_there_are() -> None:
    import click

    from srr_stream.settings import Settings

    for words in re.findall(r"srr-stream ((?:[a-z][a-z-]+ ?)+)", RUNBOOK):
        command: click.Command = cli.main
        for word in words.split():
            if not isinstance(command, click.Group):
                break
            assert word in command.commands, words
            command = command.commands[word]
    described = {each.name for kind in ROLES.values() for each in kind(CollectorRegistry()).descriptions}
    named = set(re.findall(r"\bsrr_[a-z_]+", RUNBOOK))
    assert all(any(full.startswith(name) for full in described) for name in named - {"srr_severity_bucket"})
    sections = {name: info.annotation for name, info in Settings.model_fields.items()}
    for section, key in re.findall(r"`([a-z]+)\.([a-z_]+)(?:: [a-z]+)?`", RUNBOOK):
        assert key in sections[section].model_fields, f"{section}.{key}"  # type: ignore[union-attr]


# --- Alertmanager


@needs_amtool
def test_amtool_accepts_the_example() -> None:
    done = run("amtool", "check-config", str(ALERTMANAGER))
    assert done.returncode == 0, done.stdout + done.stderr


@needs_amtool
@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: f"{rule['alert']}-{rule['labels'].get('cause', '')}")
def test_what_pages_and_what_can_wait_go_to_different_receivers(rule: dict[str, Any]) -> None:
    labels = [f"{name}={value}" for name, value in rule["labels"].items()]
    severity = rule["labels"]["severity"]
    done = run(
        *("amtool", "config", "routes", "test", f"--config.file={ALERTMANAGER}"),
        *(f"--verify.receivers={severity}", f"alertname={rule['alert']}", "job=srr-stream-scorer", *labels),
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs_amtool
def test_the_alerts_of_others_are_left_to_them() -> None:
    options = (f"--config.file={ALERTMANAGER}", "--verify.receivers=nobody")
    done = run("amtool", "config", "routes", "test", *options, "alertname=NodeDown", "severity=page")
    assert done.returncode == 0, done.stdout + done.stderr


def test_inhibition_names_only_alerts_that_there_are() -> None:
    for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]:
        for matcher in rule["source_matchers"] + rule["target_matchers"]:
            label, value = re.fullmatch(r'(\w+)!?=~?"([^"]+)"', matcher).groups()  # type: ignore[union-attr]
            known = {name if label == "alertname" else r["labels"].get(label) for r in ALERTS for name in [r["alert"]]}
            for each in value.split("|"):
                assert any(re.fullmatch(each, one or "") for one in known), matcher
