"""The artifact reference: Phi-3 in PyTorch and FP32 on weights of an artifact. Imported in workers only."""
