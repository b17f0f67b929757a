"""srr-stream: anomaly detection on contaminated, unlabelled streams by self-supervise, refine, repeat."""
