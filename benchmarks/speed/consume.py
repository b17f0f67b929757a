"""Bytes to columns: JSON decoders on records in memory, and Kafka clients with and without ours behind them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import orjson

from benchmarks.runner import whole
from benchmarks.speed import stream
from benchmarks.speed.end_to_end import BARE, bare
from benchmarks.speed.pairs import Run, interleaved, medians, parser, rate, rates_table, ratio
from chaos.node import KafkaNode
from consumers.clients import ClientName
from consumers.decoding import JsonDecoder
from consumers.polled import Polled
from consumers.polled import Run as Stretch
from consumers.records import StoredRecord
from srr_stream import assembly

OURS, ONE_BY_ONE = "JsonDecoder", "JsonDecoder, record by record (orjson)"
WITH_OURS = {client: f"{client}, our source and decoder" for client in ClientName}


def main(arguments: Sequence[str]) -> int:
    cli = parser("consume", __doc__, n_rounds=7, has_quick=True)
    cli.add_argument("--records", type=whole, default=1_500_000, help="In the topic (default 1500000).")
    cli.add_argument("--batch", type=whole, default=2048, help="Records that are decoded together (default 2048).")
    cli.add_argument("--no-broker", action="store_true", help="Only what needs none.")
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
    bars = {"decoding, records/s": medians(decoding)}
    if not options.no_broker:
        home = stream.kafka_home(cli)
        with stream.kafka(home) as (node, folder):
            topic = stream.filled(node, "speed", stream.values(50_000, 1), options.records)
            contestants: dict[str, Callable[[], float]] = {}
            for client in ClientName:
                contestants[BARE[client]] = partial(bare, node, topic, options.records, client)
                contestants[WITH_OURS[client]] = partial(decoded, node, folder, topic, options.records, client)
            reading = interleaved(contestants, n_rounds=options.rounds)
        claims += [
            ratio(f"read and decoded, {client}", reading[WITH_OURS[client]], reading[BARE[client]], BARE[client], goal)
            for client, goal in ((ClientName.KAFKA_PYTHON, 0.6), (ClientName.CONFLUENT, 0.3))
        ]
        tables.append(rates_table("From a broker", reading, "records/s"))
        bars["from a broker, records/s"] = medians(reading)
    return run.finish(
        "Consuming", claims, tables, bars=bars, notes=[f"{os.cpu_count()} cores; decoders use what they take"]
    )


def in_memory(n: int) -> dict[str, Callable[[], float]]:
    """Return decoders of the same `n` records into a matrix or columns, name → what returns records a second."""
    contents = stream.values(n, 3)
    raw = Polled([StoredRecord("t", 0, i, 0, None, value) for i, value in enumerate(contents)], [Stretch("t", 0, n, n)])
    ours, slow = JsonDecoder(stream.SCHEMA), JsonDecoder(stream.SCHEMA)
    slow._reader = None
    names = stream.FIELDS

    record = msgspec.defstruct("Record", [(name, float) for name in names])
    structs = msgspec.json.Decoder(type=list[record])  # type: ignore[valid-type]  # made at run time

    def by(loads: Callable[[bytes], Any]) -> Callable[[], object]:
        def decode() -> object:
            rows = [loads(value) for value in contents]
            return np.array([[row[name] for name in names] for row in rows])

        return decode

    ways: dict[str, Callable[[], object]] = {
        OURS: lambda: ours.decode(raw),
        ONE_BY_ONE: lambda: slow.decode(raw),
        "msgspec, typed structs, matrix": lambda: np.array(
            list(map(msgspec.structs.astuple, structs.decode(b"[" + b",".join(contents) + b"]")))
        ),
        "orjson, matrix, nothing checked": by(orjson.loads),
        "json (standard library)": by(json.loads),
    }
    if find_spec("polars") is not None:
        import polars as pl

        types: dict[str, Any] = dict.fromkeys(names, pl.Float64)
        ways["polars alone, nothing checked"] = lambda: pl.read_ndjson(b"\n".join(contents), schema=types)
    return {name: partial(rate, work, n) for name, work in ways.items()}


def decoded(node: KafkaNode, folder: Path, topic: str, n: int, client: ClientName) -> float:
    """Return how many records a second our source and decoder read."""
    with closing(stream.bench(node, folder, topic, kafka=stream.by(node, client))) as surroundings:
        decoder = assembly.make_decoder(surroundings.settings)
        with closing(assembly.make_source(surroundings.settings)) as source:

            def read() -> int:
                raw = source.poll(0.2, 2048)
                return len(decoder.decode(raw).batch) if raw else 0

            return stream.timed(read, n)
