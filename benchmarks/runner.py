"""Units of work that are measured once: the journal that remembers them, the machine they ran on, and the clock."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks import ours, report
from benchmarks.methods import METHODS, Context, Method, fit
from models.evaluation import average_precision, f1_at_true_ratio, roc_auc
from srr_stream import threads

ROOT = Path(__file__).parents[1]
LIBRARIES = ("numpy", "scipy", "scikit-learn", "torch", "pyod", "numba", "river")
OUT = Path("var/benchmarks")

Record = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """What is measured in one piece; two units of equal fields are the same, and the second is not run."""

    command: str
    dataset: str
    ratio: float | None
    seed: int
    method: str
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """The unit as one line of JSON, the same for equal units."""
        return json.dumps(vars(self), sort_keys=True, default=dict)


class Journal:
    """One JSON line for each unit that was run, appended at once; of one key the last line counts.

    Parameters
    ----------
    path
        Made if it is not there. A last line that was torn off by a kill is dropped: its unit runs again.
    is_fresh
        Start over: what is there is dropped.
    """

    def __init__(self, path: Path, *, is_fresh: bool = False) -> None:
        self.path = path
        self._records: dict[str, Record] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = b"" if is_fresh or not path.exists() else path.read_bytes()
        end = content.rfind(b"\n") + 1
        if is_fresh or end < len(content):
            path.write_bytes(content[:end])
        for number, line in enumerate(content[:end].splitlines(), 1):
            try:
                record = json.loads(line)
                self._records[record["key"]] = record
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(
                    f"{path}, line {number} is no record ({error!r}); mend it, or start over with --fresh"
                ) from error

    def find(self, unit: Unit) -> Record | None:
        """Return the record of a unit that was run, or None."""
        return self._records.get(unit.key)

    def append(self, unit: Unit, values: Mapping[str, Any]) -> Record:
        """Remember what a unit gave; on the disk when this returns."""
        record = {"key": unit.key, **json.loads(unit.key), **values}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._records[unit.key] = record
        return record


def run_units(
    units: Sequence[Unit],
    journal: Journal,
    measure: Callable[[Unit], Mapping[str, Any]],
    *,
    again: Iterable[str] = (),
    provenance: Callable[[Unit], Mapping[str, Any]] = lambda unit: {},
    say: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
) -> list[Record]:
    """Run what the journal does not have yet, and return the records of all units, in their order.

    A unit that fails is recorded with its error, does not stop the others, and is run again by the next call.

    Parameters
    ----------
    again
        Methods that are run although the journal has them.
    provenance
        What is written into a new record beside its figures: commit, machine.
    """
    redo = set(again)
    records = []
    for number, unit in enumerate(units, 1):
        known = journal.find(unit)
        if known is not None and "error" not in known and unit.method not in redo:
            records.append(known)
            continue
        started = time.perf_counter()
        try:
            values = dict(measure(unit))
        except Exception as error:  # one method that fails on one set must not cost the others their hour
            values = {"error": f"{type(error).__name__}: {error}"}
        values["wall_s"] = time.perf_counter() - started
        values["made"] = datetime.now(UTC).isoformat(timespec="seconds")
        records.append(journal.append(unit, {**values, **provenance(unit)}))
        ratio = "" if unit.ratio is None else f" {unit.ratio:.1%}"
        outcome = values.get("error") or ", ".join(f"{k} {values[k]:.3f}" for k in ("f1", "auc", "ap") if k in values)
        say(
            f"[{number}/{len(units)}] {unit.dataset}{ratio} seed {unit.seed} {unit.method}: {outcome}"
            f" ({values['wall_s']:.1f} s)"
        )
    return records


def measured(
    name: str,
    train: NDArray[Any],
    test: NDArray[Any],
    is_anomaly: NDArray[np.bool_],
    seed: int,
    context: Context,
    method: Method | None = None,
) -> dict[str, Any]:
    """Fit a method, score the test rows, and return F1, AUC, AP and the seconds of both."""
    chosen = METHODS[name] if method is None else method
    warm_up(name, chosen)
    with quiet():
        started = time.perf_counter()
        scorer = fit(chosen, train, seed, context)
        fitted = time.perf_counter()
        scores = scorer(test)
        scored = time.perf_counter()
    return {**quality(is_anomaly, scores), "fit_s": fitted - started, "score_s": scored - fitted}


def quality(is_anomaly: NDArray[np.bool_], scores: NDArray[np.float64]) -> dict[str, float]:
    """Return F1 at the true share, AUC and AP.

    Raises
    ------
    ValueError
        If a score is not finite: sorting would put it anywhere, and the figures would mean nothing.
    """
    if not np.isfinite(scores).all():
        raise ValueError(f"{int((~np.isfinite(scores)).sum())} of {len(scores)} scores are not finite")
    return {
        "f1": f1_at_true_ratio(is_anomaly, scores),
        "auc": roc_auc(is_anomaly, scores),
        "ap": average_precision(is_anomaly, scores),
    }


def uses_models(name: str) -> bool:
    """Return whether a method's figures depend on the code in ``models/``; one that METHODS does not have is ours."""
    return name not in METHODS or METHODS[name].uses_models


