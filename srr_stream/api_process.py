"""The API and the page in a process of their own, so that a page, a scrape or a label never takes time from scoring.

:func:`run_api` is that process, alone or as a child of ``run``; how a child is watched and started again is in
:mod:`srr_stream.child`. It learns from its parent where scorer and trainer listen.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from consumers.errors import ConsumersError
from consumers.records import RawRecord
from srr_stream.child import ChildProcess, begin_child
from srr_stream.errors import SrrStreamError
from srr_stream.logs import get_logger, set_up_logging
from srr_stream.settings import Settings
from srr_stream.threads import limit_threads

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from consumers.tail import TopicTail
    from srr_stream.labels import LabelBook
    from srr_stream.live_model import LiveModel
    from srr_stream.web.desk import Desk

log = get_logger(__name__)

OnRecords = Callable[[Sequence[RawRecord]], None]

_NICE = 5
"""Of a child: scoring goes first. The trainer, whose niceness is a setting, is nicer still by default."""
_GRACE_S = 2
"""For requests in progress when it is to stop."""
_SOON_S = 1.0
_TICK_S = 0.2


# --- the process itself


@dataclass
class Ports:
    """Where scorer and trainer of this machine listen, as far as is known. None: nobody has said yet."""

    scorer: int | None
    trainer: int | None

    @classmethod
    def of(cls, settings: Settings) -> Ports:
        """Return those of the settings; a free one, which 0 asks for, only its process knows."""
        return cls(settings.http.scorer_port or None, settings.http.trainer_port or None)


def run_api(
    settings: Settings,
    *,
    should_stop: Callable[[], bool],
    ports: Ports | None = None,
    on_port: Callable[[int], None] = lambda port: None,
    news: Callable[[], Settings | None] = lambda: None,
) -> None:
    """Serve the API and the page until `should_stop`.

    Parameters
    ----------
    ports
        May change while this runs; None: as the settings say.
    on_port
        Called with the port, as soon as requests are answered.
    news
        Asked again and again for settings to go by from then on.

    Raises
    ------
    OSError
        If the port is taken, or ``api.state_dir`` cannot be written.
    SrrStreamError, ConsumersError
        If something is missing that an operator must provide.
    """
    import uvicorn

    from srr_stream import assembly
    from srr_stream.web.access import is_loopback
    from srr_stream.web.app import make_app

    api = settings.api
    with ExitStack() as stack:
        listener = stack.enter_context(_listening(api.host, api.port))
        port = listener.getsockname()[1]
        token, is_made = assembly.api_token(settings)
        limit_threads(1)
        parts = stack.enter_context(_parts(settings, ports or Ports.of(settings)))
        is_open = is_loopback(api.host)
        public = urlsplit(api.public_url).hostname if api.public_url is not None else None
        app = make_app(
            parts.desk,
            token=token,
            is_open=is_open,
            hosts=[name for name in (api.host, public) if name is not None],
            record_format=settings.record.format,
        )
        logging.getLogger("uvicorn").setLevel(logging.WARNING)  # it would tell of its own start and end
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                log_config=None,
                access_log=False,
                lifespan="off",
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_GRACE_S,
            )
        )
        # In a thread of its own, where it leaves the signals to this one.
        thread = threading.Thread(target=server.run, args=([listener],), name="http", daemon=True)
        thread.start()
        try:
            address = f"http://{_in_address(api.host)}:{port}/"
            if is_made and is_open:  # nobody else can have been told; who reads this log may change things anyway
                log.info("API and review page: %s#token=%s", address, token)
            else:
                log.info("API and review page: %s", address)
            on_port(port)
            pause = threading.Event()
            while not should_stop() and thread.is_alive():
                parts.look(news())
                pause.wait(_TICK_S)
        finally:
            server.should_exit = True
            thread.join(_GRACE_S + 1)


def _in_address(host: str) -> str:
    return f"[{host}]" if ":" in host else host


@contextmanager
def _listening(host: str, port: int) -> Iterator[socket.socket]:
    """Give a socket that listens."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        is_plain = error.errno is not None and error.errno > 0  # else of a name that nobody knows
        why = os.strerror(error.errno or 0) if is_plain else error.strerror or str(error)
        raise OSError(
            error.errno, f"the API cannot listen on {host}:{port}: {why}; change api.port or api.host"
        ) from error
    with listener:
        yield listener


