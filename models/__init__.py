"""Learning on plain arrays: representations, one-class classifiers, refinement, calibration. Knows no Kafka."""
