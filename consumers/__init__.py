"""Events in and out: records, decoding, sources, windows and sinks. numpy only; knows no model."""
