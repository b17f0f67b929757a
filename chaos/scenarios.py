"""What is broken, and what must be true afterwards. Each scenario is a function that breaks and then settles."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from chaos.bench import (
    N_PARTITIONS,
    Bench,
    Failed,
    Result,
    create_topics,
    make_models,
    make_values,
    produce,
    wait_until,
)
from chaos.node import KafkaNode
from chaos.processes import Death, read_trace
from chaos.proxy import FaultProxy
from chaos.soak import soak
from chaos.training import endurance, registry_faults, slow_trainer, trainer_killed

Scenario = Callable[[Bench, random.Random, Result], None]


def kills(bench: Bench, rng: random.Random, result: Result, *, n: int = 50) -> None:
    """Kill -9 the scorer again and again: before, within, between and after publish and commit.

    Half of the time it has an instance id to come back to.
    """
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=1000, seed=result.seed, poison=0.05)
    points: dict[str, int] = {}
    with bench.looking() as look:
        for i in range(n):
            death = Death.draw(rng)
            is_static = rng.random() < 0.5
            scorer = bench.start(
                bench.with_settings(input={"instance_id": f"{bench.topic}-0" if is_static else None, "max_batch": 500}),
                death=death,
            )
            if not scorer.wait(90):
                raise Failed(f"round {i}: {death} never came; lag {look.lag()}; {scorer.log_path}")
            if scorer.exitcode != -signal.SIGKILL:
                raise Failed(f"round {i}: the scorer ended with {scorer.exitcode}: {scorer.log_path}")
            points[death.point] = points.get(death.point, 0) + 1
    n_sent = feeder.stop()
    result.figures |= {"kills": n, **{f"killed {point}": count for point, count in sorted(points.items())}}
    bench.settle(result, n_expected=n_sent)


def sigterm(bench: Bench, rng: random.Random, result: Result, *, n: int = 5) -> None:
    """SIGTERM under load: ends well within 10 s, and nothing is scored twice in either mode."""
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=4000, seed=result.seed)
    slowest = 0.0
    with bench.looking() as look:
        for _ in range(n):
            scorer = bench.start()
            look.wait_for_progress(1)
            time.sleep(rng.uniform(0, 1.0))
            slowest = max(slowest, scorer.terminate())
            if scorer.exitcode != 0:
                raise Failed(f"exit code {scorer.exitcode}: {scorer.log_path}")
    n_sent = feeder.stop()
    result.figures |= {"stops": n, "slowest_stop_s": round(slowest, 2)}
    bench.settle(result, n_expected=n_sent)
    if slowest > 10:
        raise Failed(f"a stop took {slowest:.1f} s")
    if result.figures["repeated"]:
        raise Failed("records were scored again after a clean stop")


def zombie(bench: Bench, rng: random.Random, result: Result, *, n: int = 4) -> None:
    """SIGSTOP a scorer past its session, let another one take over, and let it go on."""
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=3000, seed=result.seed)
    with bench.looking() as look:
        first = bench.start()
        look.wait_for_progress(1)
        for _ in range(n):
            time.sleep(rng.uniform(0.0, 1.0))
            first.freeze()
            second = bench.start()
            look.wait_for_progress(3000)
            first.thaw()
            look.wait_for_progress(3000)
            if not first.is_alive:
                raise Failed(f"the zombie died: {first.log_path}")
            second.terminate()
        first.terminate()
    n_sent = feeder.stop()
    result.figures |= {"freezes": n}
    bench.settle(result, n_expected=n_sent)


def broker_killed(bench: Bench, rng: random.Random, result: Result, *, n: int = 2) -> None:
    """Kill -9 the broker under load and start it again on its log; then start a scorer before the broker."""
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=2000, seed=result.seed)
    with bench.looking() as look:
        scorer = bench.start()
        for _ in range(n):
            look.wait_for_progress(1000)
            time.sleep(rng.uniform(0.0, 1.0))
            bench.node.kill()
            time.sleep(rng.uniform(0.0, 8.0))
            bench.node.start()
            look.wait_for_progress(1000)
        scorer.terminate()
    n_sent = feeder.stop()
    bench.node.kill()
    scorer = bench.start()
    time.sleep(2.0)
    if not scorer.is_alive:
        raise Failed(f"the scorer did not wait for its broker: {scorer.log_path}")
    bench.node.start()
    with bench.looking() as look:
        took_s = look.wait_for_no_lag()
    scorer.terminate()
    result.figures |= {"broker_kills": n + 1, "caught_up_after_start_s": round(took_s, 1)}
    bench.settle(result, n_expected=n_sent)


def broker_frozen(bench: Bench, rng: random.Random, result: Result) -> None:
    """Freeze the broker for longer than the session and every timeout: it is waited for, alive, and nothing is lost."""
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=2000, seed=result.seed)
    with bench.looking() as look:
        scorer = bench.start()
        look.wait_for_progress(1000)
    bench.node.freeze()
    time.sleep(12.0 + rng.uniform(0, 3))
    bench.node.thaw()
    with bench.looking() as look:
        back_s = look.wait_for_progress(1000)
        if not scorer.is_alive:
            raise Failed(f"the scorer died of an outage: {scorer.log_path}")
        n_sent = feeder.stop()
        look.wait_for_no_lag()
    scorer.terminate()
    result.figures |= {"back_after_s": round(back_s, 1)}
    bench.settle(result, n_expected=n_sent)


def scaling(bench: Bench, rng: random.Random, result: Result) -> None:
    """From one replica to three and back to one, under load."""
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=4000, seed=result.seed)
    with bench.looking() as look:
        replicas = [bench.start()]
        look.wait_for_progress(1000)
        for _ in range(2):
            replicas.append(bench.start())
            look.wait_for_progress(8000)
        while len(replicas) > 1:
            replicas.pop(rng.randrange(len(replicas))).terminate()
            look.wait_for_progress(8000)
        n_sent = feeder.stop()
        look.wait_for_no_lag()
    replicas[0].terminate()
    bench.settle(result, n_expected=n_sent)
    if result.figures["repeated"]:
        raise Failed("records were scored again although every replica came and went in peace")


def more_partitions(bench: Bench, rng: random.Random, result: Result) -> None:
    """From four partitions to eight while running, with a group that began at the end of the log."""
    from kafka.admin import KafkaAdminClient, NewPartitions

    bench.publish(make_models(1)[0])
    scorer = bench.start(bench.with_settings(kafka={"metadata_max_age": "2s"}))
    feeder = bench.feed(rate=2000, seed=result.seed)
    with bench.looking() as look:
        look.wait_for_progress(1000)
    admin = KafkaAdminClient(bootstrap_servers=bench.node.bootstrap_servers)
    try:
        admin.create_partitions({bench.topic: NewPartitions(2 * N_PARTITIONS)})
    finally:
        admin.close()
    bench.n_partitions = 2 * N_PARTITIONS
    n_before = feeder.stop()
    more = bench.feed(rate=2000, seed=result.seed + 1, n_partitions=2 * N_PARTITIONS)
    with bench.looking() as look:
        look.wait_for_progress(8000)
        n_sent = n_before + more.stop()
        look.wait_for_no_lag()
    scorer.terminate()
    bench.settle(result, n_expected=n_sent)


def retention(bench: Bench, rng: random.Random, result: Result) -> None:
    """The log loses what is to be read next: it is counted, and reading goes on; with ``error`` the scorer says so."""
    from kafka import TopicPartition
    from kafka.admin import KafkaAdminClient

    bench.publish(make_models(1)[0])
    produce(bench.node.bootstrap_servers, bench.topic, make_values(4000, result.seed), n_partitions=N_PARTITIONS)
    scorer = bench.start()
    with bench.looking() as look:
        look.wait_for_no_lag()
    scorer.terminate()
    produce(bench.node.bootstrap_servers, bench.topic, make_values(4000, result.seed + 1), n_partitions=N_PARTITIONS)
    admin = KafkaAdminClient(bootstrap_servers=bench.node.bootstrap_servers)
    try:
        admin.delete_records({TopicPartition(bench.topic, p): 1500 for p in range(N_PARTITIONS)})
    finally:
        admin.close()
    strict = bench.start(bench.with_settings(input={"lost_offset": "error"}))
    if not strict.wait(60) or strict.exitcode == 0 or "offset 1000 is next" not in strict.log_path.read_text():
        raise Failed(f"lost_offset: error did not end with the reason: {strict.log_path}")
    scorer = bench.start()
    with bench.looking() as look:
        look.wait_for_no_lag()
    scorer.terminate()
    if "holds offsets 1500 to before 2000" not in scorer.log_path.read_text():
        raise Failed(f"the loss was not told: {scorer.log_path}")
    result.figures |= {"skipped": 500 * N_PARTITIONS}
    bench.settle_ledger(result)


def oversize(bench: Bench, rng: random.Random, result: Result) -> None:
    """Records above the fetch limit, and records whose verdicts would be above the request limit."""
    bench.publish(make_models(1)[0])
    fits = b'{"duration_ms": 20, "bytes_sent": 400, "note": "%s"}' % (b"x" * 1_000_000)
    beyond = b'{"duration_ms": 20, "bytes_sent": 400, "note": "%s"}' % (b"x" * 3_000_000)
    values = make_values(500, result.seed)
    for value in (fits, beyond, b"y" * 3_000_000):
        values[rng.randrange(len(values))] = value
    produce(bench.node.bootstrap_servers, bench.topic, values, n_partitions=N_PARTITIONS, max_request_size=1 << 23)
    bench.settle(result, n_expected=len(values))


def reply_cut(bench: Bench, rng: random.Random, result: Result, *, n: int = 6) -> None:
    """Cut the reply to a commit: it happened, and the scorer cannot know."""
    bench.publish(make_models(1)[0])
    proxy = FaultProxy(bench.node.proxied_port, bench.node.proxied_target)
    try:
        scorer = bench.start()
        feeder = bench.feed(rate=3000, seed=result.seed)
        keys = [8] if bench.mode == "at_least_once" else [26, 28]
        with bench.looking() as look:
            look.wait_for_progress(1000)
            for i in range(n):
                so_far = proxy.n_cut
                proxy.cut_reply_to(keys[i % len(keys)])
                wait_until(lambda: proxy.n_cut > so_far, what="a commit to cut")  # noqa: B023  # called at once
                proxy.cut_reply_to(None)
                look.wait_for_progress(2000)
            n_sent = feeder.stop()
            look.wait_for_no_lag()
        if not scorer.is_alive:
            raise Failed(f"the scorer died: {scorer.log_path}")
        scorer.terminate()
    finally:
        proxy.close()
    result.figures |= {"replies_cut": n}
    bench.settle_ledger(result, n_expected=n_sent)


def clock_jumps(bench: Bench, rng: random.Random, result: Result) -> None:
    """The scorer's clock is set anew, by up to a day, twice a second; a swap meanwhile."""
    versions = [bench.publish(model) for model in make_models(2)]
    feeder = bench.feed(rate=3000, seed=result.seed)
    scorer = bench.start(clock_seed=result.seed)
    with bench.looking() as look:
        for version in versions * 3:
            look.wait_for_progress(3000)
            bench.registry.promote(version)
        n_sent = feeder.stop()
        look.wait_for_no_lag()
    scorer.terminate()
    if scorer.exitcode != 0:
        raise Failed(f"exit code {scorer.exitcode}: {scorer.log_path}")
    bench.settle(result, n_expected=n_sent)
    if result.figures["repeated"]:
        raise Failed("records were scored again because of a clock")


