"""What it costs scoring to be watched: throughput with the review page open and ten scrapes a second, and without.

The same records are scored in turn, with and without, on a real Apache Kafka (``KAFKA_HOME``)::

    python -m benchmarks.watched --records 300000 --pairs 5

Both times the whole service runs: scorer, trainer and API. Watched means: a page in headless Chromium, which refreshes
itself, and a client that asks ten times a second for the scorer's ``/metrics``. Browser and client run at the lowest
priority: in production they are other machines.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np

from chaos.bench import N_PARTITIONS, Bench, ask, make_models, make_values, produce, wait_until
from chaos.node import KafkaNode
from srr_stream import assembly
from srr_stream.broker import free_port

SCRAPES_PER_S = 10
N_BEHIND = 10_000
"""Flagged records that the page has behind it before the clock starts."""
_NEVER = {"min_size": 10**8, "max_size": 10**8}
_SETTLE_S = 5.0


def main() -> None:
    """Measure, print the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=300_000, help="scored in each half of a pair")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    home = os.environ.get("KAFKA_HOME")
    chromium = shutil.which("chromium")
    if home is None or chromium is None:
        sys.exit("needs KAFKA_HOME, an unpacked Apache Kafka, and Debian's chromium")
    with tempfile.TemporaryDirectory(prefix="srr-watched-") as folder:
        rates = measure(Path(home), Path(folder), chromium, arguments.records, arguments.pairs, arguments.seed)
    ratios = np.array(rates["watched"]) / np.array(rates["alone"])
    print(
        json.dumps(
            {
                "records": arguments.records,
                "alone_per_s": [round(rate) for rate in rates["alone"]],
                "watched_per_s": [round(rate) for rate in rates["watched"]],
                "ratios": [round(ratio, 3) for ratio in ratios.tolist()],
                "median_ratio": round(float(np.median(ratios)), 3),
            }
        )
    )


def measure(home: Path, folder: Path, chromium: str, n_records: int, n_pairs: int, seed: int) -> dict[str, list[float]]:
    """Return records a second, alone and watched, a pair after the other in random order."""
    rng = random.Random(seed)
    rates: dict[str, list[float]] = {"alone": [], "watched": []}
    node = KafkaNode(home, folder)
    try:
        for pair in range(n_pairs):
            for name in rng.sample(sorted(rates), 2):
                rate = _half(node, folder, chromium if name == "watched" else None, n_records, seed + pair)
                rates[name].append(rate)
                print(f"{name}: {rate:,.0f} records/s", file=sys.stderr)
    finally:
        node.close()
    return rates


def _half(node: KafkaNode, folder: Path, chromium: str | None, n_records: int, seed: int) -> float:
    ports = {name: free_port() for name in ("scorer", "trainer", "api")}
    bench = Bench(
        node,
        folder,
        "at_least_once",
        http={"host": "127.0.0.1", "scorer_port": ports["scorer"], "trainer_port": ports["trainer"]},
        api={"enabled": True, "port": ports["api"], "state_dir": str(folder / f"state-{ports['api']}")},
        input={"max_batch": None},
    )
    servers, model = node.bootstrap_servers, make_models(1)[0]
    with ExitStack() as stack:
        stack.callback(bench.close)
        look = stack.enter_context(bench.looking())
        bench.publish(model)
        produce(servers, bench.topic, make_values(4 * N_BEHIND, seed, anomalies=0.5), n_partitions=N_PARTITIONS)
        service = bench.serve()
        look.wait_for_no_lag()
        wait_until(lambda: _n_flagged(ports["api"]) >= N_BEHIND, what="the index of flagged records")
        service.terminate()

        produce(servers, bench.topic, make_values(n_records, seed + 1), n_partitions=N_PARTITIONS)
        # Without a model, and with too few records for one, the service holds: all is up when the clock starts.
        holding = bench.with_settings(registry={"url": str(folder / f"registry-{ports['api']}")}, window=_NEVER)
        bench.registry = assembly.make_registry(holding)
        bench.serve(holding)
        wait_until(lambda: "holding" in ask(ports["scorer"], "/readyz"), what="a service that holds")
        wait_until(lambda: _n_flagged(ports["api"]) >= N_BEHIND, what="the index of flagged records")
        if chromium is not None:
            stack.enter_context(_browser(chromium, folder, ports["api"]))
            stack.enter_context(_scrapes(ports["scorer"]))
        n_before = sum(look.committed())
        time.sleep(_SETTLE_S)  # a page says nowhere that it is done
        bench.publish(model)
        wait_until(lambda: sum(look.committed()) > n_before, what="a first verdict")
        started, n_started = time.perf_counter(), sum(look.committed())
        look.wait_for_no_lag()
        return (n_before + n_records - n_started) / (time.perf_counter() - started)


def _n_flagged(port: int) -> int:
    text = ask(port, "/v1/flagged?limit=1")
    return int(json.loads(text)["n_total"]) if text.startswith("{") else 0


@contextmanager
def _browser(chromium: str, folder: Path, port: int) -> Iterator[None]:
    profile = tempfile.mkdtemp(dir=folder)
    command = [chromium, "--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={profile}"]
    browser = subprocess.Popen(
        ["nice", "-n", "19", *command, "--remote-debugging-port=0", f"http://127.0.0.1:{port}/"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        browser.terminate()
        browser.wait(10)


@contextmanager
def _scrapes(port: int) -> Iterator[None]:
    """Ask for the metrics ten times a second, by a process of its own."""
    script = (
        "import time, urllib.request\n"
        f"while True:\n    urllib.request.urlopen('http://127.0.0.1:{port}/metrics').read()\n"
        f"    time.sleep({1 / SCRAPES_PER_S})"
    )
    client = subprocess.Popen(["nice", "-n", "19", sys.executable, "-c", script], stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        client.terminate()
        client.wait(10)


if __name__ == "__main__":
    main()
