"""Quantisation sign-off: candidates of one checkpoint side by side, a decision on each, and a package to prove it."""