@dataclass
class _Parts:
    """What stands behind the routes."""

    desk: Desk
    live_model: LiveModel
    records: _Following
    topic: str
    """Of the flagged records."""

    def look(self, settings: Settings | None) -> None:
        """Do what is due: follow the topic of flagged records anew, go by changed settings."""
        from srr_stream import assembly

        if settings is not None:
            assembly.log_as_set(settings)
            rate = settings.threshold.false_alarm_rate
            self.live_model.set_false_alarm_rate(rate)
            self.desk.set_false_alarm_rate(rate)
            if self.topic != _topic_of_flagged(settings):  # what was in the former one stays in the index
                self.topic = _topic_of_flagged(settings)
                self.records.follow(lambda on_records: _tail_of_flagged(settings, on_records))
        self.records.look()


@contextmanager
def _parts(settings: Settings, ports: Ports) -> Iterator[_Parts]:
    """Give the desk, with everything that it stands on at work."""
    from consumers.tail import TopicTail
    from srr_stream import assembly
    from srr_stream.flagged import FlaggedIndex
    from srr_stream.labels import LabelBook, LabelTopic
    from srr_stream.web.asking import StatusAsker
    from srr_stream.web.desk import Desk

    connection = assembly.kafka_connection(settings.kafka)
    api, labels_topic = settings.api, settings.labels.topic
    with ExitStack() as stack:
        book = LabelBook() if labels_topic is not None else None
        records = _Following(lambda on_records: _tail_of_flagged(settings, on_records))
        index = FlaggedIndex(
            api.state_dir, keep=api.keep_flagged, label_of=_labels_in(book), on_rebuilt=records.again.set
        )
        stack.callback(index.close)
        registry = assembly.make_registry(settings)
        live_model = assembly.make_live_model(settings, registry)
        live_model.keeps_previous = False
        details = assembly.make_details(settings, registry, live_model, book)
        stack.callback(details.close)
        asker = StatusAsker(lambda: _scorer_urls(settings, ports), lambda: _trainer_url(settings, ports))
        stack.callback(asker.close)
        writer = LabelTopic(connection, labels_topic) if labels_topic is not None else None
        if writer is not None:
            stack.callback(writer.close)
        followed: dict[str, Callable[[], str | None]] = {"flagged records": lambda: records.problem}
        desk = Desk(
            index=index,
            registry=registry,
            live_model=live_model,
            details=details,
            ask=asker,
            book=book,
            writer=writer,
            false_alarm_rate=settings.threshold.false_alarm_rate,
            problems=lambda: [f"{name}: {why}" for name, ask in followed.items() if (why := ask()) is not None],
        )
        if labels_topic is not None:
            labels = TopicTail([labels_topic], connection=connection, on_records=desk.hear_labels, name="labels")
            followed["labels"] = lambda: labels.problem
            stack.callback(_soon, labels.stop)
            labels.start()
        records.on_records = index.add
        stack.callback(_soon, records.stop)
        records.again.set()
        stack.callback(live_model.stop)
        live_model.start()
        yield _Parts(desk, live_model, records, _topic_of_flagged(settings))


def _topic_of_flagged(settings: Settings) -> str:
    return settings.output.alerts_topic or settings.output.scores_topic or ""


def _tail_of_flagged(settings: Settings, on_records: OnRecords) -> TopicTail:
    from consumers.tail import TopicTail
    from srr_stream import assembly

    return TopicTail(
        [_topic_of_flagged(settings)],
        connection=assembly.kafka_connection(settings.kafka),
        on_records=on_records,
        last=settings.api.keep_flagged,
        name="flagged records",
    )


def _soon(stop: Callable[[], None]) -> None:
    """Have something stop, and go on after a second: one that waits for a lost broker dies with the process."""
    thread = threading.Thread(target=stop, daemon=True)
    thread.start()
    thread.join(_SOON_S)


