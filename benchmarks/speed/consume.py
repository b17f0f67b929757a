"""Bytes to columns: JSON decoders on records in memory, and Kafka clients with and without ours behind them."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from benchmarks.runner import OUT, whole
from benchmarks.speed import stream
from benchmarks.speed.end_to_end import BARE, CONFLUENT, bare, bare_confluent
from benchmarks.speed.pairs import Run, interleaved, quartiles, rate, rates_table, ratio
from consumers.decoding import JsonDecoder
from consumers.polled import Polled
from consumers.polled import Run as Stretch
from consumers.records import Field, RecordSchema, StoredRecord

OURS, ONE_BY_ONE = "JsonDecoder", "JsonDecoder, record by record (orjson)"
SCHEMA = RecordSchema(tuple(map(Field, stream.FIELDS)))


def main(arguments: Sequence[str]) -> int:
    cli = argparse.ArgumentParser(prog="python -m benchmarks.speed consume", description=__doc__)
    cli.add_argument("--records", type=whole, default=600_000, help="In the topic (default 600000).")
    cli.add_argument("--rounds", type=whole, default=7, help="How often each has its turn (default 7).")
    cli.add_argument("--batch", type=whole, default=2048, help="Records that are decoded together (default 2048).")
    cli.add_argument("--no-broker", action="store_true", help="Only what needs none.")
    cli.add_argument("--quick", action="store_true", help="A run of seconds, without a broker.")
    cli.add_argument("--out", type=Path, default=OUT, help=f"Write JSON, Markdown and PNG here (default {OUT}).")
    options = cli.parse_args(arguments)
    if options.quick:
        options.rounds, options.no_broker = 1, True
    run = Run("consume", arguments, out=options.out)
    decoders = in_memory(options.batch)
    decoding = interleaved(decoders, n_rounds=options.rounds)
    claims = [
        ratio("decoding", decoding[OURS], decoding[name], f"{name}, in memory", target)
        for name, target in ((ONE_BY_ONE, 1.0), ("json (standard library)", 1.0))
    ]
    tables = [rates_table(f"JSON decoders, batches of {options.batch}", decoding, "records/s")]
    bars = {"decoding, records/s": {name: quartiles(values)[1] for name, values in decoding.items()}}
    if not options.no_broker:
        home = stream.kafka_home(cli)
        with stream.kafka(home) as (node, _):
            topic = stream.filled(node, "speed", stream.values(50_000, 1), options.records)
            contestants: dict[str, Callable[[], float]] = {
                BARE: lambda: bare(node, topic, options.records),
                "kafka-python, our source and decoder": lambda: decoded(node, topic, options.records, "kafka-python"),
            }
            if find_spec("confluent_kafka") is not None:
                contestants[CONFLUENT] = lambda: bare_confluent(node, topic, options.records)
                contestants["confluent, our source and decoder"] = lambda: decoded(
                    node, topic, options.records, "confluent"
                )
            reading = interleaved(contestants, n_rounds=options.rounds)
        claims.append(
            ratio("read and decoded", reading["kafka-python, our source and decoder"], reading[BARE], BARE, 0.6)
        )
        if CONFLUENT in reading:
            ours = reading["confluent, our source and decoder"]
            claims.append(ratio("read and decoded, confluent", ours, reading[CONFLUENT], CONFLUENT, 0.3))
        tables.append(rates_table("From a broker", reading, "records/s"))
        bars["from a broker, records/s"] = {name: quartiles(values)[1] for name, values in reading.items()}
    return run.finish(
        "Consuming", claims, tables, bars=bars, notes=[f"{os.cpu_count()} cores; decoders use what they take"]
    )


def in_memory(n: int) -> dict[str, Callable[[], float]]:
    """Return decoders of the same `n` records into a matrix or columns, name → what returns records a second."""
    import polars as pl

    contents = stream.values(n, 3)
    raw = Polled((StoredRecord("t", 0, i, 0, None, value) for i, value in enumerate(contents)), [Stretch("t", 0, n, n)])
    ours, slow = JsonDecoder(SCHEMA), JsonDecoder(SCHEMA)
    slow._reader = None
    names = stream.FIELDS
    types: dict[str, Any] = dict.fromkeys(names, pl.Float64)

    def by(loads: Callable[[bytes], Any]) -> Callable[[], object]:
        def decode() -> object:
            rows = [loads(value) for value in contents]
            return np.array([[row[name] for name in names] for row in rows])

        return decode

    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: ours.decode(raw),
        ONE_BY_ONE: lambda: slow.decode(raw),
        "polars alone, nothing checked": lambda: pl.read_ndjson(b"\n".join(contents), schema=types),
        "orjson, matrix, nothing checked": by(orjson.loads),
        "json (standard library)": by(json.loads),
    }
    if find_spec("msgspec") is not None:
        import msgspec

        decoder = msgspec.json.Decoder(list[msgspec.defstruct("Record", [(name, float) for name in names])])  # type: ignore[misc]
        ways["msgspec, typed structs"] = lambda: [
            msgspec.structs.astuple(row) for row in decoder.decode(b"[" + b",".join(contents) + b"]")
        ]
    return {name: (lambda work=work: rate(work, n)) for name, work in ways.items()}


def decoded(node: Any, topic: str, n: int, client: str) -> float:
    """Return how many records a second our source and decoder read."""
    from chaos.bench import Bench
    from srr_stream import assembly

    kafka = {"client": client} if client != "kafka-python" else {}
    with closing(stream.bench(node, node._config.parent, topic, kafka=kafka)) as surroundings:
        assert isinstance(surroundings, Bench)
        decoder = assembly.make_decoder(surroundings.settings)
        with closing(assembly.make_source(surroundings.settings)) as source:

            def read() -> int:
                raw = source.poll(0.2, 2048)
                return len(decoder.decode(raw).batch) if raw else 0

            return stream.timed(read, n)
