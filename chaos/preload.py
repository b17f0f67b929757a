"""What the server imports once, so that the processes forked from it need not."""

# ruff: noqa: F401
import kafka
import kafka.admin

import consumers.sinks.kafka
import consumers.sources.kafka
import models.detector
import models.persistence
import models.training
import srr_stream.service
import srr_stream.trainer_process
