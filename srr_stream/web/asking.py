"""Asking scorers and trainer what they say of themselves, over HTTP, without ever waiting long for one."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from urllib.error import HTTPError, URLError
from urllib.request import ProxyHandler, build_opener

from srr_stream.web.states import Answer, Answers

_MAX_SIZE = 4 << 20
"""Bytes of an answer; six hours of history are a tenth of it."""


class StatusAsker:
    """Asks ``/statusz`` of all addresses at once. Whoever asks meanwhile gets the same answers.

    Parameters
    ----------
    scorer_urls, trainer_url
        Called for the addresses, each ``http://host:port``; that of the trainer may be None while nobody knows it.
    timeout_s
        How long all together may take; who has not answered then is not reached.
    max_age_s
        How old an answer may be.
    """

    def __init__(
        self,
        scorer_urls: Callable[[], Sequence[str]],
        trainer_url: Callable[[], str | None],
        *,
        timeout_s: float = 0.8,
        max_age_s: float = 0.5,
    ) -> None:
        self._scorer_urls = scorer_urls
        self._trainer_url = trainer_url
        self._timeout_s = timeout_s
        self._max_age_s = max_age_s
        # No proxy of the environment: these addresses are of this machine, or beside it.
        self._opener = build_opener(ProxyHandler({}))
        self._pool = ThreadPoolExecutor(max_workers=16, thread_name_prefix="statusz")
        self._asked: dict[tuple[str, bool], tuple[float, Future[Answer]]] = {}
        self._lock = threading.Lock()

    def __call__(self, with_history: bool = False) -> Answers:
        """Return what they say."""
        until = time.monotonic() + self._timeout_s
        urls = tuple(self._scorer_urls())
        trainer_url = self._trainer_url()
        scorers = [self._ask(url, with_history) for url in urls]
        trainer = self._ask(trainer_url, False) if trainer_url is not None else None
        asked = [*scorers, *([trainer] if trainer is not None else [])]
        wait(asked, timeout=max(0.0, until - time.monotonic()))
        return Answers(
            tuple(self._answer(url, future) for url, future in zip(urls, scorers, strict=True)),
            self._answer(trainer_url, trainer)
            if trainer is not None and trainer_url is not None
            else Answer("", problem="has not said yet where it listens"),
        )

    def close(self) -> None:
        """Ask no more; what is being asked is not waited for."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _ask(self, url: str, with_history: bool) -> Future[Answer]:
        """Return the answer that is on its way or fresh enough, or ask anew."""
        now = time.monotonic()
        with self._lock:
            at, future = self._asked.get((url, with_history), (-1e9, None))
            if future is None or (future.done() and now - at > self._max_age_s):
                future = self._pool.submit(self._fetch, url, with_history)
                self._asked[url, with_history] = now, future
            return future

    def _answer(self, url: str, future: Future[Answer]) -> Answer:
        if not future.done():
            return Answer(url, problem=f"does not answer within {self._timeout_s:g} s")
        return future.result()

    def _fetch(self, url: str, with_history: bool) -> Answer:
        address = f"{url}/statusz{'?history=1' if with_history else ''}"
        try:
            with self._opener.open(address, timeout=self._timeout_s) as answer:
                content = json.loads(answer.read(_MAX_SIZE))
        except HTTPError as error:
            error.close()
            return Answer(url, problem=f"answers {error.code} at /statusz; it is another version, or something else")
        except URLError as error:
            why = error.reason
            return Answer(url, problem=why.strerror or str(why) if isinstance(why, OSError) else str(why))
        except (OSError, ValueError) as error:
            return Answer(url, problem=str(error) or type(error).__name__)
        if not isinstance(content, dict):
            return Answer(url, problem="its /statusz is no JSON object")
        return Answer(url, content)
