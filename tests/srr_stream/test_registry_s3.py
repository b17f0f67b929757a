"""The registry on S3, as moto's server here has it: conditions, faults at every request, a server that goes away."""

from __future__ import annotations

import errno
import json
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
from click.testing import CliRunner
from fsspec.core import url_to_fs
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from s3fs import S3FileSystem
from werkzeug.serving import WSGIRequestHandler, make_server

from models.persistence import model_to_parts
from models.training import TrainingConfig, train
from srr_stream.cli import main
from srr_stream.errors import ModelRefused, RegistryError
from srr_stream.live_model import make_canary
from srr_stream.registry import Manifest, Pointer, Registry, files
from srr_stream.registry.files import ObjectFiles, is_temporary, open_files

KEEP = 2
REQUESTS = ("pipe_file", "cat_file", "rm_file", "find", "ls", "info", "modified")


class Killed(BaseException):
    """What a process that dies sees: nothing is caught, nothing is cleaned up."""


class _Quiet(WSGIRequestHandler):
    def log(self, *arguments: Any) -> None:
        """Say nothing."""


class Server:
    """S3 on a port. One request at a time: the real one is as atomic, a server with threads is not."""

    def __init__(self) -> None:
        self.requests: list[str] = []
        app = DomainDispatcherApplication(create_backend_app)

        def counting(environment: Any, start_response: Any) -> Any:
            self.requests.append(f"{environment['REQUEST_METHOD']} {environment['PATH_INFO']}")
            return app(environment, start_response)

        self._server = make_server("127.0.0.1", 0, counting, request_handler=_Quiet)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def stop(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture(scope="module")
def environment() -> Iterator[pytest.MonkeyPatch]:
    """Credentials that are none, and no retries that wait."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "AWS_ACCESS_KEY_ID": "nobody",
            "AWS_SECRET_ACCESS_KEY": "nothing",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_MAX_ATTEMPTS": "1",
        }.items():
            patch.setenv(name, value)
        for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "HTTP_PROXY", "http_proxy"):
            patch.delenv(name, raising=False)
        patch.setattr(S3FileSystem, "retries", 1)
        yield patch


def _serve(environment: pytest.MonkeyPatch) -> Server:
    server = Server()
    environment.setenv("AWS_ENDPOINT_URL", server.url)
    S3FileSystem.clear_instance_cache()
    return server


@pytest.fixture(scope="module")
def server(environment: pytest.MonkeyPatch) -> Iterator[Server]:
    made = _serve(environment)
    yield made
    made.stop()
    S3FileSystem.clear_instance_cache()


def _make_bucket(server: Server) -> str:
    name = f"models-{uuid.uuid4().hex}"
    client = boto3.client("s3", endpoint_url=server.url)
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture
def url(server: Server) -> str:
    return f"s3://{_make_bucket(server)}/of/a/team"


@pytest.fixture(scope="module")
def trained() -> tuple[Manifest, bytes]:
    rng = np.random.default_rng(0)
    columns = {"a": rng.normal(size=200), "b": rng.normal(size=200)}
    model = train(columns, TrainingConfig(representation="identity"), seed=0).model
    description, weights = model_to_parts(model)
    made = Manifest(0, "2026-01-01T00:00:00+00:00", "test", {}, "abc", {}, {"seed": 0}, {}, description, {})
    return replace(made, window={"n_records": 200}, canary=make_canary(model)), weights


def in_two_hours() -> float:
    return time.time() + 7200


def at_once(n: int, work: Callable[[int], Any]) -> list[Any]:
    """Return what `n` threads that start together made."""
    results: list[Any] = []
    start = threading.Barrier(n)

    def run(i: int) -> None:
        start.wait()
        results.append(work(i))

    threads = [threading.Thread(target=run, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == n
    return results


class Through:
    """A file system of which every request goes through a function that may ask it, or not."""

    def __init__(self, fs: Any, ask: Callable[..., Any]) -> None:
        self._fs, self._ask = fs, ask

    def __getattr__(self, name: str) -> Any:
        attribute = getattr(self._fs, name)
        return partial(self._ask, name, attribute) if name in REQUESTS else attribute


def through(ask: Callable[..., Any], patch: pytest.MonkeyPatch) -> None:
    """Let the requests of all registries opened from now on go through `ask`."""

    def open_through(url: str, **options: Any) -> tuple[Any, str]:
        fs, root = url_to_fs(url, **options)
        return Through(fs, ask), root

    patch.setattr(files, "url_to_fs", open_through)


# As on a disk


def test_a_model_is_published_promoted_loaded_rolled_back_and_pruned(url: str, trained: tuple[Manifest, bytes]) -> None:
    registry = Registry(url, keep=KEEP)
    for version in range(1, 6):
        assert registry.publish(*trained).version == version
        registry.promote(version, reason=f"reason {version}")
    assert Registry(url).load(5)[1].version == 5
    assert registry.rollback(reason="flags too much") == Pointer(champion=4, previous=5)
    assert Registry(url).pointer().reason == "flags too much"
    assert registry.propose(3) == Pointer(champion=4, previous=5, challenger=3)
    assert registry.prune() == (1, 2)
    assert Registry(url).versions() == (3, 4, 5)
    assert not [name for name in open_files(url).list("versions", is_deep=True) if re.match("versions/[12]/", name)]


def test_a_version_of_another_process_is_seen_at_once(url: str, trained: tuple[Manifest, bytes]) -> None:
    reader = Registry(url)
    reader.publish(*trained)
    assert reader.versions() == (1,)
    S3FileSystem.clear_instance_cache()  # another process has another client, which knows nothing of the reader's
    Registry(url).publish(*trained)
    assert reader.versions() == (1, 2)


def test_looking_at_the_pointer_is_one_request(server: Server, url: str, trained: tuple[Manifest, bytes]) -> None:
    registry = Registry(url)
    registry.publish(*trained)
    registry.promote(1)
    server.requests.clear()
    assert registry.pointer() == Pointer(champion=1)
    assert [request.split("/")[0] for request in server.requests] == ["GET "]


def test_requests_for_a_training_and_the_check_before_it_work(url: str) -> None:
    registry = Registry(url)
    registry.request_training("drift")
    assert Registry(url).take_request() == "drift"
    assert Registry(url).take_request() is None
    registry.check_writable()
    assert open_files(url).list("", is_deep=True) == {}


def test_every_command_works_with_a_url_on_s3(url: str, trained: tuple[Manifest, bytes], tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    settings = {
        "kafka": {"bootstrap_servers": "localhost:1"},
        "input": {"topics": ["requests"], "start": "latest"},
        "record": {"fields": [{"name": "a"}, {"name": "b"}]},
        "output": {"scores_topic": "scores", "dead_letter_topic": "dead"},
        "registry": {"url": url, "keep": 2},
    }
    path.write_text(json.dumps(settings))
    for _ in range(3):
        Registry(url).publish(*trained)

    def call(command: str, *arguments: str) -> str:
        line = ["models", command, "-c", str(path), *arguments]
        result = CliRunner().invoke(main, line, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert "champion is version 2" in call("promote", "2")
    assert "champion is version 3, it was version 2" in call("promote", "3")
    assert "champion is version 2 again" in call("rollback")
    assert [row["role"] for row in json.loads(call("list", "--json"))] == [None, "champion", "previous, rolled back"]
    assert "window n_records" in call("show", "1")
    assert "do not differ" in call("diff", "1", "2")
    assert "version 3: good\npointer: good" in call("verify")
    assert call("prune", "--dry-run") == "would remove versions/1\n"
    assert call("prune") == "removed versions/1\n"


def test_what_lies_beside_the_weights_is_published_checked_and_pruned(
    url: str, trained: tuple[Manifest, bytes]
) -> None:
    made, weights = trained
    registry = Registry(url, keep=KEEP, clock=in_two_hours)
    for _ in range(3):
        registry.publish(made, weights, {"refinement.json": b"{}", "neighbours.safetensors": b"rows"})
    assert registry.beside(1, "neighbours.safetensors") == b"rows"
    assert registry.beside(1, "other") is None
    open_files(url).write("versions/1/refinement.json", b"[]")
    with pytest.raises(ModelRefused, match=r"version 1: refinement\.json is altered or torn"):
        registry.beside(1, "refinement.json")
    assert registry.load(1)[1].version == 1
    assert registry.prune() == (1,)
    assert not open_files(url).list("versions/1", is_deep=True)


def test_what_another_process_left_at_the_root_is_seen_at_once(url: str) -> None:
    files = open_files(url)
    files.write("a", b"1")
    assert files.list("", is_deep=False) == {"a": 1}
    S3FileSystem.clear_instance_cache()
    open_files(url).write("b", b"22")
    assert files.list("", is_deep=False) == {"a": 1, "b": 2}


# At once


def test_publishers_at_once_never_share_a_number(url: str, trained: tuple[Manifest, bytes]) -> None:
    def publish(i: int) -> list[int]:
        return [Registry(url).publish(*trained).version for _ in range(3)]

    numbers = sorted(number for made in at_once(8, publish) for number in made)
    assert numbers == list(range(1, 25))
    registry = Registry(url)
    assert registry.versions() == tuple(numbers)
    for version in numbers:
        registry.load(version)


def test_of_promotions_at_once_none_is_lost(url: str, trained: tuple[Manifest, bytes]) -> None:
    for _ in range(6):
        Registry(url).publish(*trained)
    pointers = at_once(6, lambda i: Registry(url).promote(i + 1))
    came_after = {pointer.previous: pointer.champion for pointer in pointers}
    chain = [came_after.pop(None)]
    while chain[-1] in came_after:
        chain.append(came_after.pop(chain[-1]))
    assert sorted(chain) == [1, 2, 3, 4, 5, 6]
    assert Registry(url).pointer().champion == chain[-1]


def test_a_pointer_that_changes_at_every_try_is_given_up_with_a_word(
    url: str, trained: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(url)
    registry.publish(*trained)
    monkeypatch.setattr(ObjectFiles, "write_if", lambda *arguments: False)
    with pytest.raises(RegistryError, match=r"cannot write current\.json: others changed it 20 times"):
        registry.promote(1)


def test_a_promotion_whose_answer_got_lost_is_not_made_twice(
    url: str, trained: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry(url)
    for version in (1, 2):
        registry.publish(*trained)
        registry.promote(version)
    write_if = ObjectFiles.write_if
    tries = []

    def lose_the_answer(*arguments: Any) -> bool:
        tries.append(write_if(*arguments))
        return False

    monkeypatch.setattr(ObjectFiles, "write_if", lose_the_answer)
    assert registry.rollback() == Pointer(champion=1, previous=2)
    assert tries == [True]


@pytest.mark.parametrize("n_before", [0, 1])
def test_a_store_that_knows_no_conditions_is_written_without(
    url: str, trained: tuple[Manifest, bytes], monkeypatch: pytest.MonkeyPatch, n_before: int
) -> None:
    for _ in range(n_before):
        Registry(url).publish(*trained)

    def refuse(name: str, request: Any, *arguments: Any, **options: Any) -> Any:
        if options.keys() & {"mode", "IfMatch"}:
            raise OSError(errno.ENOSYS, "A header you provided implies functionality that is not implemented")
        return request(*arguments, **options)

    through(refuse, monkeypatch)
    registry = Registry(url)
    version = registry.publish(*trained).version
    assert version == n_before + 1
    for _ in range(2):
        assert registry.promote(version) == Pointer(champion=version)
    assert not open_files(url).claim(f"versions/{version}")


# Faults at every request


def publish_promote_prune(url: str, trained: tuple[Manifest, bytes]) -> None:
    registry = Registry(url, keep=KEEP)
    published = registry.publish(*trained)
    registry.promote(published.version, reason="the gate lets it")
    registry.prune()


@pytest.mark.parametrize("fault", ["denied", "gone", "killed"])
def test_a_fault_at_any_request_leaves_a_sound_registry(url: str, trained: tuple[Manifest, bytes], fault: str) -> None:
    used = open_files(url)
    for version in (1, 2, 3):
        Registry(url).publish(*trained)
        Registry(url).promote(version)
    before = Registry(url).pointer()
    objects = {name: used.read(name) or b"" for name in used.list("", is_deep=True)}
    n_faults, bucket = 0, url.removesuffix("/of/a/team")
    for k in range(1, 200):
        url = f"{bucket}/{k}"
        for name, content in objects.items():
            open_files(url).write(name, content)
        with pytest.MonkeyPatch.context() as patch:
            n_requests = _fail_from(k, fault, patch)
            try:
                publish_promote_prune(url, trained)
            except RegistryError as error:
                n_faults += url in str(error)
            except Killed:
                n_faults += 1
        _check_sound(url, before, trained)
        if n_requests() < k:
            break
    assert n_faults == k - 1 > 10


def _fail_from(k: int, fault: str, patch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let every request from the k-th on fail, as the fault does; return what counts them."""
    counts = [0]

    def fail_or_ask(name: str, request: Any, *arguments: Any, **options: Any) -> Any:
        counts[0] += 1
        if counts[0] < k:
            return request(*arguments, **options)
        if fault == "denied":
            raise PermissionError("Access Denied")
        if fault == "gone":
            raise ConnectionLost("Could not connect to the endpoint")
        if counts[0] == k:
            request(*arguments, **options)  # done, but nobody lives to hear of it
        raise Killed

    through(fail_or_ask, patch)
    return lambda: counts[0]


class ConnectionLost(Exception):
    """Not an `OSError`, as those of botocore and aiohttp are not."""


def _check_sound(url: str, before: Pointer, trained: tuple[Manifest, bytes]) -> None:
    registry = Registry(url, keep=KEEP)
    versions = registry.versions()
    for version in versions:
        registry.load(version)
    pointer = registry.pointer()
    assert pointer.champion in versions
    assert pointer == before or (pointer.champion, pointer.previous) == (4, before.champion)
    published = registry.publish(*trained).version
    assert published > max(versions)
    assert registry.promote(published) == Pointer(champion=published, previous=pointer.champion)
    later = Registry(url, keep=KEEP, clock=in_two_hours)
    later.prune()
    left = open_files(url).list("versions", is_deep=True)
    assert {int(name.split("/")[1]) for name in left} == set(later.versions())
    assert not [name for name in left if is_temporary(name)]


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:-1], lambda b: b[:-3] + b"~" + b[-2:], None])
def test_a_torn_or_altered_object_is_refused(
    url: str, trained: tuple[Manifest, bytes], name: str, damage: Callable[[bytes], bytes] | None
) -> None:
    registry, files = Registry(url), open_files(url)
    registry.publish(*trained)
    path = f"versions/1/{name}"
    if damage is None:
        files.delete(path)
    else:
        files.write(path, damage(files.read(path) or b""))
    with pytest.raises(RegistryError):
        registry.load(1)
    with pytest.raises(RegistryError):
        registry.promote(1)
    assert registry.pointer() == Pointer()


