"""The documents say what is true: every metric, setting, command and exit code, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml
from prometheus_client import CollectorRegistry
from pydantic import BaseModel

from consumers.reasons import REASONS
from srr_stream import cli
from srr_stream.metrics import ScorerMetrics, TrainerMetrics
from srr_stream.settings import Settings

ROOT = Path(__file__).parents[1]


def _metric_names(registry: CollectorRegistry) -> set[str]:
    return {
        family.name + ("_total" if family.type == "counter" else "") for family in registry.collect() if family.name
    }


def _documented(section: str) -> set[str]:
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| `(srr_\w+)`", page.split(f"## {section}")[1].split("\n## ")[0], flags=re.M))


def test_the_metrics_page_and_the_endpoints_are_equal() -> None:
    scorer, trainer = CollectorRegistry(), CollectorRegistry()
    ScorerMetrics(scorer)
    TrainerMetrics(trainer)
    assert _documented("Scorer") == _metric_names(scorer)
    assert _documented("Trainer") == _metric_names(trainer)


def _leaves(model: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, info in model.model_fields.items():
        kind = info.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= _leaves(kind, f"{prefix}{name}.")
        else:
            found.add(f"{prefix}{name}")
    return found


def _keys(content: dict[str, Any]) -> set[str]:
    return {f"{section}.{key}" for section, values in content.items() for key in values}


def test_the_reference_settings_have_every_key_with_its_default() -> None:
    content = yaml.safe_load((ROOT / "configs" / "reference.yaml").read_text(encoding="utf-8"))
    assert _keys(content) == _leaves(Settings)
    given = Settings(**content)
    for section, info in Settings.model_fields.items():
        kind = info.annotation
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        for key, setting in kind.model_fields.items():
            if not setting.is_required() and f"{section}.{key}" not in ("output.alerts_topic",):
                assert getattr(getattr(given, section), key) == setting.get_default(call_default_factory=True), key


def test_every_reason_for_a_dead_letter_is_on_the_page_of_pictures() -> None:
    page = (ROOT / "docs" / "images.md").read_text(encoding="utf-8")
    assert set(REASONS) <= set(re.findall(r"`(\w+)`", page))


def test_every_command_is_in_the_readme() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `srr-stream ([a-z-]+)", readme, flags=re.M)) == set(cli.main.commands)


def test_the_exit_codes_of_the_design_are_those_of_the_program() -> None:
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    for code, words in ((2, "settings are wrong"), (3, "something outside is wrong"), (4, "the gate rejected")):
        assert re.search(rf"{code} [^·]*{words}", design.replace("\n", " "))
        assert re.search(rf"{code} [^·]*{words}", (cli.__doc__ or "").replace("\n", " "))


def test_links_between_the_documents_lead_somewhere() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").glob("*.md")]:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
