"""``doctor``'s checks of this machine, of the registry, and of the service if it runs."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from fsspec.core import split_protocol

from srr_stream import assembly
from srr_stream.doctor.facts import FAILURE, OK, SKIPPED, WARNING, Facts, Findings
from srr_stream.errors import ModelRefused, RegistryError

_LOW_DISK, _NO_DISK = 1 << 30, 100 << 20
_LOW_MEMORY = 1 << 30
_WINDOW_COPIES = 4
"""A training holds a window's pictures about so many times."""
_MODEL_BYTES = 10 << 20
"""Of a version, where there is none yet to measure."""
_ANOTHER = "srr-stream models rollback, or promote another"


def disk(facts: Facts) -> Findings:
    """Look whether there is room for models and for the index of flagged records."""
    settings = facts.settings
    places = {"api.state_dir": settings.api.state_dir} if settings.api.enabled else {}
    folder = _local(settings.registry.url)
    needed = 0
    if folder is not None:
        places["registry.url"] = folder
        try:
            sizes = facts.registry.sizes().values()
        except RegistryError:  # the check of the registry has it
            sizes = {}.values()
        needed = (settings.registry.keep + 2) * max(sizes, default=_MODEL_BYTES)
    for setting, path in places.items():
        at = _nearest(path)
        free = facts.world.disk_free(at)
        text = f"{setting}: {_size(free)} free at {at}"
        low = max(_LOW_DISK, needed) if setting == "registry.url" else _LOW_DISK
        if free < _NO_DISK:
            yield FAILURE, text, "make room: nothing can be kept there"
        elif free < low:
            yield WARNING, f"{text}, {_size(low)} should be", "make room, or lower registry.keep or api.keep_flagged"
        else:
            yield OK, text, ""
    if folder is None:
        yield SKIPPED, f"registry.url: the space of {settings.registry.url} is not known", ""


def memory_left(facts: Facts) -> Findings:
    """Look whether there is memory for scorer and trainer."""
    known = facts.world.memory()
    if known is None:
        yield SKIPPED, "how much there is cannot be known here", ""
        return
    total, free = known
    settings = facts.settings
    limit = settings.training.memory_limit
    image = assembly.record_schema(settings.record).image_field
    needed = _LOW_MEMORY
    if image is not None and image.image is not None:
        needed += _WINDOW_COPIES * image.image.n_bytes * settings.window.max_size
    text = f"{_size(free)} of {_size(total)} free"
    if limit is not None and int(limit) > total:
        yield (
            WARNING,
            f"{text}; training.memory_limit is {_size(int(limit))}, more than there is",
            "lower it: the trainer shall end before the machine does",
        )
    if free < needed:
        yield WARNING, f"{text}; scorer and trainer want about {_size(needed)}", "lower window.max_size, or add memory"
    else:
        yield OK, text, ""


def device(facts: Facts) -> Findings:
    """Look whether the devices and processors that the settings ask for are there."""
    settings, devices = facts.settings, facts.world.devices()
    asked = {"training.device": settings.training.device, "scoring.device": settings.scoring.device}
    for setting, device in asked.items():
        parts = re.fullmatch(r"(auto|cpu|cuda|mps)(?::(\d+))?", device)
        if parts is None:
            yield FAILURE, f"{setting} is {device}; allowed: auto, cpu, cuda, cuda:1, …", f"correct {setting}"
        elif parts[1] == "cuda" and int(parts[2] or 0) >= len(devices.cuda):
            yield (
                FAILURE,
                f"{setting} is {device}, and PyTorch {devices.torch} sees {len(devices.cuda)} CUDA devices",
                "install a driver and a PyTorch that fit each other, or set it to auto or cpu",
            )
    for setting, n in {
        "training.n_threads": settings.training.n_threads,
        "scoring.n_threads": settings.scoring.n_threads,
    }.items():
        if n is not None and n > devices.n_processors:
            yield (
                WARNING,
                f"{setting} is {n}, and there are {devices.n_processors} processors here",
                f"set {setting} to at most {devices.n_processors}",
            )
    cuda = ", ".join(devices.cuda) or "no CUDA device"
    yield OK, f"PyTorch {devices.torch}, {devices.n_processors} processors, {cuda}", ""


def ports(facts: Facts) -> Findings:
    """Look whether the ports are free, or taken by this very service."""
    settings = facts.settings
    wanted = {
        "http.scorer_port": (settings.http.host, settings.http.scorer_port),
        "http.trainer_port": (settings.http.host, settings.http.trainer_port),
    }
    if settings.api.enabled:
        wanted["api.port"] = (settings.api.host, settings.api.port)
    ports = [port for _, port in wanted.values() if port]
    doubled = sorted({port for port in ports if ports.count(port) > 1})
    if doubled:
        yield FAILURE, f"port {doubled[0]} is asked for twice", "give each of http.* and api.port its own"
    free, ours = [], []
    for setting, (host, port) in wanted.items():
        if port == 0 or facts.world.can_listen(host, port):
            free.append(str(port) if port else f"{setting} takes any")
        elif _is_ours(facts, host, port):
            ours.append(str(port))
        else:
            yield (
                FAILURE,
                f"{setting}: {host}:{port} is taken, and not by this service",
                f"free it, or change {setting}",
            )
    parts = [f"free: {', '.join(free)}"] * bool(free) + [f"taken by the running service: {', '.join(ours)}"] * bool(
        ours
    )
    if parts:
        yield OK, "; ".join(parts), ""


