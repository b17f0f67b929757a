"""``doctor``'s checks of Kafka: brokers, rights, topics, what they hold and how long they keep it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from consumers.clients import ClientName, require
from consumers.errors import LibraryMissing, NotAuthorized, TopicMissing
from consumers.kafka_client import servers
from consumers.records import RawRecord
from consumers.windows import latest
from srr_stream import assembly
from srr_stream.doctor.facts import FAILURE, OK, SKIPPED, WARNING, Facts, Findings

_N_SAMPLED = 500
_MAX_BAD, _MOSTLY_BAD = 0.01, 0.5
"""Shares of records that cannot be read from which on it is a warning, a failure."""
_CLOCK_S = 2.0
_FUTURE_S = 60.0
"""A sender's clock may be off by so much."""


def broker(facts: Facts) -> Findings:
    """Look whether the brokers answer, and learn of the topics and the group."""
    settings = facts.settings
    topics = [*settings.input.topics, *facts.outputs.values()]
    facts.cluster = facts.world.look_at_cluster(facts.connection, topics=topics, group_id=settings.input.group_id)
    brokers = facts.cluster.brokers
    many = f"{len(brokers)} broker{'s' * (len(brokers) > 1)}"
    yield OK, f"{many}, protocol of Kafka {facts.cluster.protocol}: {', '.join(brokers[:5])}", ""


def rights(facts: Facts) -> Findings:
    """Ask whether these credentials may do what `run` does."""
    settings = facts.settings
    connection = facts.connection
    written = [
        topic
        for setting, topic in facts.outputs.items()
        if topic in facts.topics and (setting != "labels.topic" or settings.api.enabled)  # only the API writes labels
    ]
    read = [topic for topic in settings.input.topics if topic in facts.topics]
    if settings.labels.topic in facts.topics:
        read.append(str(settings.labels.topic))
    if settings.api.enabled and settings.output.alerts_topic in facts.topics:
        read.append(str(settings.output.alerts_topic))
    try:
        facts.world.check_access(
            connection,
            reads=read,
            writes=written,
            group_id=settings.input.group_id,
            transactional_id=assembly.transactional_id(settings),
            where=servers(connection),
        )
    except NotAuthorized as error:
        text, _, grants = str(error).partition("; grant what is missing: ")
        yield FAILURE, text, grants or "grant what is missing; docs/kafka.md lists the rights of every command"
        return
    except TopicMissing:  # in this moment: the check of topics has it
        pass
    yield OK, "reading, writing and the group are allowed, as far as the brokers tell", ""


def topics(facts: Facts) -> Findings:
    """Look whether the input topics are there."""
    yield from _existing(facts, [("input.topics", topic) for topic in facts.settings.input.topics])


def outputs(facts: Facts) -> Findings:
    """Look whether the topics are there that verdicts and labels go to."""
    yield from _existing(facts, list(facts.outputs.items()))


def _existing(facts: Facts, named: Sequence[tuple[str, str]]) -> Findings:
    there = [facts.topics[topic] for _, topic in named if topic in facts.topics]
    inputs = [facts.topics[topic] for topic in facts.settings.input.topics if topic in facts.topics]
    n = max((state.n_partitions for state in inputs), default=1)
    for setting, topic in named:
        if topic not in facts.topics:
            compacted = " --config cleanup.policy=compact" if setting == "labels.topic" else ""
            yield (
                FAILURE,
                f"{setting}: there is no topic {topic} that these credentials may see",
                f"kafka-topics.sh --bootstrap-server {facts.settings.kafka.bootstrap_servers} --create --topic {topic} "
                f"--partitions {n}{compacted}, or correct {setting}",
            )
    leaderless = [f"{state.n_leaderless} of {state.name}" for state in there if state.n_leaderless]
    if leaderless:
        yield FAILURE, f"partitions without a leader: {', '.join(leaderless)}", "start the brokers that hold them"
    if there:
        found = ", ".join(f"{state.name} ({state.n_partitions})" for state in there)
        yield OK, f"there, with their partitions: {found}", ""


def partitions(facts: Facts) -> Findings:
    """Compare the input's partitions with the scorers, and with those of the output topics."""
    inputs = [facts.topics[topic] for topic in facts.settings.input.topics if topic in facts.topics]
    total, most = sum(topic.n_partitions for topic in inputs), max(topic.n_partitions for topic in inputs)
    n_members = facts.cluster.n_members if facts.cluster is not None else None
    if n_members is not None and n_members > total:
        yield (
            WARNING,
            f"{n_members} scorers share {total} input partitions: {n_members - total} have nothing to do",
            "run fewer, or add partitions with kafka-topics.sh --alter --partitions",
        )
    few = [
        f"{topic} has {facts.topics[topic].n_partitions}"
        for setting, topic in facts.outputs.items()
        if setting.startswith("output.") and topic in facts.topics and facts.topics[topic].n_partitions < most
    ]
    if few:
        yield (
            WARNING,
            f"fewer partitions than the input's {most}: {', '.join(few)}; verdicts of several of these share one",
            f"kafka-topics.sh --alter --partitions {most}, before the first verdict: later it changes their places",
        )
    members = "how many scorers there are is not told" if n_members is None else f"{n_members} in the group now"
    yield OK, f"{total} input partition{'s' * (total > 1)}: so many scorers can work at once; {members}", ""


