"""``python -m chaos [SCENARIO ...]``: run scenarios, print a line each, exit 1 if a promise was broken."""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from chaos.node import KafkaNode
from chaos.scenarios import SCENARIOS, run_scenario
from consumers.clients import ClientName

MODES = ("at_least_once", "exactly_once")
ONE_MODE = {
    "throughput": "at_least_once",  # takes both in turn
    "swaps": "at_least_once",  # its batches are shorter, so that a pause shows
    "soak": "exactly_once",
    "slow-trainer": "exactly_once",
    "registry-faults": "exactly_once",
    "endurance": "exactly_once",
    "trainer-killed": "exactly_once",
}
"""Scenarios that have little to do with the mode, or take long: once, in this one."""


def main() -> int:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(prog="python -m chaos", description=__doc__)
    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", help=f"of {', '.join(SCENARIOS)}; left out: all but soak"
    )
    parser.add_argument("--mode", choices=MODES, action="append", help="may be given twice; both if left out")
    parser.add_argument("--client", choices=list(ClientName), default="kafka-python", help="that the scorers use")
    parser.add_argument("--seed", type=int, help="random, and printed, if left out")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--keep", type=Path, help="keep the logs of all processes in this folder")
    arguments = parser.parse_args()
    unknown = sorted(set(arguments.scenarios) - set(SCENARIOS))
    if unknown:
        parser.error(f"there is no scenario {', '.join(unknown)}; there are {', '.join(SCENARIOS)}")
    home = os.environ.get("KAFKA_HOME")
    if not home:
        parser.error("KAFKA_HOME is not set: unpack an Apache Kafka release (Java 17) and name its folder")
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    print(f"seed {seed}", flush=True)
    results = []
    with tempfile.TemporaryDirectory(prefix="srr-chaos-") as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        node = KafkaNode(Path(home), Path(temporary))
        try:
            for name in arguments.scenarios or [name for name in SCENARIOS if name != "soak"]:
                for mode in arguments.mode or ([ONE_MODE[name]] if name in ONE_MODE else MODES):
                    result = run_scenario(name, mode, seed, node, folder, client=arguments.client)
                    results.append(result)
                    figures = ", ".join(f"{key} {value}" for key, value in result.figures.items())
                    verdict = f"BROKEN: {result.failure}" if result.failure else "kept"
                    print(f"{name:16} {mode:14} {result.seconds:6.1f} s  {verdict}; {figures}", flush=True)
        finally:
            node.close()
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(result) for result in results], indent=1) + "\n")
    return 1 if any(result.failure for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