@pytest.mark.parametrize("damage", [b"", b"{", None], ids=str)
def test_a_damaged_or_lost_pointer_is_repaired_and_forgets_nothing(
    url: str, trained: tuple[Manifest, bytes], damage: bytes | None
) -> None:
    registry, files = Registry(url), open_files(url)
    for version in (1, 2, 3):
        registry.publish(*trained)
        registry.promote(version)
    files.delete("current.json")
    if damage is not None:
        files.write("current.json", damage)
        with pytest.raises(RegistryError, match="writes it anew"):
            registry.pointer()
    assert registry.promote(1) == Pointer(champion=1, previous=3)
    assert registry.pointer() == Pointer(champion=1, previous=3)


def test_a_version_of_another_format_stops_nothing(url: str, trained: tuple[Manifest, bytes]) -> None:
    made, weights = trained
    registry = Registry(url, keep=KEEP)
    registry.publish(replace(made, format_version=0), weights)
    with pytest.raises(ModelRefused, match="has format 0"):
        registry.promote(1)
    for _ in range(2):
        registry.publish(*trained)
    assert registry.prune() == (1,)


def test_an_orphan_is_pruned_after_the_grace_and_not_before(url: str, trained: tuple[Manifest, bytes]) -> None:
    files = open_files(url)
    assert files.claim("versions/1")
    files.write("versions/1/model.safetensors", b"weights")
    Registry(url).publish(*trained)
    removed: list[str] = []
    Registry(url).prune(on_removal=removed.append)
    assert removed == []
    Registry(url, clock=in_two_hours).prune(on_removal=removed.append)
    assert removed == ["versions/1/claim"]
    assert files.list("versions/1", is_deep=True) == {}


