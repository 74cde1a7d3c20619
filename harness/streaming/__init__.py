"""FP32 passes of PyTorch over a model of any size, one layer's weights in memory at a time."""
