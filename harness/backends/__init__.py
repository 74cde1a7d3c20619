"""Adapters, one file a runtime."""