def replication(facts: Facts) -> Findings:
    """Look whether verdicts outlive a broker, and whether a broker's outage stops scoring."""
    if not any(topic in facts.topics for topic in facts.outputs.values()):
        yield SKIPPED, "there is no output topic", ""
        return
    n_brokers = len(facts.cluster.brokers) if facts.cluster is not None else 0
    is_exact = facts.settings.delivery.mode == "exactly_once"
    n_warnings = 0
    single = []
    for topic in facts.outputs.values():
        state = facts.topics.get(topic)
        if state is None:
            continue
        told = state.settings.get("min.insync.replicas")
        least = int(told) if told is not None else None
        if least is not None and state.n_in_sync < least:
            yield (
                FAILURE,
                f"{topic}: {state.n_in_sync} of {state.n_replicas} copies are in sync, min.insync.replicas is {least}: "
                "writing is refused",
                "start the brokers that lag behind, or lower min.insync.replicas",
            )
        elif state.n_replicas == 1:
            single.append(topic)
        elif least == state.n_replicas:
            n_warnings += 1
            yield (
                WARNING,
                f"{topic}: all {least} copies must confirm (min.insync.replicas): one broker's outage stops scoring",
                f"set min.insync.replicas to {least - 1}, or add a copy",
            )
        elif least == 1 and is_exact:
            n_warnings += 1
            yield (
                WARNING,
                f"{topic}: min.insync.replicas is 1: what one broker confirmed is lost with it, exactly_once or not",
                f"kafka-configs.sh --alter --entity-type topics --entity-name {topic} "
                "--add-config min.insync.replicas=2",
            )
    if single:
        n_warnings += 1
        remedy = "add brokers" if n_brokers == 1 else "kafka-reassign-partitions.sh gives them more copies"
        yield (
            WARNING,
            f"one copy only, lost with its disk: {', '.join(single)}",
            f"{remedy}; fine for a try-out",
        )
    if not n_warnings:
        yield OK, "verdicts outlive the loss of a broker", ""


def labels(facts: Facts) -> Findings:
    """Look whether the topic of labels keeps them."""
    topic = facts.settings.labels.topic
    if topic is None:
        yield SKIPPED, "labels.topic is not set: people's labels are not kept", ""
        return
    policy = facts.setting(topic, "cleanup.policy")
    if policy is None:
        yield SKIPPED, f"whether {topic} is compacted is not told", ""
    elif "compact" not in policy.split(","):
        yield (
            FAILURE,
            f"{topic} is not compacted (cleanup.policy is {policy}): labels are deleted with age",
            f"kafka-configs.sh --bootstrap-server {facts.settings.kafka.bootstrap_servers} --alter "
            f"--entity-type topics --entity-name {topic} --add-config cleanup.policy=compact",
        )
    else:
        yield OK, f"{topic} is compacted", ""


def message_sizes(facts: Facts) -> Findings:
    """Compare the sizes that topics take with those of the settings."""
    wanted, largest = int(facts.settings.output.max_message_size), int(facts.settings.input.max_record_size)
    told = {topic: _number(facts.setting(topic, "max.message.bytes")) for topic in facts.topics}
    if all(size is None for size in told.values()):
        yield SKIPPED, "what sizes the topics take is not told", ""
        return
    is_good = True
    for setting, topic in facts.outputs.items():
        size = told.get(topic)
        if setting.startswith("output.") and size is not None and size < wanted:
            is_good = False
            yield (
                FAILURE,
                f"{topic} takes {size:,} bytes (max.message.bytes), output.max_message_size is {wanted:,}: "
                "a larger verdict would stop scoring",
                f"set output.max_message_size to {size}, or raise max.message.bytes",
            )
    for topic in facts.settings.input.topics:
        size = told.get(topic)
        if size is not None and size > 2 * largest:
            is_good = False
            yield (
                WARNING,
                f"{topic} takes records of {size:,} bytes, input.max_record_size is {largest:,}: larger ones become "
                "dead letters",
                f"set input.max_record_size to {size} if they are meant to be scored",
            )
    if is_good:
        yield OK, f"topics take verdicts of {wanted:,} bytes", ""


