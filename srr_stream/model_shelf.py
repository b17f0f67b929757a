"""Models of past versions, loaded when somebody asks about a record that one of them has judged."""

from __future__ import annotations

import threading
from collections import OrderedDict

from srr_stream.errors import ModelRefused, NoModel
from srr_stream.live_model import Live, LiveModel
from srr_stream.registry import Registry

_N_LOADED = 3
"""Models kept in memory beside the live one."""


class ModelShelf:
    """The live model and some of the registry's others, each checked as the live one is.

    Any thread may ask; one model is loaded at a time.
    """

    def __init__(self, live_model: LiveModel, registry: Registry) -> None:
        self._live_model = live_model
        self._registry = registry
        self._loaded: OrderedDict[int, Live] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, version: int | None = None) -> Live:
        """Return a version, the live one if None.

        Raises
        ------
        NoModel
            With the reason: not_found, refused, or not_ready while there is none yet.
        RegistryError
            If the registry cannot be read.
        """
        live = self._live_model.current
        if version is None:
            if live is None:
                raise NoModel(f"there is no model yet: {self._live_model.problem or 'none'}", reason="not_ready")
            return live
        if live is not None and live.version == version:
            return live
        with self._lock:
            if version not in self._loaded:
                self._loaded[version] = self._load(version)
            self._loaded.move_to_end(version)
            while len(self._loaded) > _N_LOADED:
                self._loaded.popitem(last=False)
            return self._live_model.with_rate(self._loaded[version])

    def _load(self, version: int) -> Live:
        there = self._registry.versions()
        if version not in there:
            raise NoModel(f"version {version} is not in the registry; there are {there}", reason="not_found")
        try:
            return self._live_model.load(version)
        except ModelRefused as error:
            raise NoModel(f"version {version} is refused ({error.reason}): {error}", reason="refused") from error