def failover(bench: Bench, rng: random.Random, result: Result) -> None:
    """Kill -9 one of three replicas: how long until each of its partitions has a verdict again."""
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=2000, seed=result.seed)
    replicas = [bench.start() for _ in range(3)]
    with bench.looking() as look:
        look.wait_for_progress(10_000)
        time.sleep(2 * bench.settings.input.session_timeout.total_seconds())  # until each has its share
        replicas.pop(rng.randrange(3)).kill()
        killed_at = time.monotonic()
        before = look.committed()
        # A second's records of a partition more than there were: nobody commits so much who is dead.
        wait_until(lambda: all(a > b + 500 for a, b in zip(look.committed(), before, strict=True)), what="a take-over")
        took_s = time.monotonic() - killed_at
        n_sent = feeder.stop()
        look.wait_for_no_lag()
    for replica in replicas:
        replica.terminate()
    session_s = bench.settings.input.session_timeout.total_seconds()
    result.figures |= {"taken_over_after_s": round(took_s, 2), "session_timeout_s": session_s}
    bench.settle_ledger(result, n_expected=n_sent)
    if took_s > session_s + 3:
        raise Failed(f"taken over after {took_s:.1f} s; allowed: session timeout + 3 s = {session_s + 3:g} s")


def swaps(
    bench: Bench, rng: random.Random, result: Result, *, n: int = 1000, n_models: int = 40, n_records: int = 400_000
) -> None:
    """A thousand swaps while scoring: every verdict is what its version says, and no batch waits for a swap."""
    versions = [bench.publish(model) for model in make_models(n_models)]
    settings = bench.with_settings(
        input={"max_batch": 100}, registry={"poll_every": "10ms"}, gate={"mode": "off", "auto_rollback": False}
    )
    produce(bench.node.bootstrap_servers, bench.topic, make_values(n_records, result.seed), n_partitions=N_PARTITIONS)
    trace = bench.folder / f"{bench.topic}.trace"
    scorer = bench.start(settings, trace=trace)
    wait_until(lambda: len(read_trace(trace)) > 100, what="the first batches")
    n_swaps = 0
    while n_swaps < n:
        for _ in range(25):
            bench.registry.promote(rng.choice(versions))
            time.sleep(0.015)
        n_swaps = int(np.sum(np.diff(read_trace(trace)[:, 1]) != 0))
        if not scorer.is_alive:
            raise Failed(f"the scorer died: {scorer.log_path}")
    calm_from = len(read_trace(trace))
    with bench.looking() as look:
        look.wait_for_no_lag(timeout_s=600)
    scorer.terminate()
    rows = read_trace(trace)
    is_full = rows[1:, 0] == 100
    took_ms = np.diff(rows[:, 2]) * 1000
    is_swap = np.diff(rows[:, 1]) != 0
    swap_ms, calm_ms = took_ms[is_swap & is_full], took_ms[calm_from:][is_full[calm_from:]]
    result.figures |= {"swaps": int(is_swap.sum()), "calm_batches": len(calm_ms)}
    for name, found in (("swap", swap_ms), ("calm", calm_ms)):
        result.figures |= {
            f"{name}_batch_median_ms": round(float(np.median(found)), 2),
            f"{name}_batch_p99_ms": round(float(np.quantile(found, 0.99)), 2),
            f"{name}_batch_longest_ms": round(float(found.max()), 2),
        }
    _rescore(bench, result)
    bench.settle_ledger(result, n_expected=n_records)
    if np.median(swap_ms) > np.median(calm_ms) + 5:
        raise Failed("the median batch with a swap is more than 5 ms longer than without")


