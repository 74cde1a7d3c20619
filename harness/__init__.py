"""Conformance and correctness harness for Phi-3 on AI PCs."""

__version__ = "0.1.0"
