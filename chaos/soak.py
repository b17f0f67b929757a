"""Half an hour near capacity with a random fault every 20 to 60 seconds, and the ledger at the end."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from chaos.bench import Bench, Failed, Look, Result, make_models, slope
from chaos.processes import Process
from chaos.proxy import FaultProxy

_SHARE_OF_CAPACITY = 0.7
_CAPACITY_S = 20.0
_WARM_UP = 0.25
"""Of the soak: memory is watched after it."""
_MAX_SLOPE = 1.0
"""MiB a minute."""


def soak(bench: Bench, rng: random.Random, result: Result, *, minutes: float = 30.0) -> None:
    """Two scorers, of which one is killed, frozen and replaced; a broker that dies; connections that are cut; swaps."""
    import psutil

    models = make_models(4)
    versions = [bench.publish(model) for model in models]
    proxy = FaultProxy(bench.node.proxied_port, bench.node.proxied_target)
    try:
        steady = bench.start(bench.with_settings(input={"instance_id": f"{bench.topic}-steady"}))
        faults = _Faults(bench, proxy, versions, rng)
        with bench.looking() as look:
            rate = _SHARE_OF_CAPACITY * _capacity(bench, look, result)
            feeder = bench.feed(rate=rate, seed=result.seed)
            memory = psutil.Process(steady.pid)
            samples: list[tuple[float, float]] = []
            started = time.monotonic()
            next_fault = started + rng.uniform(20, 60)
            while (at := time.monotonic() - started) < 60 * minutes:
                samples.append((at / 60, memory.memory_info().rss / 2**20))
                if time.monotonic() > next_fault:
                    faults.one()
                    next_fault = time.monotonic() + rng.uniform(20, 60)
                if not steady.is_alive:
                    raise Failed(f"the scorer that nobody touched died: {steady.log_path}")
                time.sleep(2.0)  # between two samples
            n_fed = feeder.stop()
            caught_up_s = look.wait_for_no_lag(timeout_s=600)
        faults.end()
        steady.terminate()
    finally:
        proxy.close()
    warm = [(at, mib) for at, mib in samples if at > _WARM_UP * minutes]
    grows = slope([at for at, _ in warm], [mib for _, mib in warm])
    result.figures |= {
        "minutes": minutes,
        "rate_per_s": round(rate),
        "faults": sum(faults.n.values()),
        **{f"fault {name}": n for name, n in sorted(faults.n.items())},
        "caught_up_after_s": round(caught_up_s, 1),
        "rss_mib": round(samples[-1][1]),
        "rss_slope_mib_per_min": round(grows, 2),
        "fed": n_fed,
    }
    bench.settle_ledger(result)
    if grows > _MAX_SLOPE:
        raise Failed(f"memory grows by {grows:.2f} MiB a minute; allowed: {_MAX_SLOPE:g}")


def _capacity(bench: Bench, look: Look, result: Result) -> float:
    """Return how many records a second are committed while more than that are produced beside it."""
    feeder = bench.feed(rate=40_000, seed=result.seed)
    look.wait_for_progress(20_000)
    started, before = time.monotonic(), sum(look.committed())
    time.sleep(_CAPACITY_S)
    capacity = (sum(look.committed()) - before) / (time.monotonic() - started)
    feeder.stop()
    look.wait_for_no_lag(timeout_s=600)
    result.figures["capacity_per_s"] = round(capacity)
    return capacity


class _Faults:
    """One fault after the other, drawn at random, each ended before the next."""

    def __init__(self, bench: Bench, proxy: FaultProxy, versions: list[int], rng: random.Random) -> None:
        self._bench, self._proxy, self._versions, self._rng = bench, proxy, versions, rng
        self._unlucky = self._replica()
        self._kinds: dict[str, Callable[[], None]] = {
            "kill": self._kill,
            "stop": self._stop,
            "zombie": self._zombie,
            "third replica": self._third,
            "broker killed": self._broker_killed,
            "broker frozen": self._broker_frozen,
            "connections cut": proxy.cut_all,
            "commit reply cut": self._reply_cut,
            "swap": self._swap,
        }
        self.n = dict.fromkeys(self._kinds, 0)

    def one(self) -> None:
        """Do one."""
        # Each kind comes before any comes again.
        fewest = min(self.n.values())
        name = self._rng.choice([name for name, n in self.n.items() if n == fewest])
        print(f"  {time.strftime('%H:%M:%S')} {name}", flush=True)
        self._kinds[name]()
        self.n[name] += 1

    def end(self) -> None:
        """Stop what is left."""
        self._unlucky.terminate()

    def _replica(self) -> Process:
        return self._bench.start()

    def _kill(self) -> None:
        self._unlucky.kill()
        self._unlucky = self._replica()

    def _stop(self) -> None:
        self._unlucky.terminate()
        self._unlucky = self._replica()

    def _zombie(self) -> None:
        self._unlucky.freeze()
        time.sleep(self._rng.uniform(0.5, 8.0))
        self._unlucky.thaw()

    def _third(self) -> None:
        third = self._replica()
        time.sleep(self._rng.uniform(3.0, 8.0))
        third.terminate()

    def _broker_killed(self) -> None:
        self._bench.node.kill()
        time.sleep(self._rng.uniform(0.0, 5.0))
        self._bench.node.start()

    def _broker_frozen(self) -> None:
        self._bench.node.freeze()
        time.sleep(self._rng.uniform(0.5, 8.0))
        self._bench.node.thaw()

    def _reply_cut(self) -> None:
        so_far = self._proxy.n_cut
        self._proxy.cut_reply_to(8 if self._bench.mode == "at_least_once" else self._rng.choice([26, 28]))
        until = time.monotonic() + 20
        while self._proxy.n_cut == so_far and time.monotonic() < until:
            time.sleep(0.02)  # the proxy counts
        self._proxy.cut_reply_to(None)

    def _swap(self) -> None:
        self._bench.registry.promote(self._rng.choice(self._versions))
