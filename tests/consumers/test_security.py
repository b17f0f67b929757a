"""TLS, logins and rights, on a broker that insists on them: what works, and what is said where it does not."""

from __future__ import annotations

import base64
import json
import logging
import re
import shlex
import socket
import socketserver
import ssl
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from kafka.admin import (
    ACL,
    ACLOperation,
    ACLPermissionType,
    ACLResourcePatternType,
    KafkaAdminClient,
    ResourcePattern,
    ResourceType,
)
from kafka.net.sasl.oauth import AbstractTokenProvider

from consumers.access import check_access
from consumers.clients import ClientName
from consumers.errors import BrokerUnavailable, ConsumersError, NotAuthorized, TopicMissing
from consumers.kafka_client import make_consumer, translated
from consumers.logs import KafkaLog, OffsetRange
from consumers.oauth import ClientCredentials, token_provider
from consumers.records import BadRecord, StoredRecord, Verdicts
from consumers.sinks.kafka import KafkaSink
from consumers.sources.kafka import KafkaSource
from consumers.trust import Attempts, Secret
from srr_stream.broker import free_port
from srr_stream.dead_letters import DeadLetters
from srr_stream.ledger.reader import read_books

Grant = Callable[..., None]

GUIDE = Path(__file__).parents[2] / "docs" / "kafka.md"
LIMIT_S = 10.0


