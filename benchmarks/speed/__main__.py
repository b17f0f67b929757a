"""``python -m benchmarks.speed COMMAND``: see :mod:`benchmarks.speed`."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "consume": "bytes of Kafka to columns: clients and JSON decoders",
    "score": "matrix to severity: Gaussian and GOAD against matrix products",
    "train": "a window to a model: share of refinement, sizes, DeepOD",
    "end-to-end": "a topic to committed verdicts: against bare clients, River and scikit-learn",
    "latency": "produced to published, alone and beside a training",
    "memory": "a scorer's memory over minutes of full load",
    "swap": "what a hot swap costs the batches beside it",
    "gpu": "what a CUDA device brings (needs one)",
    "start": "the command line, and the first verdict after a start",
    "summary": "what all of these left, as one table in docs/performance.md",
}


def main() -> int:
    """Run the command that is named first."""
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        listed = "\n".join(f"  {name:<12}{text}" for name, text in COMMANDS.items())
        print(f"usage: python -m benchmarks.speed COMMAND [--help | options]\n\n{listed}")
        return 0 if sys.argv[1:] in (["--help"], ["-h"]) else 2
    module = import_module(f"benchmarks.speed.{sys.argv[1].replace('-', '_')}")
    code: int = module.main(sys.argv[2:])
    return code


if __name__ == "__main__":
    sys.exit(main())
