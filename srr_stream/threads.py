"""How many threads a process has for products of matrices; the scorer and the trainer share a machine."""

from __future__ import annotations

import os
import sys


def limit_threads(n_threads: int) -> None:
    """Limit this process: libraries that are loaded already are told, those loaded later find it in the environment.

    So nothing is loaded for it: PyTorch takes seconds, and not every representation needs it.
    """
    from threadpoolctl import threadpool_limits

    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(n_threads)
    threadpool_limits(n_threads)
    if "torch" in sys.modules:
        import torch

        torch.set_num_threads(n_threads)
