"""The operators of Phi-3 as small graphs, run by each runtime and judged against float64."""
