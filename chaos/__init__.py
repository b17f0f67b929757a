"""Break the real thing on purpose and count what was lost: ``python -m chaos --help``.

Real processes against a real Apache Kafka (``KAFKA_HOME``); the ledger of :mod:`srr_stream.ledger`, which shares no
code with the service, says afterwards whether the promise was kept. Seeds are printed and can be given.
"""