@contextmanager
def in_time() -> Iterator[None]:
    """Fail if what an operator waits for takes longer than was promised."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < LIMIT_S


@pytest.fixture(scope="module")
def grant(secure_kafka: Any) -> Iterator[Grant]:
    """Give a user rights: operation, kind of resource, name, and whether the name is a prefix."""
    admin = KafkaAdminClient(bootstrap_servers=secure_kafka.bootstrap_servers)

    def add(user: str, *rights: tuple[str, str, str], pattern: str = "literal") -> None:
        acls = [
            ACL(
                f"User:{user}",
                "*",
                ACLOperation[operation.upper()],
                ACLPermissionType.ALLOW,
                ResourcePattern(
                    ResourceType[kind.upper().replace("-", "_")], name, ACLResourcePatternType[pattern.upper()]
                ),
            )
            for operation, kind, name in rights
        ]
        assert not admin.create_acls(acls)["failed"]
        # The controller has them; the broker learns of them a little later.
        until = time.monotonic() + LIMIT_S
        while any(acl not in admin.describe_acls(acl)[0] for acl in acls):
            assert time.monotonic() < until, "the broker does not know the rights"

    yield add
    admin.close()


def produce(broker: Any, topic: str, values: Sequence[bytes]) -> None:
    """Append values to the first partition of a topic of a broker, as its operator."""
    from kafka import KafkaProducer

    producer = KafkaProducer(bootstrap_servers=broker.bootstrap_servers, acks="all")
    try:
        for future in [producer.send(topic, value, partition=0) for value in values]:
            future.get(30)
    finally:
        producer.close(5)


def read(source: KafkaSource, n: int) -> list[bytes | None]:
    """Poll until there are `n` records, commit them, and return their values."""
    found: list[bytes | None] = []
    until = time.monotonic() + 30
    while len(found) < n:
        assert time.monotonic() < until, f"{len(found)} of {n} records"
        records = source.poll(0.2)
        found.extend(record.value for record in records)
        source.commit({(record.topic, record.partition): record.offset + 1 for record in records})
    return found


# Rights, asked for at the start


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("asked", "lacking", "command"),
    [
        ({"reads": ["TOPIC"]}, "READ on topic 'TOPIC'", "--operation Read --topic TOPIC"),
        ({"writes": ["TOPIC"]}, "WRITE on topic 'TOPIC'", "--operation Write --topic TOPIC"),
        ({"group_id": "TOPIC"}, "READ on group 'TOPIC'", "--operation Read --group TOPIC"),
        (
            {"reads": ["TOPIC"], "group_id": "TOPIC"},
            "READ on topic 'TOPIC' and READ on group 'TOPIC'",
            "--operation Read --topic TOPIC; kafka-acls.sh --add --allow-principal User:guest "
            "--operation Read --group TOPIC",
        ),
    ],
)
@pytest.mark.parametrize("is_seen", [True, False], ids=["seen", "hidden"])
def test_a_right_that_is_missing_is_named_with_the_command_that_grants_it(
    secure_kafka: Any,
    grant: Grant,
    topic_name: str,
    asked: dict[str, Any],
    lacking: str,
    command: str,
    is_seen: bool,
) -> None:
    secure_kafka.create_topics({topic_name: 1})
    if is_seen:
        grant("guest", ("Describe", "topic", topic_name), ("Describe", "group", topic_name))
    asked = json.loads(json.dumps(asked).replace("TOPIC", topic_name))
    with in_time(), pytest.raises(NotAuthorized) as raised:
        check_access(secure_kafka.connection("guest"), **asked, where="kafka:9094")
    text = str(raised.value).replace(topic_name, "TOPIC")
    is_topic_hidden = not is_seen and ("reads" in asked or "writes" in asked)
    doubt = " (whether there is a topic TOPIC is not told either)" if is_topic_hidden else ""
    assert text == (
        f"kafka:9094: user 'guest' lacks {lacking}{doubt}; grant what is missing: "
        f"kafka-acls.sh --add --allow-principal User:guest {command}"
    )


@pytest.mark.kafka
def test_a_transactional_id_that_may_not_be_seen_is_named(secure_kafka: Any, topic_name: str) -> None:
    with in_time(), pytest.raises(NotAuthorized, match=f"lacks WRITE on transactional id '{topic_name}'; grant"):
        check_access(secure_kafka.connection("guest"), transactional_id=topic_name, where="kafka:9094")


@pytest.mark.kafka
def test_with_its_rights_a_user_passes_and_a_topic_that_is_not_there_is_missing(
    secure_kafka: Any, grant: Grant, topic_name: str
) -> None:
    secure_kafka.create_topics({topic_name: 1})
    rights = [("Read", "topic"), ("Write", "topic"), ("Read", "group"), ("Write", "transactional-id")]
    grant("guest", *((operation, kind, topic_name) for operation, kind in rights))
    guest = secure_kafka.connection("guest")
    names = {"group_id": topic_name, "transactional_id": topic_name, "where": "kafka:9094"}
    check_access(guest, reads=[topic_name], writes=[topic_name], **names)
    grant("guest", ("Read", "topic", f"{topic_name}-absent"))
    with pytest.raises(TopicMissing, match=f"no topic {topic_name}-absent that"):
        check_access(guest, reads=[topic_name, f"{topic_name}-absent"], where="kafka:9094")


def test_a_broker_that_checks_no_rights_lets_everything_pass_but_a_missing_topic(broker: Any, topic_name: str) -> None:
    broker.create_topics({topic_name: 1})
    connection = {"bootstrap_servers": [broker.bootstrap_servers]}
    names = {"group_id": topic_name, "transactional_id": topic_name, "where": "kafka:9092"}
    check_access(connection, reads=[topic_name], writes=[topic_name], **names)
    with pytest.raises(TopicMissing, match=f"no topic {topic_name}-absent that"):
        check_access(connection, reads=[topic_name], writes=[f"{topic_name}-absent"], **names)


@pytest.mark.kafka
@pytest.mark.parametrize("version", [(2, 2), (0, 10, 0)], ids=["no rights told", "no transactions known"])
def test_a_broker_too_old_to_tell_rights_lets_what_is_seen_pass(
    secure_kafka: Any, grant: Grant, topic_name: str, version: tuple[int, ...]
) -> None:
    secure_kafka.create_topics({topic_name: 1})
    grant("guest", ("Describe", "topic", topic_name), ("Describe", "transactional-id", topic_name))
    old = secure_kafka.connection("guest", api_version=version)
    check_access(old, reads=[topic_name], group_id=topic_name, transactional_id=topic_name, where="kafka:9094")


# Rights, used


def rights_in_the_guide() -> Iterator[tuple[str, list[tuple[str, str, str]], str]]:
    """Yield user, rights and kind of pattern of every command in the guide."""
    commands = re.findall(r"^grant User:(\S+) (.*)$", GUIDE.read_text(encoding="utf-8"), flags=re.M)
    for user, options in commands:
        words = shlex.split(options)
        given = list(zip(words[::2], words[1::2], strict=True))
        operations = [value for option, value in given if option == "--operation"]
        pattern = dict(given).get("--resource-pattern-type", "literal")
        named = [
            (option[2:], value) for option, value in given if option in ("--topic", "--group", "--transactional-id")
        ]
        assert len(operations) + len(named) + (pattern != "literal") == len(given)
        yield user, [(operation, kind, name) for operation in operations for kind, name in named], pattern


@pytest.mark.kafka
def test_the_rights_in_the_guide_are_those_that_each_command_needs(
    secure_kafka: Any, grant: Grant, verdicts: Verdicts
) -> None:
    outputs = {
        "scores_topic": "requests-scores",
        "alerts_topic": "requests-alerts",
        "dead_letter_topic": "requests-dead-letters",
    }
    secure_kafka.create_topics({"requests": 2, **dict.fromkeys(outputs.values(), 1)})
    for user, rights, pattern in rights_in_the_guide():
        grant(user, *rights, pattern=pattern)
    scorer = secure_kafka.connection("scorer")
    check_access(
        scorer,
        reads=["requests"],
        writes=list(outputs.values()),
        group_id="srr-stream",
        transactional_id="srr-stream-1",
        where="kafka:9094",
    )
    n_read = 0
    for client, contents in zip(ClientName, ([b'{"x": 1}', b'{"x": 2}'], [b'{"x": 3}']), strict=True):
        produce(secure_kafka, "requests", contents)
        n_read += len(contents)
        source = KafkaSource(["requests"], group_id="srr-stream", connection=scorer, start="earliest", client=client)
        with closing(source):
            assert read(source, len(contents)) == contents
            with closing(KafkaSink(scorer, **outputs, client=client)) as sink:
                sink.write(verdicts)
                sink.write_bad([BadRecord(StoredRecord("requests", 0, 1, 0, None, b"x"), "not_json", "no JSON")])
                sink.flush()
            with closing(KafkaSink(scorer, **outputs, transactional_id="srr-stream-1", client=client)) as sink:
                sink.begin()
                sink.write(verdicts)
                sink.commit({("requests", 0): n_read}, source.membership, lambda: None)
    with closing(KafkaLog(["requests"], connection=secure_kafka.connection("trainer"))) as log:
        assert log.ends() == {("requests", 0): 3, ("requests", 1): 0}
        assert [record.value for record in log.read(OffsetRange("requests", 0, 0, 2))] == [b'{"x": 1}', b'{"x": 2}']
    auditor = secure_kafka.connection("auditor")
    books = read_books(auditor, topics=["requests"], group_id="srr-stream", **outputs, mode="at_least_once")
    assert books.committed[("requests", 0)] == 3
    operator = secure_kafka.connection("operator")
    letters = DeadLetters(
        "requests-dead-letters", connection=operator, topics=["requests"], requeue_id="srr-stream-requeue"
    )
    assert letters.requeue().sent == ["requests-0-1"]


def use_source(connection: dict[str, Any], name: str, client: ClientName) -> None:
    """Read until something is said."""
    with closing(KafkaSource([name], group_id=name, connection=connection, start="earliest", client=client)) as source:
        until = time.monotonic() + 2 * LIMIT_S
        while time.monotonic() < until:
            source.poll(0.5)


def use_sink(
    connection: dict[str, Any], name: str, verdicts: Verdicts, client: ClientName, transactional_id: str | None = None
) -> None:
    topics = {"scores_topic": name, "alerts_topic": None, "dead_letter_topic": f"{name}-bad"}
    with closing(KafkaSink(connection, **topics, transactional_id=transactional_id, client=client)) as sink:
        sink.write(verdicts)
        sink.flush()


@pytest.mark.kafka
@pytest.mark.parametrize("missing", ["group", "topic"])
def test_a_reader_without_a_right_is_stopped_and_told_which(
    secure_kafka: Any, grant: Grant, topic_name: str, client: ClientName, missing: str
) -> None:
    secure_kafka.create_topics({topic_name: 1})
    grant("guest", *(("Describe" if kind == missing else "Read", kind, topic_name) for kind in ("group", "topic")))
    with in_time(), pytest.raises(NotAuthorized, match=f"READ.* on {missing} '{topic_name}'"):
        use_source(secure_kafka.connection("guest"), topic_name, client)


@pytest.mark.kafka
@pytest.mark.parametrize("missing", ["topic", "transactional-id"])
def test_a_writer_without_a_right_is_stopped_and_told_which(
    secure_kafka: Any, grant: Grant, topic_name: str, verdicts: Verdicts, client: ClientName, missing: str
) -> None:
    secure_kafka.create_topics({topic_name: 1, f"{topic_name}-bad": 1})
    grant("guest", ("Write", "topic", f"{topic_name}-bad"))
    grant("guest", *(("Describe" if k == missing else "Write", k, topic_name) for k in ("topic", "transactional-id")))
    named = topic_name if missing == "topic" else "(?i)transactional.?id"
    with in_time(), pytest.raises(NotAuthorized, match=named):
        use_sink(
            secure_kafka.connection("guest"),
            topic_name,
            verdicts,
            client,
            transactional_id=topic_name if missing == "transactional-id" else None,
        )


@pytest.mark.kafka
def test_a_log_without_the_right_to_read_is_stopped_and_told_which(
    secure_kafka: Any, grant: Grant, topic_name: str
) -> None:
    secure_kafka.create_topics({topic_name: 1})
    produce(secure_kafka, topic_name, [b"{}"])
    grant("guest", ("Describe", "topic", topic_name))
    with (
        closing(KafkaLog([topic_name], connection=secure_kafka.connection("guest"))) as log,
        in_time(),
        pytest.raises(NotAuthorized, match=f"READ.* on topic '{topic_name}'"),
    ):
        log.ends()


@pytest.mark.kafka
def test_an_error_about_a_transactional_id_names_it(secure_kafka: Any, grant: Grant, topic_name: str) -> None:
    from kafka import KafkaProducer

    from consumers.kafka_client import connect

    grant("guest", ("Describe", "transactional-id", topic_name))
    producer = connect(KafkaProducer, secure_kafka.connection("guest"), transactional_id=topic_name)
    try:
        with (
            in_time(),
            pytest.raises(NotAuthorized, match=f"WRITE on transactional id '{topic_name}'"),
            translated("kafka:9094", transactional_id=topic_name),
        ):
            producer.init_transactions()
    finally:
        producer.close(0)


# Trust

REFUSED = {
    "wrong password": (
        {"sasl_plain_password": "wrong"},
        NotAuthorized,
        r"refuses user 'scorer' by SCRAM-SHA-512: Authentication failed.*; check the credentials and their rights",
    ),
    "wrong password, PLAIN": (
        {"sasl_plain_password": "wrong", "sasl_mechanism": "PLAIN"},
        NotAuthorized,
        r"refuses user 'scorer' by PLAIN: Authentication failed: Invalid username or password",
    ),
    "unknown user": ({"sasl_plain_username": "who"}, NotAuthorized, r"refuses user 'who' by SCRAM-SHA-512"),
    "other mechanism": ({"at": "oauth_servers"}, NotAuthorized, r"kafka\.sasl_mechanism: is SCRAM-SHA-512, which"),
    "unknown CA": (
        {"ssl_cafile": "other_ca"},
        NotAuthorized,
        r"signed by a CA that is not trusted: .*; set kafka\.ssl_cafile \(.*other-ca\.pem\)",
    ),
    "no CA": ({"ssl_cafile": None}, NotAuthorized, r"set kafka\.ssl_cafile \(not set: those of this machine\)"),
    "no CA in the file": (
        {"ssl_cafile": "key"},
        NotAuthorized,
        r"kafka\.ssl_cafile: .*-key\.pem holds no certificates",
    ),
    "other host": (
        {"host": "localhost"},
        NotAuthorized,
        r"certificate is for another host: .*kafka\.bootstrap_servers",
    ),
    "expired": ({"at": "expired_servers", "security_protocol": "SSL"}, BrokerUnavailable, "certificate has expired"),
    "no certificate": (
        {"at": "mutual_servers", "security_protocol": "SSL"},
        NotAuthorized,
        r"refuses this client's certificate \(none is set\).*; set kafka\.ssl_certfile",
    ),
    "locked key": (
        {"at": "mutual_servers", "security_protocol": "SSL", "ssl_certfile": "certificate", "ssl_keyfile": "key"},
        NotAuthorized,
        r"kafka\.ssl_password does not unlock the key",
    ),
    "no TLS": (
        {"security_protocol": "SASL_PLAINTEXT"},
        NotAuthorized,
        r"is SASL_PLAINTEXT, but this port of the broker speaks TLS; set SASL_SSL and kafka\.ssl_cafile",
    ),
    "neither TLS nor login": (
        {"security_protocol": "PLAINTEXT"},
        NotAuthorized,
        "is PLAINTEXT, but this port of the broker speaks TLS; set SSL or SASL_SSL",
    ),
    "no login": ({"security_protocol": "SSL"}, BrokerUnavailable, "hangs up on the first request.*set SASL_SSL"),
    "TLS too much": (
        {"at": "bootstrap_servers"},
        BrokerUnavailable,
        "hangs up during the TLS handshake; kafka.security_protocol is SASL_SSL: .* set PLAINTEXT or SASL_PLAINTEXT",
    ),
    "login too much": (
        {"at": "bootstrap_servers", "security_protocol": "SASL_PLAINTEXT"},
        NotAuthorized,
        "is SASL_PLAINTEXT, but this port of the broker takes no login; set PLAINTEXT",
    ),
}


@pytest.mark.kafka
@pytest.mark.parametrize("case", REFUSED)
def test_whoever_does_not_trust_the_other_is_named_and_nothing_is_left_behind(secure_kafka: Any, case: str) -> None:
    changes, kind, pattern = REFUSED[case]
    files = {k: str(getattr(secure_kafka, v)) for k, v in changes.items() if k.startswith("ssl_") and v is not None}
    rest = {k: v for k, v in changes.items() if k not in ("at", "host")}
    connection = secure_kafka.connection("scorer", **(rest | files))
    servers = getattr(secure_kafka, changes.get("at", "secure_servers"))
    connection["bootstrap_servers"] = [servers.replace("127.0.0.1", changes.get("host", "127.0.0.1"))]
    threads = set(threading.enumerate())
    with in_time(), pytest.raises(ConsumersError, match=pattern) as raised, translated("kafka:9094"):
        make_consumer(connection)
    assert type(raised.value) is kind
    for thread in set(threading.enumerate()) - threads:
        thread.join(5)  # one that is closing may take a moment
        assert not thread.is_alive(), thread


@contextmanager
def says_at_once(greeting: bytes) -> Iterator[int]:
    """Give a port that greets everybody and hangs up."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.recv(4096)  # what is left unread would end the connection before the greeting arrives
            self.request.sendall(greeting)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("protocol", "greeting", "kind", "pattern"),
    [
        (
            "SSL",
            b"HTTP/1.1 400 Bad Request\r\n\r\n",
            NotAuthorized,
            "is SSL, but this port does not speak TLS; set PLAIN",
        ),
        ("PLAINTEXT", b"", BrokerUnavailable, "hangs up on the first request; .* set SASL_PLAINTEXT, SSL or SASL_SSL"),
    ],
)
def test_a_port_that_is_no_such_broker_s_is_told_from_one_that_is_not_there(
    protocol: str, greeting: bytes, kind: type[ConsumersError], pattern: str
) -> None:
    with (
        says_at_once(greeting) as port,
        in_time(),
        pytest.raises(kind, match=pattern),
        translated("kafka:9092"),
    ):
        make_consumer({"bootstrap_servers": [f"127.0.0.1:{port}"], "security_protocol": protocol})


