"""Scenarios of trainer and registry: whatever becomes of them, scoring goes on and a good model stays in use."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from chaos.bench import Bench, Failed, Result, ask, figure, make_models, slope, wait_until
from chaos.processes import TRAINER_POINTS, Death
from srr_stream.broker import free_port


def trainer_killed(bench: Bench, rng: random.Random, result: Result, *, rounds: int = 2) -> None:
    """Kill -9 the trainer at every stage, also between weights, manifest and pointer; a good model stays in use."""
    bench.publish(make_models(1)[0])
    scorer = bench.start()
    feeder = bench.feed(rate=1000, seed=result.seed)
    n = 0
    with bench.looking() as look:
        look.wait_for_progress(1000)
        for point in TRAINER_POINTS * rounds:
            bench.registry.request_training("chaos")
            # A model is written in some five milliseconds.
            trainer = bench.train(death=Death(point, 0, rng.uniform(0, 0.01)))
            if not trainer.wait(60) or trainer.exitcode != -signal.SIGKILL:
                raise Failed(f"{point}: the trainer ended with {trainer.exitcode}: {trainer.log_path}")
            n += 1
            champion = bench.registry.pointer().champion
            if champion is None:
                raise Failed(f"{point}: no champion any more")
            bench.registry.load(champion)  # complete and unaltered, or it raises
            look.wait_for_progress(100)
        before = max(bench.registry.versions())
        bench.registry.request_training("chaos")
        trainer = bench.train()
        wait_until(lambda: (bench.registry.pointer().champion or 0) > before, what="a model after all the deaths")
        trainer.terminate()
        look.wait_for_progress(1000)
    if not scorer.is_alive:
        raise Failed(f"the scorer died: {scorer.log_path}")
    n_sent = feeder.stop()
    with bench.looking() as look:
        look.wait_for_no_lag()
    scorer.terminate()
    champion = bench.registry.pointer().champion
    if not bench.ledger().n_by_version.get(champion or 0):
        raise Failed(f"version {champion} scored nothing")
    result.figures |= {"trainer_kills": n, "versions": len(bench.registry.versions())}
    bench.settle_ledger(result, n_expected=n_sent)


def slow_trainer(bench: Bench, rng: random.Random, result: Result) -> None:
    """A training that takes three times ``max_poll_interval``: the scorer beside it keeps its partitions."""
    port, trainer_port = free_port(), free_port()
    settings = bench.with_settings(
        input={"session_timeout": "1500ms", "max_poll_interval": "2s"},
        output={"flush_timeout": "1s"},
        training={"representation": "goad", "representation_options": {"n_steps": 6_000}, "hang_timeout": "2m"},
        http={"scorer_port": port, "trainer_port": trainer_port},
    )
    bench.publish(make_models(1)[0])
    feeder = bench.feed(rate=1000, seed=result.seed)
    service = bench.serve(settings)
    with bench.looking() as look:
        look.wait_for_progress(1000)
        rebalances = figure(port, "srr_rebalances_total")
        took_s = wait_until(
            lambda: figure(trainer_port, "srr_training_runs_total") >= 1, what="a training", timeout_s=180
        )
        trained_s = figure(trainer_port, "srr_training_duration_seconds_sum")
        after = figure(port, "srr_rebalances_total")
        n_sent = feeder.stop()
        look.wait_for_no_lag()
    service.terminate()
    result.figures |= {
        "training_s": round(trained_s, 1),
        "max_poll_interval_s": 2.0,
        "rebalances": int(after - rebalances),
    }
    if trained_s < 6.0:
        raise Failed(f"the training took {trained_s:.1f} s only ({took_s:.1f} s were waited)")
    bench.settle_ledger(result, n_expected=n_sent)
    if after != rebalances:
        raise Failed("the scorer lost its partitions while a training ran")


def registry_faults(bench: Bench, rng: random.Random, result: Result) -> None:
    """The registry is full, then read-only, then gone: scoring goes on, the reason is told, and it heals by itself."""
    port, trainer_port = free_port(), free_port()
    mount = bench.folder / f"{bench.topic}-mount"
    mount.mkdir()
    with _tmpfs(mount, "size=4m"):
        settings = bench.with_settings(
            registry={"url": str(mount / "registry"), "keep": 3},
            training={"every": "1s", "min_interval": "500ms"},
            http={"scorer_port": port, "trainer_port": trainer_port},
        )
        feeder = bench.feed(rate=1000, seed=result.seed)
        service = bench.serve(settings)
        with bench.looking() as look:
            look.wait_for_progress(1000)
            faults: dict[str, tuple[Callable[[], object], Callable[[], object]]] = {
                "full": (lambda: _fill(mount), lambda: (mount / "filler").unlink()),
                "read-only": (lambda: _remount(mount, "ro"), lambda: _remount(mount, "rw")),
                "gone": (
                    lambda: shutil.move(mount / "registry", mount / "elsewhere"),
                    lambda: _put_back(mount),
                ),
            }
            for name, (fault, repair) in faults.items():
                fault()
                if name != "gone":  # a registry that is gone is a new one: the trainer begins it
                    wait_until(
                        lambda: "cannot write" in ask(trainer_port, "/readyz"), what=f"the reason: registry {name}"
                    )
                look.wait_for_progress(3000)
                repair()
                before = _published(trainer_port)
                wait_until(lambda: _published(trainer_port) > before, what=f"a model after {name}")  # noqa: B023
            n_sent = feeder.stop()
            look.wait_for_no_lag()
        if not service.is_alive:
            raise Failed(f"the service died: {service.log_path}")
        service.terminate()
        result.figures |= {"faults": len(faults)}
        bench.settle_ledger(result, n_expected=n_sent)


def endurance(
    bench: Bench, rng: random.Random, result: Result, *, n_records: int = 1_000_000, n_trainings: int = 100
) -> None:
    """A million records, 5 % of them poison, and a hundred trainings: memory, files and threads stay flat."""
    import psutil

    port, trainer_port = free_port(), free_port()
    settings = bench.with_settings(
        training={"every": "500ms", "min_interval": "100ms"},
        registry={"keep": 5},
        http={"scorer_port": port, "trainer_port": trainer_port},
    )
    feeder = bench.feed(rate=7000, seed=result.seed, poison=0.05)
    service = bench.serve(settings)
    scorer = psutil.Process(service.pid)
    samples: list[tuple[float, int, int, int]] = []
    started = time.monotonic()

    def is_done() -> bool:
        with scorer.oneshot():
            samples.append(
                (time.monotonic() - started, scorer.memory_info().rss, scorer.num_fds(), scorer.num_threads())
            )
        time.sleep(1.0)  # between two samples
        return feeder.n_sent >= n_records and _published(trainer_port) >= n_trainings

    wait_until(is_done, what="the records and the trainings", timeout_s=900)
    n_sent = feeder.stop()
    with bench.looking() as look:
        look.wait_for_no_lag(timeout_s=300)
    trainings = _published(trainer_port)
    service.terminate()
    half = samples[len(samples) // 3 :]  # the first third is warm-up
    grows = slope([at / 60 for at, *_ in half], [rss / 2**20 for _, rss, *_ in half])
    result.figures |= {
        "trainings": int(trainings),
        "swaps": int(trainings),
        "rss_mib": round(samples[-1][1] / 2**20),
        "rss_slope_mib_per_min": round(grows, 2),
        "files": f"{min(s[2] for s in half)}-{max(s[2] for s in half)}",
        "threads": f"{min(s[3] for s in half)}-{max(s[3] for s in half)}",
    }
    bench.settle_ledger(result, n_expected=n_sent)
    if grows > 5.0:
        raise Failed(f"memory grows by {grows:.1f} MiB a minute")


def _published(port: int) -> float:
    lines = [
        line for line in ask(port, "/metrics").splitlines() if 'srr_training_runs_total{outcome="published"}' in line
    ]
    return float(lines[0].rsplit(" ", 1)[1]) if lines else 0.0


@contextmanager
def _tmpfs(folder: Path, options: str) -> Iterator[None]:
    """A file system of its own, small enough to be filled; needs the right to mount."""
    made = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], capture_output=True, text=True)
    if made.returncode:
        raise Failed(f"a tmpfs cannot be mounted, run this scenario as root: {made.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True, capture_output=True)


def _remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True, capture_output=True)


def _fill(folder: Path) -> None:
    with (folder / "filler").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def _put_back(mount: Path) -> None:
    """Put the registry back where it was; what a trainer began there meanwhile goes."""
    shutil.rmtree(mount / "registry", ignore_errors=True)
    shutil.move(mount / "elsewhere", mount / "registry")
