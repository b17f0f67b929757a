"""A shorter selection of the chaos suite (``make chaos``): real scorers, killed and frozen, on a real Apache Kafka."""

from __future__ import annotations

import os
import random
import socket
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chaos.node import KafkaNode
from chaos.processes import POINTS, Death
from chaos.proxy import FaultProxy
from chaos.scenarios import SCENARIOS, run_scenario
from consumers.clients import ClientName

MODES = ["at_least_once", "exactly_once"]


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    home = os.environ.get("KAFKA_HOME")
    if not home:
        pytest.skip("KAFKA_HOME is not set: unpack an Apache Kafka release (Java 17) and name its folder")
    node = KafkaNode(Path(home), tmp_path_factory.mktemp("chaos-kafka"))
    yield node
    node.close()


@pytest.mark.chaos
@pytest.mark.kafka
@pytest.mark.timeout(300)
@pytest.mark.parametrize("client", list(ClientName))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("name", "options"),
    [("kills", {"n": 4}), ("zombie", {"n": 1}), ("reply-cut", {"n": 2}), ("oversize", {}), ("retention", {})],
)
def test_the_promise_is_kept(
    node: KafkaNode, tmp_path: Path, name: str, options: dict[str, Any], mode: str, client: ClientName
) -> None:
    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # shown when it fails: python -m chaos NAME --seed SEED
    result = run_scenario(name, mode, seed, node, tmp_path, client=client, **options)
    assert result.failure is None, result
    assert result.figures["records"] > 0


@pytest.mark.chaos
@pytest.mark.kafka
@pytest.mark.timeout(300)
def test_a_trainer_killed_at_every_stage_leaves_a_good_model_in_use(node: KafkaNode, tmp_path: Path) -> None:
    result = run_scenario("trainer-killed", "at_least_once", 1, node, tmp_path, rounds=1)
    assert result.failure is None, result
    assert result.figures["trainer_kills"] == 7


@pytest.mark.chaos
@pytest.mark.kafka
def test_a_broken_promise_is_a_failure(node: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The suite can fail: here a scenario loses what it says it produced."""

    def forgetful(bench: Any, rng: random.Random, result: Any) -> None:
        bench.settle_ledger(result, n_expected=7)

    monkeypatch.setitem(SCENARIOS, "forgetful", (forgetful, {}))
    result = run_scenario("forgetful", "at_least_once", 0, node, tmp_path)
    assert result.failure == "the input holds 0 records, 7 were produced"


def test_every_point_of_a_batch_is_drawn() -> None:
    assert {Death.draw(random.Random(seed)).point for seed in range(100)} == set(POINTS)


def test_the_proxy_passes_on_and_cuts_the_reply_to_the_request_that_it_waits_for() -> None:
    broker = socket.create_server(("127.0.0.1", 0))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    proxy = FaultProxy(port, broker.getsockname())
    try:
        client = socket.create_connection(("127.0.0.1", port), timeout=5)
        inner, _ = broker.accept()
        inner.settimeout(5)
        with client, inner:
            for api_key, is_cut in ((0, False), (8, True)):
                proxy.cut_reply_to(8)
                request = struct.pack(">ihh", 4, api_key, 0)
                client.sendall(request[:3])
                client.sendall(request[3:])
                received = b""
                while len(received) < len(request):
                    received += inner.recv(100)
                assert received == request
                inner.sendall(b"reply")
                if is_cut:
                    with pytest.raises(ConnectionError):
                        client.recv(100)
                else:
                    assert client.recv(100) == b"reply"
        assert proxy.n_cut == 1
    finally:
        proxy.close()
        broker.close()