@pytest.mark.kafka
def test_a_locked_key_and_its_certificate_are_let_in(secure_kafka: Any) -> None:
    connection = {
        "bootstrap_servers": [secure_kafka.mutual_servers],
        "security_protocol": "SSL",
        "ssl_cafile": str(secure_kafka.ca),
        "ssl_certfile": str(secure_kafka.certificate),
        "ssl_keyfile": str(secure_kafka.key),
        "ssl_password": Secret("key-password"),
    }
    with closing(make_consumer(connection)) as consumer:
        assert consumer.bootstrap_connected() is not None
    with pytest.raises(NotAuthorized, match=r"the owner of the certificate .*client\.pem lacks READ on group 'g'"):
        check_access(connection, group_id="g", where="kafka:9093")


@pytest.mark.kafka
def test_source_and_sink_work_with_a_certificate(
    secure_kafka: Any, grant: Grant, topic_name: str, verdicts: Verdicts, client: ClientName
) -> None:
    connection = {
        "bootstrap_servers": [secure_kafka.mutual_servers],
        "security_protocol": "SSL",
        "ssl_cafile": str(secure_kafka.ca),
        "ssl_certfile": str(secure_kafka.certificate),
        "ssl_keyfile": str(secure_kafka.key),
        "ssl_password": Secret("key-password"),
    }
    secure_kafka.create_topics({topic_name: 1, f"{topic_name}-bad": 1})
    rights = [("Read", "topic"), ("Write", "topic"), ("Read", "group")]
    grant("CN=client", *((operation, kind, topic_name) for operation, kind in rights))
    grant("CN=client", ("Write", "topic", f"{topic_name}-bad"))
    use_sink(connection, topic_name, verdicts, client)
    source = KafkaSource([topic_name], group_id=topic_name, connection=connection, start="earliest", client=client)
    with closing(source):
        assert len(read(source, 3)) == 3