def _rescore(bench: Bench, result: Result) -> None:
    """Score every record again by the version that its verdict names, by the users' own command."""
    program = [sys.executable, "-c", "from srr_stream.cli import main; main()"]
    command = [*program, "audit", "-c", str(bench.write_settings()), "--scores", "--json"]
    audited = subprocess.run(command, capture_output=True, text=True)
    if audited.returncode:
        raise Failed(f"audit --scores: exit code {audited.returncode}: {audited.stderr[-300:]}{audited.stdout[-300:]}")
    scores = json.loads(audited.stdout)["scores"]
    result.figures |= {"rescored_equal": scores["n_equal"], "rescored_different": scores["n_different"]}
    if scores["n_different"] or not scores["n_equal"]:
        raise Failed(f"scored again: {scores}")


def throughput(bench: Bench, rng: random.Random, result: Result, *, n: int = 200_000, pairs: int = 3) -> None:
    """What exactly-once costs: both modes in turn over the same records, at the default size of a batch."""
    bench.publish(make_models(1)[0])
    produce(bench.node.bootstrap_servers, bench.topic, make_values(n, result.seed), n_partitions=N_PARTITIONS)
    rates: dict[str, list[float]] = {"at_least_once": [], "exactly_once": []}
    for pair in range(pairs):
        for mode in rng.sample(sorted(rates), 2):
            trace = bench.folder / f"{bench.topic}-{mode}-{pair}.trace"
            settings = bench.with_settings(
                delivery={"mode": mode}, input={"group_id": f"{bench.group}-{mode}-{pair}", "max_batch": None}
            )
            scorer = bench.start(settings, trace=trace)
            wait_until(lambda: read_trace(trace)[:, 0].sum() >= n, what="an end", timeout_s=180)  # noqa: B023
            scorer.terminate()
            rows = read_trace(trace)
            steady = rows[len(rows) // 5 :]  # without the first, small batches
            rates[mode].append(float(steady[1:, 0].sum() / (steady[-1, 2] - steady[0, 2])))
    ratios = [b / a for a, b in zip(rates["at_least_once"], rates["exactly_once"], strict=True)]
    result.figures |= {f"{mode}_per_s": round(float(np.median(found))) for mode, found in rates.items()}
    result.figures["median_ratio"] = round(float(np.median(ratios)), 2)
    if np.median(ratios) < 0.8:
        raise Failed(f"exactly_once reaches {np.median(ratios):.2f} of at_least_once; asked for: 0.80")


SCENARIOS: dict[str, tuple[Scenario, dict[str, Any]]] = {
    "kills": (kills, {}),
    "sigterm": (sigterm, {}),
    "zombie": (zombie, {}),
    "broker-killed": (broker_killed, {}),
    "broker-frozen": (broker_frozen, {}),
    "scaling": (scaling, {}),
    "more-partitions": (more_partitions, {}),
    "retention": (retention, {}),
    "oversize": (oversize, {"topic_config": {"max.message.bytes": "8000000"}, "output": {"include_record": True}}),
    "reply-cut": (reply_cut, {"is_proxied": True}),
    "clock-jumps": (clock_jumps, {}),
    "failover": (failover, {}),
    "swaps": (swaps, {"registry": {"keep": 60}}),
    "throughput": (throughput, {}),
    "trainer-killed": (trainer_killed, {}),
    "slow-trainer": (slow_trainer, {}),
    "registry-faults": (registry_faults, {}),
    "endurance": (endurance, {}),
    "soak": (soak, {"is_proxied": True}),
}
"""Name → what is done, and what its bench needs."""


def run_scenario(
    name: str, mode: str, seed: int, node: KafkaNode, folder: Path, *, client: str = "kafka-python", **options: Any
) -> Result:
    """Run one and return what came of it; a broken promise is the result's `failure`."""
    scenario, needs = SCENARIOS[name]
    needs = dict(needs)
    servers = f"127.0.0.1:{node.proxied_port}" if needs.pop("is_proxied", False) else None
    result = Result(name, mode, seed)
    started = time.monotonic()
    bench = Bench(node, folder, mode, servers=servers, client=client, **needs)
    try:
        scenario(bench, random.Random(seed), result, **options)
    except Failed as failure:
        result.failure = str(failure)
    finally:
        bench.close()
    result.seconds = round(time.monotonic() - started, 1)
    return result


__all__ = ["SCENARIOS", "create_topics", "run_scenario"]