def _number(text: str | None) -> int | None:
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def records(facts: Facts) -> Findings:
    """Read the newest records of every input topic, and decode them as the scorer would."""
    settings = facts.settings
    log = facts.world.open_log(settings, settings.input.topics)
    try:
        ends = log.ends()
        begins = log.beginnings()
        facts.ends = {position: max(end, begins[position]) for position, end in ends.items()}
        facts.begins = {position: begins[position] for position in ends}
        newest: dict[str, Sequence[RawRecord]] = {}
        for topic in settings.input.topics:
            mine = {position: end for position, end in facts.ends.items() if position[0] == topic}
            ranges = latest({position: begins[position] for position in mine}, mine, _N_SAMPLED)
            newest[topic] = [record for offsets in ranges for record in log.read(offsets)]
    finally:
        log.close()
    facts.newest = newest
    try:
        require(ClientName(settings.kafka.client))
        decoder = assembly.make_decoder(settings)
    except LibraryMissing as error:
        yield FAILURE, str(error), "install the extra that it names"
        return
    for topic, records in newest.items():
        if not records:
            yield WARNING, f"{topic} holds no records", "send some; the first model waits for window.min_size of them"
            continue
        bad = decoder.decode(records).bad
        share = len(bad) / len(records)
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(one.reason for one in bad).most_common())
        text = f"{topic}: {len(records) - len(bad):,} of the newest {len(records):,} can be read"
        if share <= _MAX_BAD:
            yield OK, text + (f"; {reasons}" if bad else ""), ""
        else:
            yield (
                FAILURE if share > _MOSTLY_BAD else WARNING,
                f"{text}; {reasons}, such as: {bad[0].detail}",
                "correct record.fields (srr-stream init makes them from the topic) or the sender; "
                "srr-stream dlq list shows what was refused",
            )


def retention(facts: Facts) -> Findings:
    """Look whether the input topics keep enough for a window."""
    window = facts.settings.window
    if not facts.newest:
        yield SKIPPED, "the records could not be read", ""
        return
    n = sum(facts.ends.values()) - sum(facts.begins.values())
    is_cut = any(facts.begins.values())
    is_good = True
    for topic in facts.settings.input.topics:
        policy, kept_ms = facts.setting(topic, "cleanup.policy"), _number(facts.setting(topic, "retention.ms"))
        if policy is not None and "compact" in policy.split(","):
            is_good = False
            yield (
                WARNING,
                f"{topic} is compacted: only the newest record of a key stays, and a training cannot be repeated",
                "read a topic with cleanup.policy=delete, if there is one",
            )
        if window.span is not None and kept_ms is not None and 0 <= kept_ms < window.span.total_seconds() * 1000:
            is_good = False
            yield (
                WARNING,
                f"{topic} keeps {kept_ms / 3.6e6:.1f} h (retention.ms), window.span is "
                f"{window.span.total_seconds() / 3600:.1f} h: no window reaches so far back",
                "raise retention.ms or shorten window.span",
            )
    if n < window.min_size and is_cut:
        is_good = False
        yield (
            FAILURE,
            f"the topics keep {n:,} records, window.min_size is {window.min_size:,}, and older ones are deleted: "
            "there may never be a model",
            "raise retention.ms or retention.bytes, or lower window.min_size",
        )
    elif n < window.min_size:
        is_good = False
        yield (
            WARNING,
            f"{n:,} of window.min_size {window.min_size:,} records are there: the first model waits for the rest",
            "wait, or lower window.min_size",
        )
    elif n < window.max_size and is_cut:
        is_good = False
        yield (
            WARNING,
            f"the topics keep {n:,} records, window.max_size is {window.max_size:,}: windows are never full",
            "raise retention.ms or retention.bytes, or lower window.max_size",
        )
    if is_good:
        yield OK, f"{n:,} records are there for a window of {window.min_size:,} to {window.max_size:,}", ""


def clock(facts: Facts) -> Findings:
    """Compare this clock with the broker's, as far as stamps of records tell it; nothing is written to learn more."""
    now_ms = facts.world.now() * 1000
    newest = {topic: max(r.timestamp for r in records) for topic, records in facts.newest.items() if records}
    if not newest:
        yield SKIPPED, "no record tells the time", ""
        return
    by_broker = [topic for topic in newest if facts.setting(topic, "message.timestamp.type") == "LogAppendTime"]
    ahead_s = {topic: (at - now_ms) / 1000 for topic, at in newest.items()}
    for topic in by_broker:
        if ahead_s[topic] > _CLOCK_S:
            yield (
                WARNING,
                f"the broker stamped a record of {topic} {ahead_s[topic]:.0f} s after now: this clock is behind its",
                "synchronise the clocks (NTP); the ages of records and models are wrong by as much",
            )
            return
    future = [topic for topic in newest if topic not in by_broker and ahead_s[topic] > _FUTURE_S]
    for topic in future:
        yield (
            WARNING,
            f"records of {topic} are from {ahead_s[topic]:.0f} s after now: this clock is behind or the sender's ahead",
            "synchronise the clocks (NTP)",
        )
    if by_broker:
        age_s = max(0.0, -ahead_s[by_broker[0]])
        yield OK, f"not behind the broker's, which stamped the newest of {by_broker[0]} {age_s:.0f} s ago", ""
    elif not future:
        why = "the senders stamp the records, not the broker (message.timestamp.type is not LogAppendTime)"
        yield SKIPPED, f"the broker's cannot be known: {why}", ""
