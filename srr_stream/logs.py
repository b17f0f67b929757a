"""How the processes of this application log: lines to standard error, the Kafka client only where it matters."""

from __future__ import annotations

import logging


def set_up_logging(level: int, *, role: str) -> None:
    """Log from `level` on; `role` stands in every line, since two processes share a terminal."""
    logging.basicConfig(level=level, format=f"%(asctime)s %(levelname)s {role}: %(message)s")
    # The client says every connection and every refresh; what fails reaches our own messages, with what to do.
    logging.getLogger("kafka").setLevel(logging.CRITICAL if level > logging.DEBUG else logging.DEBUG)