def model_seed(split_seed: int) -> int:
    """Return the seed of a model: splits and models have seeds of their own, so that neither follows from the other."""
    return 1000 + split_seed


_warm: set[str] = set()


def warm_up(name: str, method: Method) -> None:
    """Fit a method once on next to nothing: imports and compilation must not count as its time."""
    if name in _warm:
        return
    _warm.add(name)
    X = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    # What is wrong with a method will be said by the unit itself.
    with quiet(), contextlib.suppress(Exception):
        fit(method, X, 0, Context(dataset="thyroid", gamma=0.05, n_steps=1))(X)


class quiet(warnings.catch_warnings):  # noqa: N801  # reads as the statement that it is
    """Silence the libraries' warnings: what is wrong with scores shows where they are measured."""

    def __enter__(self) -> Any:
        entered = super().__enter__()
        warnings.simplefilter("ignore")
        return entered


def limit_threads(n_threads: int) -> None:
    """Let BLAS, OpenMP, numba and torch use so many threads, in this process, from now on."""
    os.environ["NUMBA_NUM_THREADS"] = str(n_threads)
    threads.limit_threads(n_threads)


def machine(n_threads: int) -> dict[str, Any]:
    """Return what the figures depend on beside the code: processor, cores, threads used, versions."""
    return {
        "cpu": _cpu(),
        "n_cores": os.cpu_count(),
        "n_threads": n_threads,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {library: version_of(library) or "not installed" for library in LIBRARIES},
    }


def version_of(library: str) -> str | None:
    """Return the version of a library; None if it is not installed."""
    try:
        return version(library)
    except PackageNotFoundError:
        return None


@lru_cache
def commit() -> str:
    """Return the short git commit, with ``+changes`` where the source differs from it; ``unknown`` outside of git."""
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return "unknown"
    return f"{head}+changes" if _git("status", "--porcelain", "--", "models", "benchmarks") else head


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def parser(
    description: str, *, n_seeds: int, methods: Sequence[str], allowed: Iterable[str] | None = None
) -> argparse.ArgumentParser:
    """Return the arguments that all commands share."""
    known = list(METHODS if allowed is None else allowed)
    made = argparse.ArgumentParser(description=description)
    made.add_argument(
        "--seeds", type=whole, default=n_seeds, help=f"Average over so many splits and models (default {n_seeds})."
    )
    made.add_argument(
        "--methods",
        type=names_of("method", known),
        default=list(methods),
        help="Run only these, separated by commas "
        f"(default: {', '.join(methods) or 'those of the target'}; all: {', '.join(known)}).",
    )
    made.add_argument(
        "--out", type=Path, default=OUT, help=f"Write journal, JSON, Markdown and PNG here (default {OUT})."
    )
    made.add_argument(
        "--threads", type=whole, default=1, help="Threads of BLAS, OpenMP and torch (default 1, to compare times)."
    )
    made.add_argument("--fresh", action="store_true", help="Forget what was measured before, and start over.")
    made.add_argument(
        "--again", type=names_of("method", known), default=[], help="Run these again, and keep the others."
    )
    made.add_argument(
        "--quick", action="store_true", help="Make a small run of less than a minute, kept apart from real ones."
    )
    return made


