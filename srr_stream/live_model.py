"""The model that scores, replaced by one assignment between two batches.

A thread looks at the registry's pointer, loads what it names and checks it; only a model that passes every check is
assigned to :attr:`LiveModel.current`. The scorer reads that attribute once a batch: a batch is scored by one version.
The challenger that waits for a person is loaded and checked the same way, to be scored beside.
"""

from __future__ import annotations

import base64
import threading
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from models.pictures import is_picture
from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.logs import get_logger
from srr_stream.registry import Manifest, Registry

if TYPE_CHECKING:
    from models.detector import Model

log = get_logger(__name__)

CANARY_TOLERANCE = 1e-6
"""Relative: another machine's matrix product differs in the last bits, a damaged model by much more."""
PICTURE_CANARY_TOLERANCE = 1e-3
"""The same for networks in float32, of which each layer adds to the difference, and a Gaussian multiplies it."""


@dataclass(frozen=True)
class Live:
    """A model that may score, with what is known of it."""

    model: Model
    manifest: Manifest

    @property
    def version(self) -> int:
        """The number that every verdict of this model carries."""
        return self.manifest.version


class LiveModel:
    """The champion of a registry, loaded and checked.

    Parameters
    ----------
    schema_digest
        Digest of the schema that records are decoded by; a model trained on another one is refused.
    false_alarm_rate
        α of the live settings; it overrides the one that the model was trained with.
    device, n_threads
        Where models of pictures score: see :meth:`models.detector.Model.on`.
    keeps_previous
        Whether what a swap replaces is kept for :attr:`previous`; a second model takes as much memory again.
    on_swap
        Called with the new `Live` after every swap.
    on_refusal
        Called with the version and the reason (a metric label) after every refusal.
    on_rollback
        Called with the version that was taken out of use and the reason in words, after :meth:`roll_back` did it.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        schema_digest: str,
        false_alarm_rate: float,
        poll_every_s: float = 1.0,
        device: str = "cpu",
        n_threads: int | None = None,
        keeps_previous: bool = True,
        on_swap: Callable[[Live], None] | None = None,
        on_refusal: Callable[[int, str], None] | None = None,
        on_rollback: Callable[[int, str], None] | None = None,
    ) -> None:
        self.current: Live | None = None
        self.previous: Live | None = None
        """What `current` replaced; None once nobody needs it any more."""
        self.challenger: Live | None = None
        """What waits for a person."""
        self.problem: str | None = None
        """Why the registry's champion is not live, in words; None if it is, or if there is none yet."""
        self._registry = registry
        self._schema_digest = schema_digest
        self.false_alarm_rate = false_alarm_rate
        """α in use; see :meth:`set_false_alarm_rate`."""
        self._poll_every_s = poll_every_s
        self._device, self._n_threads = device, n_threads
        self.keeps_previous = keeps_previous
        """Whether what the next swap replaces is kept."""
        self._on_swap = on_swap
        self._on_refusal = on_refusal
        self._on_rollback = on_rollback
        self._refused: int | None = None
        self._refused_challenger: int | None = None
        self._rollback: tuple[int, int, str] | None = None
        self._lock = threading.Lock()
        """Of what the scorer lets go of while the watching thread puts something else in its place."""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def refresh(self) -> bool:
        """Look at the pointer once; load, check and swap if it names another version. Return whether it swapped."""
        try:
            self._roll_back()
            pointer = self._registry.pointer()
            has_swapped = self._follow(pointer.champion)
        except RegistryError as error:
            self._note(str(error))
            return False
        self._look_at_challenger(pointer.challenger)
        return has_swapped

    def _follow(self, champion: int | None) -> bool:
        if champion is not None and champion == self._refused:
            return False
        if champion == (self.current.version if self.current else None):
            self.problem = self._refused = None
            return False
        if champion is None:
            self._note(f"registry {self._registry.url} names no champion any more; the live model stays")
            return False
        try:
            live = self.load(champion)
        except ModelRefused as error:
            self._refuse(champion, error)
            return False
        with self._lock:
            live = self.with_rate(live)
            self.previous, self.current = self.current if self.keeps_previous else None, live
        self.problem = self._refused = None
        name = live.model.representation_name
        log.info("version %d (%s) is live: %s", live.version, name, live.manifest.reason, version=live.version)
        if self._on_swap is not None:
            self._on_swap(live)
        return True

    def load(self, version: int) -> Live:
        """Load a version and check it, without making it live.

        Raises
        ------
        ModelRefused
            If it is damaged, was trained on another schema, or does not score its canary as it did.
        RegistryError
            If it cannot be read.
        """
        model, manifest = self._registry.load(version)
        if manifest.schema_digest != self._schema_digest:
            raise ModelRefused(
                "it was trained on another schema than record.fields of these settings; train anew", reason="schema"
            )
        model = model.on(self._device, self._n_threads)
        check_canary(model, manifest.canary)
        return Live(model.with_false_alarm_rate(self.false_alarm_rate), manifest)

    def set_false_alarm_rate(self, false_alarm_rate: float) -> None:
        """Judge by another α from the next batch on, whichever model is live then."""
        if false_alarm_rate == self.false_alarm_rate:
            return
        with self._lock:
            self.false_alarm_rate = false_alarm_rate
            if self.current is not None:
                self.current = self.with_rate(self.current)
            if self.previous is not None:
                self.previous = self.with_rate(self.previous)
            if self.challenger is not None:
                self.challenger = self.with_rate(self.challenger)

    def with_rate(self, live: Live) -> Live:
        """Return the same, by the α in use: it may have changed while a model was loaded."""
        if live.model.false_alarm_rate == self.false_alarm_rate:
            return live
        return Live(live.model.with_false_alarm_rate(self.false_alarm_rate), live.manifest)

    def roll_back(self, version: int, previous: int, reason: str) -> None:
        """Have `previous` made the champion again, by the thread that watches, if the pointer still names the two so.

        Whoever asks may be one of several scorers: the first does it, the others find it done. While the registry
        cannot be written, it is tried again with every look.
        """
        self._rollback = version, previous, reason

    def forget_previous(self, version: int | None = None) -> None:
        """Let go of the replaced model, if it is this version; None: whichever it is."""
        with self._lock:
            if self.previous is not None and version in (None, self.previous.version):
                self.previous = None

    def drop_challenger(self, version: int) -> None:
        """Do not score with this challenger any more; it goes on waiting in the registry."""
        with self._lock:
            self._refused_challenger = version
            if self.challenger is not None and self.challenger.version == version:
                self.challenger = None

    def start(self) -> None:
        """Watch the pointer from a thread of its own."""
        self._thread = threading.Thread(target=self._watch, name="live-model", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; twice is fine."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def _watch(self) -> None:
        while not self._stop.is_set():
            try:
                self.refresh()
            except (
                Exception
            ) as error:  # top of the thread: an object store may raise anything, and must not end the watch
                log.exception("looking for a new model failed")
                self.problem = f"looking for a new model failed: {type(error).__name__}: {error}"
            self._stop.wait(self._poll_every_s)

    def _roll_back(self) -> None:
        if self._rollback is None:
            return
        version, previous, reason = self._rollback
        pointer = self._registry.pointer()
        if pointer.champion == version and (pointer.previous != previous or pointer.rolled_back == previous):
            log.error(
                "%s, but is not rolled back: version %d is not what the registry goes back to;"
                " srr-stream models promote %d does it by hand",
                reason,
                previous,
                previous,
                version=version,
            )
        elif pointer.champion == version:
            try:
                self._registry.rollback(reason=f"automatic rollback: {reason}", version=version)
            except ModelRefused as error:
                log.error("version %d cannot be rolled back: %s", version, error, version=version)
                self._rollback = None
                return
            log.warning("rolled back: %s", reason, version=previous, rolled_back=version)
            if self._on_rollback is not None:
                self._on_rollback(version, reason)
        self._rollback = None

    def _look_at_challenger(self, version: int | None) -> None:
        """Load the challenger, if it is another than before; one that cannot be is not tried again."""
        waiting = self.challenger  # read once: the scorer may drop it meanwhile
        if version == (waiting.version if waiting is not None else None):
            return
        with self._lock:
            self.challenger = None
        if version is None or version == self._refused_challenger:
            return
        try:
            challenger = self.load(version)
            with self._lock:
                self.challenger = self.with_rate(challenger)
        except ModelRefused as error:
            self._refused_challenger = version
            log.warning("challenger %d refused (%s): %s", version, error.reason, error, version=version)
        except RegistryError as error:
            log.warning("challenger %d cannot be loaded yet: %s", version, error, version=version)
        except Exception:  # it is nobody's concern yet: to try again with every look would only cost the live model
            self._refused_challenger = version
            log.exception(
                "challenger %d cannot be loaded; it waits, but does not score along", version, version=version
            )

    def _refuse(self, version: int, error: ModelRefused) -> None:
        """Keep the old model, and do not try this one again."""
        self._refused = version
        self._note(f"version {version} refused ({error.reason}): {error}", version=version)
        if self._on_refusal is not None:
            self._on_refusal(version, error.reason)

    def _note(self, problem: str, **context: object) -> None:
        if problem != self.problem:
            log.warning("%s", problem, **context)
        self.problem = problem


def make_canary(model: Model) -> dict[str, Any]:
    """Return made-up rows and the scores that `model` gives them, as JSON, to be checked wherever it is loaded."""
    columns = model.canary()
    return {
        "columns": {name: _to_json(values) for name, values in columns.items()},
        "categorical": [name for name, values in columns.items() if values.dtype == object],
        "score": model.score(columns).score.tolist(),
    }


def check_canary(model: Model, canary: Mapping[str, Any]) -> None:
    """Raise `ModelRefused` unless the model scores the canary rows as it did when it was made."""
    try:
        columns = {
            name: _column(values, is_categorical=name in canary["categorical"])
            for name, values in canary["columns"].items()
        }
        expected = np.asarray(canary["score"], dtype=np.float64)
        actual = model.score(columns).score
    except (AttributeError, KeyError, TypeError, ValueError, zlib.error) as error:
        raise ModelRefused(f"cannot score its canary batch: {error!r}", reason="canary") from error
    if actual.shape != expected.shape or not len(actual):
        raise ModelRefused(f"canary batch has {len(actual)} rows and {expected.size} scores", reason="canary")
    tolerance = PICTURE_CANARY_TOLERANCE if model.takes_pictures else CANARY_TOLERANCE
    if not np.allclose(actual, expected, rtol=tolerance, atol=tolerance):
        worst = float(np.max(np.abs(actual - expected)))
        raise ModelRefused(f"scores its canary batch differently, by up to {worst:.3g}", reason="canary")


def _to_json(values: NDArray[Any]) -> Any:
    """Return a column of values as a list, of pictures as compressed bytes."""
    if is_picture(values):
        content = base64.b64encode(zlib.compress(values.tobytes())).decode()
        return {"shape": list(values.shape), "zlib": content}
    return [_plain(value) for value in values]


def _plain(value: object) -> float | str | None:
    if value is None or isinstance(value, str):
        return value
    number = float(value)  # type: ignore[arg-type]  # an element of a numeric column
    return None if np.isnan(number) else number


def _column(values: Any, *, is_categorical: bool) -> NDArray[Any]:
    if isinstance(values, dict):
        content = zlib.decompress(base64.b64decode(values["zlib"]))
        return np.frombuffer(content, dtype=np.uint8).reshape(values["shape"])
    if is_categorical:
        return np.array(values, dtype=object)
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
