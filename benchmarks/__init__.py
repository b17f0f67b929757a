"""Benchmarks as commands: ``python -m benchmarks.{adbench,contamination,streams,paper,results}``.

Every command runs the detectors of this project and their peers in one call on the same splits, writes JSON, Markdown
and PNG, and goes on where it was interrupted. Modules: `datasets` (what is measured on), `protocols` (who trains on
which rows), `methods` (the detectors), `ours` (the only module that knows how this project's detectors are made),
`runner` (units, resume, machine, time), `report` (tables, Markdown, pictures), `published` (what the paper says), and
one module for each command.
"""
