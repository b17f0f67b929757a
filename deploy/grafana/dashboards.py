"""Makes the two dashboards: ``python -m deploy.grafana.dashboards`` writes their JSON beside this file.

*Detection* is for whoever looks at what is found, *Operations* for whoever is on call. Change this file, not the JSON:
a test makes it anew and compares, and another asks a real Prometheus for everything that the panels ask.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any, TypeVar

from grafana_foundation_sdk.builders import common, heatmap, prometheus, stat, statetimeline, timeseries
from grafana_foundation_sdk.builders.dashboard import (
    Dashboard,
    DashboardLink,
    DatasourceVariable,
    QueryVariable,
    Row,
    TextBoxVariable,
    ThresholdsConfig,
)
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models.common import (
    BigValueColorMode,
    BigValueGraphMode,
    BigValueTextMode,
    LegendDisplayMode,
    LegendPlacement,
    SortOrder,
    StackingMode,
    TooltipDisplayMode,
)
from grafana_foundation_sdk.models.dashboard import (
    AnnotationQuery,
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    Threshold,
    ThresholdsMode,
    VariableOption,
    VariableRefresh,
    VariableSort,
)
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = DataSourceRef("prometheus", "${datasource}")

_TOPIC = 'topic=~"$topic"'
_INSTANCE = 'instance=~"$instance"'
_FULL, _HALF, _THIRD, _SIXTH = 24, 12, 8, 4
_TALL, _SHORT = 8, 4
_GREEN, _YELLOW, _RED, _BLUE = "green", "yellow", "red", "blue"

_Panel = TypeVar("_Panel", stat.Panel, timeseries.Panel, heatmap.Panel, statetimeline.Panel)


# --- parts


def query(expression: str, legend: str = "", *, exemplar: bool = False) -> prometheus.Dataquery:
    """Return a range query."""
    made = prometheus.Dataquery().ref_id("A").expr(expression).legend_format(legend or "__auto").range()
    return made.exemplar(True) if exemplar else made


def instant(expression: str, legend: str = "") -> prometheus.Dataquery:
    """Return a query for now."""
    return prometheus.Dataquery().ref_id("A").expr(expression).legend_format(legend or "__auto").instant()


def steps(*colours: str | float) -> ThresholdsConfig:
    """Return thresholds: a colour, then pairs of a bound and the colour from there on."""
    first, *rest = colours
    found = [Threshold(value=None, color=str(first))]
    for bound, colour in zip(rest[::2], rest[1::2], strict=True):
        found.append(Threshold(value=float(bound), color=str(colour)))
    return ThresholdsConfig().mode(ThresholdsMode.ABSOLUTE).steps(found)


def link(title: str, url: str) -> DashboardLink:
    """Return a link that opens beside the dashboard."""
    return DashboardLink(title).type(DashboardLinkType.LINK).url(url).target_blank(True)


def runbook(alert: str) -> DashboardLink:
    """Return a link to the section of an alert."""
    return link(f"Runbook: {alert}", f"${{docs:raw}}/runbook.md#{alert.lower()}")


def flagged_records(topic: str) -> DashboardLink:
    """Return a link from a spike to the flagged records of the time that is shown."""
    between = "since=${__from:date:iso}&until=${__to:date:iso}"
    return link("Flagged records of this time", f"${{page:raw}}/?topic={topic}&{between}&label=any")


def panel(made: _Panel, title: str, description: str, *, width: int, height: int, unit: str) -> _Panel:
    """Return a panel with what all panels have."""
    return (
        made.title(title).description(description).datasource(DATASOURCE).span(width).height(height).unit(unit).min(0)
    )


def number(
    title: str, target: prometheus.Dataquery, description: str, *, unit: str, colours: ThresholdsConfig | None = None
) -> stat.Panel:
    """Return one number, coloured by thresholds."""
    return (
        panel(stat.Panel(), title, description, width=_SIXTH, height=_SHORT, unit=unit)
        .with_target(target)
        .thresholds(colours or steps(_BLUE))
        .color_mode(BigValueColorMode.VALUE)
        .graph_mode(BigValueGraphMode.NONE)
        .reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))
    )


def lines(
    title: str,
    targets: Sequence[prometheus.Dataquery],
    description: str,
    *,
    unit: str,
    width: int = _HALF,
    links: Sequence[DashboardLink] = (),
    data_links: Sequence[DashboardLink] = (),
    stacked: bool = False,
) -> timeseries.Panel:
    """Return a graph over time, with a legend that says the last and the highest value."""
    legend = (
        common.VizLegendOptions()
        .show_legend(True)
        .display_mode(LegendDisplayMode.TABLE)
        .placement(LegendPlacement.BOTTOM)
        .calcs(["lastNotNull", "max"])
    )
    made = (
        panel(timeseries.Panel(), title, description, width=width, height=_TALL, unit=unit)
        .targets([target.ref_id(letter) for letter, target in zip(ascii_uppercase, targets, strict=False)])
        .legend(legend)
        .tooltip(common.VizTooltipOptions().mode(TooltipDisplayMode.MULTI).sort(SortOrder.DESCENDING))
        .fill_opacity(30 if stacked else 8)
        .line_width(1)
        .links(list(links))
        .data_links(list(data_links))
    )
    return made.stacking(common.StackingConfig().mode(StackingMode.NORMAL)) if stacked else made


def quantiles(metric: str, selector: str, by: str = "") -> list[prometheus.Dataquery]:
    """Return the median, the 95th and the 99th percentile of a histogram, with its exemplars."""
    within = ", ".join(filter(None, ("le", by)))
    name = f" {{{{{by}}}}}" if by else ""
    return [
        query(
            f"histogram_quantile({q}, sum by ({within}) (rate({metric}_bucket{{{selector}}}[$__rate_interval])))",
            f"p{round(100 * q)}{name}",
            exemplar=not by,
        )
        for q in (0.5, 0.95, 0.99)
    ]


class _Annotation(AnnotationQuery):
    """An annotation whose time is the value of its series, in milliseconds; the SDK has no words for that yet."""

    more: Mapping[str, object]

    def to_json(self) -> dict[str, object]:
        """Return it as Grafana reads it."""
        return super().to_json() | dict(self.more)


class Annotation(Builder[AnnotationQuery]):
    """Lines at the times that are the values of `expression`, in milliseconds."""

    def __init__(self, name: str, expression: str, *, title: str, colour: str) -> None:
        self._made = _Annotation(name=name, datasource=DATASOURCE, expr=expression, icon_color=colour)
        self._made.more = {"titleFormat": title, "useValueForTime": True, "step": "10s"}

    def build(self) -> AnnotationQuery:
        """Return what a dashboard takes."""
        return self._made


SWAPS = Annotation(
    "Model swaps",
    f"1000 * (srr_model_loaded_timestamp_seconds{{{_INSTANCE}}} > 0)"
    " * on (job, instance) group_left (version) srr_model_info",
    title="version {{version}} is live on {{instance}}",
    colour=_BLUE,
)
TRAININGS = Annotation(
    "Trainings",
    "1000 * (srr_training_last_success_timestamp_seconds > 0)",
    title="training ended on {{instance}}",
    colour="purple",
)
SETTINGS = Annotation(
    "Settings read",
    f"1000 * srr_config_last_reload_success_timestamp_seconds{{{_INSTANCE}}}",
    title="settings read by {{instance}}",
    colour=_YELLOW,
)


def dashboard(uid: str, title: str, description: str, other: tuple[str, str]) -> Dashboard:
    """Return a dashboard without panels: variables, links, annotations."""
    topic = (
        QueryVariable("topic")
        .label("Topic")
        .datasource(DATASOURCE)
        .query("label_values(srr_records_scored_total, topic)")
    )
    instance = (
        QueryVariable("instance").label("Scorer").datasource(DATASOURCE).query("label_values(srr_model_info, instance)")
    )
    everything = VariableOption(selected=True, text="All", value="$__all")
    made = (
        Dashboard(title)
        .uid(uid)
        .description(description)
        .tags(["srr-stream"])
        .refresh("30s")
        .time("now-3h", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(DatasourceVariable("datasource").label("Prometheus").type("prometheus"))
        .link(link("Review page", "${page:raw}/"))
        .link(link("Runbook", "${docs:raw}/runbook.md"))
        .link(
            DashboardLink(other[0])
            .type(DashboardLinkType.LINK)
            .url(f"/d/{other[1]}")
            .keep_time(True)
            .include_vars(True)
        )
    )
    for each in (topic, instance):
        made = made.with_variable(
            each.multi(True)
            .include_all(True)
            .all_value(".*")
            .current(everything)
            .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
            .sort(VariableSort.ALPHABETICAL_ASC)
        )
    return (
        made.with_variable(TextBoxVariable("page").label("Page").default_value("http://localhost:9110"))
        .with_variable(TextBoxVariable("docs").label("Docs").default_value("https://example.com/srr-stream/docs"))
        .annotation(SWAPS)
        .annotation(TRAININGS)
    )


# --- dashboards


def detection() -> Dashboard:
    """Return what is found, and by which model."""
    made = dashboard(
        "srr-detection",
        "srr-stream: Detection",
        "What is flagged, how severe, and by which model. Vertical lines: swaps and trainings.",
        ("Operations", "srr-operations"),
    )
    scored, flagged = (f"job_topic:srr_records_{what}:rate5m{{{_TOPIC}}}" for what in ("scored", "flagged"))
    ratio = [
        query(f"job_topic:srr_flagged:ratio_rate{window}{{{_TOPIC}}}", f"{{{{topic}}}} over {window}")
        for window in ("5m", "30m", "6h")
    ]
    by_topic = flagged_records("${__field.labels.topic}")
    any_topic = flagged_records("")
    made = (
        made.with_row(Row("Now"))
        .with_panel(
            number(
                "Flagged",
                instant(f"sum({flagged}) / sum({scored})"),
                "Share of the records of the last five minutes.",
                unit="percentunit",
                colours=steps(_GREEN, 0.05, _YELLOW, 0.3, _RED),
            ).data_links([any_topic])
        )
        .with_panel(
            number(
                "Flagged records",
                instant(f'sum(increase(srr_records_scored_total{{verdict="flagged", {_TOPIC}}}[$__range]))'),
                "In the time that is shown; the link leads to them.",
                unit="short",
            )
            .decimals(0)
            .data_links([any_topic])
        )
        .with_panel(
            number(
                "Scored",
                instant(f"sum({scored})"),
                "Records a second over five minutes.",
                unit="rec/s",
                colours=steps(_RED, 1e-9, _GREEN),
            )
        )
        .with_panel(
            number(
                "Version",
                instant(f"max by (version) (srr_model_info{{{_INSTANCE}}})", "{{version}}"),
                "In use; two for more than a moment is SrrModelSkew.",
                unit="short",
            )
            .text_mode(BigValueTextMode.NAME)
            .links([runbook("SrrModelSkew")])
        )
        .with_panel(
            number(
                "Age of the model",
                instant(f"time() - max(srr_model_loaded_timestamp_seconds{{{_INSTANCE}}} > 0)"),
                "Since the last swap.",
                unit="s",
                colours=steps(_GREEN, 86400, _YELLOW),
            )
        )
        .with_panel(
            number(
                "Alerts",
                instant('count(ALERTS{alertname=~"Srr.+", alertstate="firing"}) or vector(0)'),
                "That fire now, whatever the topic.",
                unit="short",
                colours=steps(_GREEN, 1, _RED),
            )
        )
    )
    made = (
        made.with_row(Row("Verdicts"))
        .with_panel(
            lines(
                "Flagged share",
                [*ratio, query(f"max(srr_false_alarm_rate{{{_INSTANCE}}})", "α: of normal records")],
                "Click a point for the flagged records. Anomalies come on top of α.",
                unit="percentunit",
                width=_FULL,
                links=[runbook("SrrFlaggedRateHigh"), runbook("SrrFlaggedRateZero")],
                data_links=[by_topic],
            )
        )
        .with_panel(
            lines(
                "Flagged records a second",
                [query(flagged, "{{topic}}")],
                "By topic; click a point for the records.",
                unit="rec/s",
                data_links=[by_topic],
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Severity",
                quantiles("srr_severity", _INSTANCE),
                "1 is the boundary. Diamonds are flagged records: their event id leads to the page.",
                unit="none",
            ).thresholds(steps("transparent", 1, _RED))
        )
        .with_panel(
            panel(
                heatmap.Panel(),
                "Severity of all records",
                "Records a second in each bucket; what lies above 1 is flagged.",
                width=_FULL,
                height=_TALL,
                unit="short",
            )
            .with_target(
                query(
                    f"sum by (le) (rate(srr_severity_bucket{{{_INSTANCE}}}[$__rate_interval]))", "{{le}}", exemplar=True
                ).format(PromQueryFormat.HEATMAP)
            )
            .calculate(False)
            .color(
                heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Spectral").reverse(True).steps(64)
            )
            .y_axis(heatmap.YAxisConfig().unit("none"))
        )
    )
    return (
        made.with_row(Row("Model"))
        .with_panel(
            panel(
                statetimeline.Panel(),
                "Version by scorer",
                "A line for each version that a scorer used.",
                width=_HALF,
                height=_TALL,
                unit="none",
            ).with_target(
                query(f"max by (instance, version) (srr_model_info{{{_INSTANCE}}})", "{{instance}} {{version}}")
            )
        )
        .with_panel(
            lines(
                "Swaps and refusals",
                [
                    query(
                        f"sum by (outcome) (increase(srr_model_swaps_total{{{_INSTANCE}}}[$__rate_interval]))",
                        "{{outcome}}",
                    ),
                    query(f"sum(increase(srr_rollbacks_total{{{_INSTANCE}}}[$__rate_interval]))", "rolled back"),
                ],
                "A model that is refused or rolled back leaves the one before in use.",
                unit="short",
                links=[runbook("SrrModelRefused")],
            )
        )
        .with_panel(
            lines(
                "Training window",
                [
                    query("srr_training_excluded_ratio", "excluded by refinement"),
                    query("job:srr_training_contamination_ratio:max", "estimated contamination"),
                    query("srr_ensemble_agreement_ratio", "agreement of the ensemble"),
                ],
                "What the trainer saw in its last window.",
                unit="percentunit",
                links=[runbook("SrrContaminationRising")],
                data_links=[link("Refinement", "${page:raw}/refinement")],
            )
        )
        .with_panel(
            lines(
                "Gate",
                [
                    query(
                        'srr_gate_check{check=~"excluded_ratio|flagged_ratio|synthetic_auc|forgotten_ratio|rank_agreement"}',
                        "{{check}}",
                    ),
                    query("srr_gate_rejections_in_a_row", "rejections in a row"),
                ],
                "What the gate saw of the newest model.",
                unit="none",
                links=[runbook("SrrTrainingRejectedTwice")],
                data_links=[link("Models", "${page:raw}/models")],
            )
        )
        .with_panel(
            lines(
                "New model against the one before",
                [
                    query(f"max by (model) (srr_probation_flagged_ratio{{{_INSTANCE}}})", "probation: {{model}}"),
                    query(f"max by (model) (srr_shadow_flagged_ratio{{{_INSTANCE}}})", "proposed: {{model}}"),
                ],
                "Share of the same records that each flags: in the probation after a swap, while a challenger waits.",
                unit="percentunit",
            )
        )
        .with_panel(
            lines(
                "Drift",
                [query(f"avg by (detector) (srr_drift_statistic{{{_INSTANCE}}})", "{{detector}}")],
                "Means that the detectors hold; a jump asks for a training.",
                unit="none",
            )
        )
        .with_row(Row("Labels"))
        .with_panel(
            lines(
                "Labelled records",
                [query(f"max by (label) (srr_labels{{{_INSTANCE}}})", "{{label}}")],
                "What people said of flagged records.",
                unit="short",
                width=_THIRD,
                data_links=[link("Review", "${page:raw}/")],
            )
        )
        .with_panel(
            lines(
                "Precision by the labels",
                [
                    query(f"max(srr_labelled_precision_ratio{{{_INSTANCE}}})", "precision"),
                    query(f"max(srr_suggested_false_alarm_rate{{{_INSTANCE}}})", "α that would suit them"),
                    query(f"max(srr_false_alarm_rate{{{_INSTANCE}}})", "α in use"),
                ],
                "Of the flagged records that were labelled anomaly or normal; no line: too few labels.",
                unit="percentunit",
                width=_THIRD,
            )
        )
        .with_panel(
            lines(
                "Known normals",
                [query(f"sum by (topic) (rate(srr_known_normal_total{{{_TOPIC}}}[$__rate_interval]))", "{{topic}}")],
                "Records a second that are not flagged because they lie near one marked normal.",
                unit="rec/s",
                width=_THIRD,
            )
        )
    )


def operations() -> Dashboard:
    """Return how the service does."""
    made = dashboard(
        "srr-operations",
        "srr-stream: Operations",
        "Does it keep up, is anything lost, are models made, are the processes well?",
        ("Detection", "srr-detection"),
    ).annotation(SETTINGS)
    lag, consumed = f"job_topic:srr_partition_lag_records:sum{{{_TOPIC}}}", f"srr_records_consumed_total{{{_TOPIC}}}"
    made = (
        made.with_row(Row("Now"))
        .with_panel(
            number(
                "Alerts",
                instant('count(ALERTS{alertname=~"Srr.+", alertstate="firing"}) or vector(0)'),
                "That fire now.",
                unit="short",
                colours=steps(_GREEN, 1, _RED),
            )
        )
        .with_panel(
            number(
                "Processes that answer",
                instant("sum(up and on (job, instance) last_over_time(srr_build_info[1d]))"),
                "Of those that did within a day.",
                unit="short",
                colours=steps(_RED, 1, _GREEN),
            ).links([runbook("SrrTargetDown")])
        )
        .with_panel(
            number(
                "Records that wait",
                instant(f"sum({lag})"),
                "Not yet read, all partitions.",
                unit="short",
                colours=steps(_GREEN, 1000, _YELLOW, 100000, _RED),
            ).links([runbook("SrrLagGrowing")])
        )
        .with_panel(
            number(
                "Behind",
                instant(f"sum({lag}) / sum(rate({consumed}[5m]))"),
                "Time to work them off at the present rate.",
                unit="s",
                colours=steps(_GREEN, 60, _YELLOW, 600, _RED),
            )
        )
        .with_panel(
            number(
                "Cannot be read",
                instant(f"max(job_topic:srr_dead_lettered:ratio_rate15m{{{_TOPIC}}})"),
                "Share of the records of a quarter of an hour, in the worst topic.",
                unit="percentunit",
                colours=steps(_GREEN, 0.001, _YELLOW, 0.01, _RED),
            ).links([runbook("SrrDeadLetterRate")])
        )
        .with_panel(
            number(
                "Last model",
                instant("time() - max(srr_training_last_success_timestamp_seconds > 0)"),
                "Since a training came to an end.",
                unit="s",
                colours=steps(_GREEN, 86400, _YELLOW),
            ).links([runbook("SrrTrainingStale")])
        )
    )
    made = (
        made.with_row(Row("Flow"))
        .with_panel(
            lines(
                "Records",
                [
                    query(f"sum by (topic) (rate({consumed}[$__rate_interval]))", "{{topic}} read"),
                    query(
                        f"sum by (topic) (rate(srr_records_scored_total{{{_TOPIC}}}[$__rate_interval]))",
                        "{{topic}} scored",
                    ),
                ],
                "A second, by topic.",
                unit="rec/s",
                links=[runbook("SrrScoringStalled")],
            )
        )
        .with_panel(
            lines(
                "Records that wait, by partition",
                [
                    query(
                        f"sum by (topic, partition) (srr_partition_lag_records{{{_TOPIC}}})", "{{topic}}-{{partition}}"
                    )
                ],
                "Not yet read.",
                unit="short",
                links=[runbook("SrrLagGrowing"), runbook("SrrPartitionSilent")],
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "From record to verdict",
                quantiles("srr_event_latency_seconds", _INSTANCE),
                "By the log's timestamp of the record. Diamonds are records.",
                unit="s",
            )
        )
        .with_panel(
            lines(
                "Stages of a batch",
                [
                    query(
                        f"sum by (stage) (rate(srr_stage_duration_seconds_sum{{{_INSTANCE}}}[$__rate_interval]))"
                        f" / sum by (stage) (rate(srr_stage_duration_seconds_count{{{_INSTANCE}}}[$__rate_interval]))",
                        "{{stage}}",
                    )
                ],
                "Mean time of a batch in each stage.",
                unit="s",
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Since a partition gave a record",
                [
                    query(
                        f"time() - max by (topic, partition) (srr_partition_last_read_timestamp_seconds{{{_TOPIC}}})",
                        "{{topic}}-{{partition}}",
                    )
                ],
                "Long is fine where none waits.",
                unit="s",
                links=[runbook("SrrPartitionSilent")],
            )
        )
        .with_panel(
            lines(
                "Partitions",
                [
                    query(f"srr_partitions_assigned{{{_INSTANCE}}}", "{{instance}} owned"),
                    query(f"srr_partitions_paused{{{_INSTANCE}}}", "{{instance}} held back"),
                ],
                "Held back: no model yet, or the brokers are slow to take verdicts.",
                unit="short",
                links=[runbook("SrrNoModel")],
            )
        )
    )
    made = (
        made.with_row(Row("Trouble"))
        .with_panel(
            lines(
                "Records that cannot be read",
                [
                    query(
                        "sum by (topic, reason)"
                        f" (rate(srr_records_dead_lettered_total{{{_TOPIC}}}[$__rate_interval])) > 0",
                        "{{topic}}: {{reason}}",
                    )
                ],
                "A second, by reason; they are in the dead-letter topic.",
                unit="rec/s",
                width=_THIRD,
                links=[runbook("SrrDeadLetterRate")],
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Connections and partitions",
                [
                    query(
                        f"sum by (cause) (increase(srr_reconnects_total{{{_INSTANCE}}}[$__rate_interval]))",
                        "reconnected: {{cause}}",
                    ),
                    query(f"sum(increase(srr_rebalances_total{{{_INSTANCE}}}[$__rate_interval]))", "rebalanced"),
                ],
                "How often connections were made anew, and the assignment changed.",
                unit="short",
                width=_THIRD,
                links=[runbook("SrrRebalanceStorm"), runbook("SrrScoringStalled")],
            )
        )
        .with_panel(
            lines(
                "Restarts",
                [
                    query(
                        "changes(process_start_time_seconds[1h]) and on (job, instance) srr_build_info", "{{instance}}"
                    ),
                    query(f"increase(srr_trainer_restarts_total{{{_INSTANCE}}}[1h])", "{{instance}}: its trainer"),
                    query(f"increase(srr_api_restarts_total{{{_INSTANCE}}}[1h])", "{{instance}}: its API"),
                ],
                "Within an hour.",
                unit="short",
                width=_THIRD,
                links=[runbook("SrrRestartLoop")],
            )
        )
    )
    return (
        made.with_row(Row("Training"))
        .with_panel(
            lines(
                "Trainings",
                [query("sum by (outcome) (increase(srr_training_runs_total[1h]))", "{{outcome}}")],
                "Within an hour.",
                unit="short",
                width=_THIRD,
                links=[runbook("SrrTrainingFailing"), runbook("SrrTrainingRejectedTwice")],
            )
        )
        .with_panel(
            lines(
                "Time of a training",
                [
                    query(
                        "sum by (stage) (increase(srr_training_duration_seconds_sum[1h]))"
                        " / sum by (stage) (increase(srr_training_duration_seconds_count[1h]))",
                        "{{stage}}",
                    )
                ],
                "Mean of an hour, by stage.",
                unit="s",
                width=_THIRD,
                stacked=True,
            )
        )
        .with_panel(
            lines(
                "Since the last model",
                [
                    query("time() - (srr_training_last_success_timestamp_seconds > 0)", "{{instance}}"),
                    query("srr_training_every_seconds > 0", "due every"),
                ],
                "Beyond three times what is due, and an hour: SrrTrainingStale.",
                unit="s",
                width=_THIRD,
                links=[runbook("SrrTrainingStale")],
            )
        )
        .with_row(Row("Processes"))
        .with_panel(
            lines(
                "Memory",
                [
                    query("process_resident_memory_bytes and on (job, instance) srr_build_info", "{{instance}}"),
                    query("srr_memory_used_bytes", "{{instance}} counted against the limit"),
                    query("srr_memory_limit_bytes", "{{instance}} limit"),
                ],
                "Resident, and what counts against a limit where there is one.",
                unit="bytes",
                links=[runbook("SrrMemoryNearLimit")],
            )
        )
        .with_panel(
            lines(
                "Processor",
                [
                    query(
                        "rate(process_cpu_seconds_total[$__rate_interval]) and on (job, instance) srr_build_info",
                        "{{instance}}",
                    )
                ],
                "Cores in use.",
                unit="none",
            )
        )
        .with_panel(
            lines(
                "Loop",
                [query(f"srr_loop_silent_seconds{{{_INSTANCE}}}", "{{instance}}")],
                "Since the scorer's loop last went round; /livez fails beyond http.live_timeout.",
                unit="s",
                width=_THIRD,
                links=[runbook("SrrScoringStalled")],
            )
        )
        .with_panel(
            lines(
                "Settings",
                [query("srr_config_last_reload_successful", "{{instance}}")],
                "1: good; 0: those in the file are wrong, and those before are in use.",
                unit="none",
                width=_THIRD,
                links=[runbook("SrrConfigReloadFailed")],
            )
        )
        .with_panel(
            panel(
                statetimeline.Panel(),
                "Versions of the program",
                "A line for each that a process had.",
                width=_THIRD,
                height=_TALL,
                unit="none",
            ).with_target(query("max by (instance, version) (srr_build_info)", "{{instance}} {{version}}"))
        )
    )


DASHBOARDS: dict[str, Callable[[], Dashboard]] = {"detection": detection, "operations": operations}
"""Name of the file, without ``.json`` → what makes it."""


def text_of(name: str) -> str:
    """Return the JSON of a dashboard, as it is committed."""
    built: Any = DASHBOARDS[name]().build()
    return JSONEncoder(sort_keys=True, indent=2).encode(built) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dashboards, or say which differ; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m deploy.grafana.dashboards", description="Write the dashboards.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if one differs")
    asked = parser.parse_args(arguments)
    outdated = 0
    for name in DASHBOARDS:
        path, text = FOLDER / f"{name}.json", text_of(name)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        outdated += 1
        if not asked.check:
            path.write_text(text, encoding="utf-8")
        print(f"{path}: {'differs from the code' if asked.check else 'written'}")
    return 1 if asked.check and outdated else 0


if __name__ == "__main__":
    sys.exit(main())