@pytest.mark.kafka
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"])
def test_source_and_sink_work_with_a_password(
    secure_kafka: Any, grant: Grant, topic_name: str, verdicts: Verdicts, client: ClientName, mechanism: str
) -> None:
    secure_kafka.create_topics({topic_name: 1, f"{topic_name}-bad": 1})
    rights = [("Read", "topic"), ("Write", "topic"), ("Read", "group")]
    grant("scorer", *((operation, kind, topic_name) for operation, kind in rights))
    grant("scorer", ("Write", "topic", f"{topic_name}-bad"))
    password = Secret(secure_kafka.PASSWORDS["scorer"])
    connection = secure_kafka.connection("scorer", sasl_mechanism=mechanism, sasl_plain_password=password)
    use_sink(connection, topic_name, verdicts, client)
    source = KafkaSource([topic_name], group_id=topic_name, connection=connection, start="earliest", client=client)
    with closing(source):
        assert len(read(source, 3)) == 3


# Tokens


def unsigned_token(subject: str, *, life_s: float = 600.0) -> str:
    """Return a JSON web token without a signature."""
    parts = {"alg": "none"}, {"sub": subject, "iat": time.time() - 1, "exp": time.time() + life_s}
    return ".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).decode().rstrip("=") for part in parts) + "."