class _Following:
    """Follows a topic, from its beginning again when told so."""

    def __init__(self, make: Callable[[OnRecords], TopicTail]) -> None:
        self.on_records: OnRecords = lambda records: None
        self.again = threading.Event()
        """Set: begin anew."""
        self._make = make
        self._tail: TopicTail | None = None

    @property
    def problem(self) -> str | None:
        """Why nothing comes, in words; None if all is well."""
        return self._tail.problem if self._tail is not None else None

    def follow(self, make: Callable[[OnRecords], TopicTail]) -> None:
        """Follow another topic from the next look on."""
        self._make = make
        self.again.set()

    def look(self) -> None:
        """Begin, or begin anew, if that is due."""
        if self.again.is_set():
            self.again.clear()
            self.stop()
            self._tail = self._make(self.on_records)
            self._tail.start()

    def stop(self) -> None:
        """End; twice is fine."""
        if self._tail is not None:
            self._tail.stop()


def _labels_in(book: LabelBook | None) -> Callable[[str], str | None]:
    def label_of(id: str) -> str | None:
        label = book.get(id) if book is not None else None
        return label.label if label is not None else None

    return label_of


def _scorer_urls(settings: Settings, ports: Ports) -> list[str]:
    if settings.api.scorer_urls:
        return list(settings.api.scorer_urls)
    return [_local(settings, ports.scorer)] if ports.scorer is not None else []


def _trainer_url(settings: Settings, ports: Ports) -> str | None:
    if settings.api.trainer_url is not None:
        return settings.api.trainer_url
    return _local(settings, ports.trainer) if ports.trainer is not None else None


def _local(settings: Settings, port: int) -> str:
    """Return how this machine reaches a port of its own."""
    host = settings.http.host
    return f"http://{_in_address('127.0.0.1' if host in ('0.0.0.0', '::', '') else host)}:{port}"


# --- as a child


def _child(settings: Settings, pipe: Connection, log_level: int) -> None:
    from srr_stream import assembly

    set_up_logging(log_level, role="api")
    assembly.log_as_set(settings)
    ports = Ports.of(settings)
    latest: list[Settings] = []

    def hear(message: Any) -> None:
        if isinstance(message, Ports):
            ports.scorer, ports.trainer = message.scorer or ports.scorer, message.trainer or ports.trainer
        else:
            latest[:] = [message]

    stop = begin_child(pipe, on_message=hear)
    os.nice(_NICE)
    try:
        run_api(
            settings,
            should_stop=stop.is_set,
            ports=ports,
            on_port=pipe.send,
            news=lambda: latest.pop() if latest else None,
        )
    except (SrrStreamError, ConsumersError, OSError) as error:
        log.error("%s", error)
        raise SystemExit(3) from error


class ApiProcess(ChildProcess):
    """An API that is always there: started, watched, restarted with back-off.

    Parameters
    ----------
    settings
        Handed to the child.
    first_restart_s
        Wait before the first restart; doubles with each further one, up to a minute.
    on_restart
        Called from the watching thread whenever the child is started anew.
    """

    def __init__(
        self, settings: Settings, *, first_restart_s: float = 1.0, on_restart: Callable[[], None] = lambda: None
    ) -> None:
        self.port = 0
        """Where the API listens; 0 while it does not."""
        self._ports = Ports.of(settings)
        super().__init__(
            _child,
            settings,
            name="API",
            first_restart_s=first_restart_s,
            on_message=self._receive,
            on_death=self._note_death,
            on_restart=on_restart,
        )

    def tell(self, *, scorer_port: int | None = None, trainer_port: int | None = None) -> None:
        """Say where scorer and trainer listen, as soon as that is known; the same twice is said once."""
        told = Ports(scorer_port or self._ports.scorer, trainer_port or self._ports.trainer)
        if told != self._ports:
            self._ports = told
            self.send(told)

    def _receive(self, port: int) -> None:
        self.port = port
        self.send(self._ports)  # a child that was started anew knows nothing yet

    def _note_death(self, why: str, restart_s: float) -> None:
        self.port = 0