def _is_ours(facts: Facts, host: str, port: int) -> bool:
    answer = facts.world.ask(f"{_address(host, port)}/metrics")
    return answer is not None and "srr_" in answer[1]


def token(facts: Facts) -> Findings:
    """Look whether the API's token can be read, and by nobody else."""
    api = facts.settings.api
    if not api.enabled:
        yield SKIPPED, "api.enabled is false", ""
        return
    if api.token is not None:
        yield OK, "api.token is set", ""
        return
    setting = "api.token_file" if api.token_file is not None else "api.state_dir"
    path = api.token_file or api.state_dir / "api-token"
    if api.token_file is None and not path.exists():
        yield OK, f"is made at the first start, in {path}", ""
        return
    try:
        is_empty = not path.read_text(encoding="utf-8").strip()
        mode = path.stat().st_mode & 0o777
    except OSError as error:
        yield FAILURE, f"{setting}: {path} cannot be read: {error.strerror}", "let the user of the service read it"
        return
    if is_empty:
        yield FAILURE, f"{setting}: {path} is empty", "write a long random text into it, or remove it"
    elif mode & 0o077:
        yield WARNING, f"{setting}: others may read {path} (mode {mode:o})", f"chmod 600 {path}"
    else:
        yield OK, f"{setting}: {path} can be read", ""


def registry(facts: Facts) -> Findings:
    """Look whether models can be kept: a probe is written and removed, no folder is made."""
    url = facts.settings.registry.url
    folder = _local(url)
    if folder is not None and not folder.exists():
        at = _nearest(folder)
        if os.access(at, os.W_OK):
            yield OK, f"{url} is made with the first model", ""
        else:
            yield (
                FAILURE,
                f"registry.url: {url} is not there, and {at} cannot be written",
                "make it, or change registry.url",
            )
        return
    facts.registry.check_writable()
    yield OK, f"{url} can be read and written", ""


def models(facts: Facts) -> Findings:
    """Look whether the model in use is whole and fits the settings."""
    versions = facts.registry.versions()
    try:
        pointer = facts.registry.pointer()
    except RegistryError as error:
        text, _, remedy = str(error).partition("; ")
        yield FAILURE, text, remedy
        return
    if pointer.champion is None:
        waiting = f"; version {pointer.challenger} waits for a person" if pointer.challenger is not None else ""
        remedy = f"srr-stream models promote {pointer.challenger}" if waiting else ""
        yield (WARNING if waiting else OK), f"no model is in use yet; {_many(versions)}{waiting}", remedy
        return
    champion = pointer.champion
    if champion not in versions:
        yield (
            FAILURE,
            f"the champion, version {champion}, is not there",
            _ANOTHER,
        )
        return
    from srr_stream.live_model import check_canary

    try:
        model, manifest = facts.registry.load(champion)
        check_canary(model, manifest.canary)
    except ModelRefused as error:
        yield FAILURE, str(error), _ANOTHER
        return
    if manifest.schema_digest != assembly.record_schema(facts.settings.record).digest:
        yield (
            FAILURE,
            f"the champion, version {champion}, was trained on other fields than record.fields: it is refused",
            "srr-stream train --once, or give each schema a registry.url of its own",
        )
        return
    yield OK, f"{_many(versions)}; champion is version {champion} of {manifest.created_at}, and good", ""


def service(facts: Facts) -> Findings:
    """Ask the service, if it runs here, how it is."""
    http = facts.settings.http
    for role, port in (("scorer", http.scorer_port), ("trainer", http.trainer_port)):
        if not port:
            yield SKIPPED, f"{role}: http.{role}_port is 0, so where it listens is not known", ""
            continue
        address = _address(http.host, port)
        live, ready = facts.world.ask(f"{address}/livez"), facts.world.ask(f"{address}/readyz")
        if live is None or ready is None:
            yield SKIPPED, f"{role}: none answers on {address}", ""
        elif live[0] != 200:
            yield FAILURE, f"{role}: {live[1].strip()[:200]}", "start it again, and look into its log"
        elif ready[0] != 200:
            yield WARNING, f"{role}: not ready: {ready[1].strip()[:200]}", "wait for what it says, or mend it"
        else:
            yield OK, f"{role}: ready: {ready[1].strip()[:200]}", ""


def _many(versions: Sequence[int]) -> str:
    return f"{len(versions)} version{'' if len(versions) == 1 else 's'}"


def _address(host: str, port: int) -> str:
    near = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{near}:{port}"


def _local(url: str) -> Path | None:
    protocol, path = split_protocol(url)
    return Path(path) if protocol in (None, "file", "local") else None


def _nearest(path: Path) -> Path:
    """Return the path, or the nearest folder above it that is there."""
    here = path.absolute()
    while not here.exists():
        here = here.parent
    return here


def _size(n: int) -> str:
    return f"{n / (1 << 30):.1f} GiB" if n >= 1 << 30 else f"{n / (1 << 20):.0f} MiB"