class TokenEndpoint:
    """An endpoint of OAuth on a port of this machine; `answer` is what the next request gets."""

    secret = "secret-of-the-client"

    def __init__(self, certificate: Path | None = None) -> None:
        self.requests: list[tuple[Mapping[str, str], bytes]] = []
        self.answer: tuple[int, bytes] = (500, b"")
        self.headers: dict[str, str] = {}
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                endpoint.requests.append((self.headers, self.rfile.read(int(self.headers["Content-Length"]))))
                status, content = endpoint.answer
                self.send_response(status)
                for name, value in endpoint.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        if certificate is not None:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(certificate)
            self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        self.url = f"http{'s' if certificate is not None else ''}://127.0.0.1:{self._server.server_port}/token"

    def give(self, token: str, **more: Any) -> None:
        self.answer = (200, json.dumps({"access_token": token, "token_type": "Bearer", **more}).encode())

    def client(self, **options: Any) -> ClientCredentials:
        return ClientCredentials(self.url, client_id="srr-scorer", client_secret=Secret(self.secret), **options)

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def endpoint() -> Iterator[TokenEndpoint]:
    with closing(TokenEndpoint()) as made:
        yield made


def test_a_token_is_asked_for_with_id_secret_and_scope(endpoint: TokenEndpoint) -> None:
    endpoint.give("t1", expires_in=60)
    assert endpoint.client(scope="kafka read").token() == "t1"
    ((headers, body),) = endpoint.requests
    assert headers["Authorization"] == "Basic " + base64.b64encode(b"srr-scorer:secret-of-the-client").decode()
    assert body == b"grant_type=client_credentials&scope=kafka+read"