# A store that is not there


def test_a_bucket_that_is_gone_is_not_taken_for_an_empty_registry(server: Server) -> None:
    registry = Registry(f"s3://none-{uuid.uuid4().hex}/models")
    for ask in (registry.pointer, registry.versions, registry.check_writable, registry.take_request):
        with pytest.raises(RegistryError, match=r"registry s3://none-.* bucket does not exist"):
            ask()


def test_a_server_that_goes_away_is_an_error_with_the_url_and_one_that_returns_goes_on(
    environment: pytest.MonkeyPatch, server: Server, trained: tuple[Manifest, bytes]
) -> None:
    other = _serve(environment)
    try:
        url = f"s3://{_make_bucket(other)}/models"
        registry = Registry(url)
        registry.publish(*trained)
        registry.promote(1)
        other.stop()
        asks: list[Callable[[], Any]] = [registry.pointer, registry.versions, registry.check_writable, registry.prune]
        asks += [lambda: registry.load(1), lambda: registry.publish(*trained), lambda: registry.promote(1)]
        asks += [lambda: registry.request_training("x"), registry.take_request, registry.rollback]
        for ask in asks:
            with pytest.raises(
                RegistryError, match=rf"registry {url}: cannot .*; check registry\.url, rights and space"
            ):
                ask()
    finally:
        environment.setenv("AWS_ENDPOINT_URL", server.url)
        S3FileSystem.clear_instance_cache()


def test_a_store_without_credentials_is_an_error_with_the_url(environment: pytest.MonkeyPatch, server: Server) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("AWS_ACCESS_KEY_ID")
        patch.delenv("AWS_SECRET_ACCESS_KEY")
        patch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/dev/null")
        patch.setenv("AWS_CONFIG_FILE", "/dev/null")
        S3FileSystem.clear_instance_cache()
        with pytest.raises(RegistryError, match=r"registry s3://models/x: cannot read current\.json: .*redentials"):
            Registry("s3://models/x").pointer()
    S3FileSystem.clear_instance_cache()
