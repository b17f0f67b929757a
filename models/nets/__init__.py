"""Networks: their training, in PyTorch, and their scoring, by ONNX Runtime on a processor."""