def names_of(what: str, allowed: Iterable[str]) -> Callable[[str], list[str]]:
    """Return the reader of a list like ``a,b``; an unknown name is an error that lists those allowed."""
    known = list(allowed)

    def read(text: str) -> list[str]:
        names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
        unknown = [name for name in names if name not in known]
        if unknown or not names:
            raise argparse.ArgumentTypeError(
                f"{what} {(', '.join(unknown) or text)!r} is unknown; allowed: {', '.join(known)}"
            )
        return names

    return read


def ratios(text: str) -> list[float]:
    """Read a list like ``0,0.025``."""
    try:
        read = [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"ratios are {text!r}; allowed: fractions separated by commas, like 0,0.025"
        ) from None
    if not all(0.0 <= ratio < 0.5 for ratio in read):
        raise argparse.ArgumentTypeError(f"ratios are {text!r}; allowed: fractions from 0, below 0.5 (not percent)")
    return read


def whole(text: str) -> int:
    """Read a whole number from 1 on."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not allowed; allowed: whole numbers from 1 on")
    return int(text)


_begun: set[Path] = set()


class Run:
    """One call of a command: its journal, what goes into every record, and the summary at the end.

    Parameters
    ----------
    name
        Of the files that are written; the journal has the same unless `journal` names one that is shared.
    options
        As parsed by :func:`parser`.
    """

    def __init__(self, name: str, options: argparse.Namespace, *, journal: str | None = None) -> None:
        limit_threads(options.threads)
        suffix = "-quick" if options.quick else ""
        self.name = name + suffix
        self.out: Path = options.out
        self._journal_path = options.out / f"{journal or name}{suffix}.jsonl"
        self._again: list[str] = options.again
        self._fresh: bool = options.fresh
        self._started = datetime.now(UTC)
        self._clock = time.perf_counter()
        self._machine = machine(options.threads)
        self._code = ours.code_digest()

    def units(self, units: Sequence[Unit], measure: Callable[[Unit], Mapping[str, Any]]) -> list[Record]:
        """Run what is not in the journal; see :func:`run_units`."""
        # What this very call measured is fresh already, also where its figures share a journal.
        try:
            journal = Journal(self._journal_path, is_fresh=self._fresh and self._journal_path not in _begun)
        except ValueError as error:
            raise SystemExit(str(error)) from error
        _begun.add(self._journal_path)
        return run_units(units, journal, measure, again=self._again, provenance=self._facts)

    def _facts(self, unit: Unit) -> dict[str, Any]:
        facts = {"commit": commit(), "machine": self._machine}
        return {**facts, "code": self._code} if uses_models(unit.method) else facts

    def finish(
        self,
        title: str,
        records: Sequence[Record],
        tables: Sequence[report.Table],
        images: Sequence[str] = (),
        notes: Sequence[str] = (),
    ) -> int:
        """Print the tables and write the summary; return the exit code: 1 if any unit failed."""
        failed = report.failures(records)
        summary = report.Summary(
            name=self.name,
            title=title,
            command=" ".join(["python -m", *_command_line()]),
            started=self._started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_s=time.perf_counter() - self._clock,
            commit=commit(),
            code=self._code,
            machine=self._machine,
            tables=tables,
            images=images,
            notes=[*notes, *failed],
            records=records,
        )
        for table in tables:
            report.show(table)
        print("\n".join(report.provenance(summary)))
        report.write(summary, self.out)
        print(f"written: {self.out / self.name}.json, .md" + "".join(f", {image}" for image in images))
        return 1 if failed else 0


def _command_line() -> list[str]:
    """Return the command as it was typed, with the module's name instead of its file's."""
    program = Path(sys.argv[0])
    return [f"benchmarks.{program.stem}", *sys.argv[1:]]