@pytest.mark.parametrize("in_the_token", [False, True])
def test_a_token_is_used_for_four_fifths_of_its_life(endpoint: TokenEndpoint, in_the_token: bool) -> None:
    now = [1000.0]
    first = unsigned_token("scorer", life_s=100) if in_the_token else "t1"
    endpoint.give(first, **({} if in_the_token else {"expires_in": "100"}))
    client = endpoint.client(clock=lambda: now[0])
    assert client.token() == first
    endpoint.give("t2", expires_in=100)
    now[0] += 79
    assert client.token() == first
    now[0] += 2
    assert client.token() == "t2"
    assert len(endpoint.requests) == 2


def test_a_token_of_unknown_life_is_used_once(endpoint: TokenEndpoint) -> None:
    endpoint.give("opaque")
    client = endpoint.client()
    assert [client.token(), client.token()] == ["opaque", "opaque"]
    assert len(endpoint.requests) == 2


def test_while_the_endpoint_is_out_of_order_a_token_goes_on_until_it_expires(
    endpoint: TokenEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    now = [1000.0]
    endpoint.give("t1", expires_in=100)
    client = endpoint.client(clock=lambda: now[0])
    client.token()
    endpoint.answer = (503, b"")
    now[0] += 90
    assert client.token() == "t1"
    assert "going on with the token that there is" in caplog.text
    now[0] += 10
    with pytest.raises(BrokerUnavailable, match=rf"no token from {endpoint.url}: HTTP 503; check the endpoint"):
        client.token()


@pytest.mark.parametrize(
    ("answer", "pattern"),
    [
        (
            (401, b'{"error": "invalid_client",\n "got": "secret-of-the-client"}'),
            r"refuses client 'srr-scorer' with HTTP 401: \{\"error\": \"invalid_client\", \"got\": \"\*\*\*\"\}; check "
            r"kafka\.sasl_oauthbearer_client_id",
        ),
        ((400, b""), "with HTTP 400: no reason"),
        ((302, b""), r"redirects to http://elsewhere\.example/; give the final address"),
        ((200, b"<html>"), "does not answer in JSON"),
        ((200, b"[]"), "answers without an access_token"),
        ((200, b'{"access_token": "t\\u0001auth=x"}'), "answers without an access_token"),
    ],
)
def test_an_endpoint_that_gives_no_token_says_why(
    endpoint: TokenEndpoint, answer: tuple[int, bytes], pattern: str
) -> None:
    endpoint.answer = answer
    endpoint.headers = {"Location": "http://elsewhere.example/"}
    with pytest.raises(NotAuthorized, match=pattern) as raised:
        endpoint.client().token()
    assert str(raised.value).startswith(f"kafka.sasl_oauthbearer_token_endpoint_url: {endpoint.url} ")


def test_an_endpoint_that_is_not_there_is_named() -> None:
    url = f"http://127.0.0.1:{free_port()}/token"
    with pytest.raises(BrokerUnavailable, match=rf"no token from {url}: .*refused; check the endpoint"):
        ClientCredentials(url, client_id="a", client_secret="b").token()


def test_an_endpoint_that_is_silent_is_not_waited_for() -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/token"
        with pytest.raises(BrokerUnavailable, match="timed out"):
            ClientCredentials(url, client_id="a", client_secret="b", timeout_s=0.2).token()


@pytest.mark.kafka
def test_an_endpoint_with_a_certificate_of_the_brokers_ca_is_trusted_if_that_is_named(secure_kafka: Any) -> None:
    with closing(TokenEndpoint(secure_kafka.folder / "broker.pem")) as endpoint:
        endpoint.give("t1")
        assert endpoint.client(cafile=str(secure_kafka.ca)).token() == "t1"
        with pytest.raises(
            NotAuthorized, match=r"certificate that is not trusted: .*; add its CA to kafka\.ssl_cafile"
        ):
            endpoint.client().token()


@pytest.fixture
def with_token(secure_kafka: Any, endpoint: TokenEndpoint) -> dict[str, Any]:
    """How to connect with a token of the endpoint."""
    return {
        "bootstrap_servers": [secure_kafka.oauth_servers],
        "security_protocol": "SASL_SSL",
        "ssl_cafile": str(secure_kafka.ca),
        "sasl_mechanism": "OAUTHBEARER",
        "sasl_oauth_token_provider": token_provider(endpoint.client()),
    }


@pytest.mark.kafka
def test_source_and_sink_work_with_a_token(
    secure_kafka: Any,
    grant: Grant,
    topic_name: str,
    verdicts: Verdicts,
    endpoint: TokenEndpoint,
    with_token: dict[str, Any],
    client: ClientName,
) -> None:
    secure_kafka.create_topics({topic_name: 1, f"{topic_name}-bad": 1})
    endpoint.give(unsigned_token(topic_name), expires_in=600)
    grant(topic_name, ("Write", "topic", topic_name), ("Write", "topic", f"{topic_name}-bad"))
    use_sink(with_token, topic_name, verdicts, client)
    with pytest.raises(NotAuthorized) as raised:
        check_access(with_token, reads=[topic_name], where="kafka:9095")
    assert str(raised.value) == (
        f"kafka:9095: client 'srr-scorer' lacks READ on topic '{topic_name}'; grant what is missing: "
        f"kafka-acls.sh --add --allow-principal User:{topic_name} --operation Read --topic {topic_name}"
    )
    grant(topic_name, ("Read", "topic", topic_name), ("Read", "group", topic_name))
    source = KafkaSource([topic_name], group_id=topic_name, connection=with_token, start="earliest", client=client)
    with closing(source):
        assert len(read(source, 3)) == 3
    assert len(endpoint.requests) == 1


@pytest.mark.kafka
@pytest.mark.parametrize(
    ("answer", "kind", "pattern"),
    [
        ((200, None), NotAuthorized, r"refuses client 'srr-scorer' by OAUTHBEARER: .*; check the credentials"),
        ((401, b""), NotAuthorized, "refuses client 'srr-scorer' with HTTP 401"),
        ((503, b""), BrokerUnavailable, "no token from .*: HTTP 503"),
    ],
)
def test_without_a_good_token_the_error_says_who_refused_it(
    endpoint: TokenEndpoint,
    with_token: dict[str, Any],
    answer: tuple[int, bytes | None],
    kind: type[ConsumersError],
    pattern: str,
) -> None:
    status, content = answer
    expired = json.dumps({"access_token": unsigned_token("scorer", life_s=-60), "expires_in": 60}).encode()
    endpoint.answer = (status, expired if content is None else content)
    with in_time(), pytest.raises(kind, match=pattern), translated("kafka:9095"):
        make_consumer(with_token)


@pytest.mark.kafka
def test_what_a_token_provider_of_somebody_else_raises_is_said(with_token: dict[str, Any]) -> None:
    class Broken(AbstractTokenProvider):
        def token(self) -> str:
            raise ValueError("the vault is sealed")

    connection = with_token | {"sasl_oauth_token_provider": Broken(), "bootstrap_timeout_ms": 500}
    with (
        pytest.raises(BrokerUnavailable, match=r"no answer from kafka:9095: .*the vault is sealed"),
        translated("kafka:9095"),
    ):
        make_consumer(connection)


# Secrets


@pytest.mark.kafka
@pytest.mark.parametrize("is_right", [True, False], ids=["right", "wrong"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER"])
def test_no_secret_is_in_a_log_an_error_or_a_dump(
    secure_kafka: Any,
    endpoint: TokenEndpoint,
    with_token: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    mechanism: str,
    is_right: bool,
) -> None:
    token = unsigned_token("scorer", life_s=600 if is_right else -600)
    endpoint.give(token, expires_in=60)
    password = secure_kafka.PASSWORDS["scorer"] if is_right else "a-wrong-password"
    connection = secure_kafka.connection("scorer", sasl_mechanism=mechanism, sasl_plain_password=Secret(password))
    if mechanism == "OAUTHBEARER":
        connection = with_token
    shown = [repr(connection), str(connection)]
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.DEBUG, logger="kafka")
    try:
        with translated("kafka:9094"):
            make_consumer(connection).close()
            assert is_right
    except ConsumersError as error:
        assert not is_right
        shown += traceback.format_exception(error)
    assert "SaslAuthenticateRequest" in caplog.text, "the login is not in the log at all"
    basic = base64.b64encode(f"srr-scorer:{endpoint.secret}".encode()).decode()
    shown += [record.getMessage() + repr(record.args) for record in caplog.records]
    secrets = (password, endpoint.secret, token, token.split(".")[1], basic)
    assert not [text for text in shown if any(secret in text for secret in secrets)]


@pytest.mark.parametrize(
    "end", [ssl.SSLEOFError(8, "EOF"), ssl.SSLZeroReturnError(6, "closed"), ConnectionResetError()]
)
def test_a_broker_that_hung_up_once_before_time_was_over_is_told_too(end: Exception) -> None:
    from kafka.errors import KafkaConnectionError

    if isinstance(end, ssl.SSLError):
        end.reason = "EOF"  # as the library's own have
    attempts = Attempts({"security_protocol": "SSL"}, where="kafka:9094")
    error = KafkaConnectionError(f"Handshake failed: {end}")
    error.__context__ = end
    attempts.note(error)
    assert attempts.refusal is None
    assert "kafka:9094: the broker hangs up during the TLS handshake" in str(attempts.outcome)
