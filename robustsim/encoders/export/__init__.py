"""Models that leave torch behind: files of ONNX and of `torch.export`, and how ours are told from others."""
