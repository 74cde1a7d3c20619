"""Reports: pure functions of run records."""
