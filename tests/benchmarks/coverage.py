"""Print how often 95 % intervals of the sign-off cover the truth, by the number of prompts.

    python tests/benchmarks/coverage.py                       # KL by prompt log-normal, as skewed as measured
    python tests/benchmarks/coverage.py --package sign-off    # drawn from the prompts that a sign-off measured

With a package its measured prompts are taken for the population: samples of 30, 100 and 300 are drawn from them, with
replacement, and the intervals of mean KL are held against its own mean. 1000 trials take about two minutes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from harness.intervals import intervals

Floats = NDArray[np.float64]


def main() -> None:
    """Print a line for each number of prompts."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--package", type=Path, default=None, help="The folder of a sign-off.")
    parser.add_argument("--trials", type=int, default=1000)
    arguments = parser.parse_args()
    populations = {"log-normal": made()} if arguments.package is None else measured(arguments.package)
    for name, (sums, sizes) in populations.items():
        for n in (30, 100, 300):
            print(f"{name}, {n} prompts: {coverage(sums, sizes, n, arguments.trials):.1%} of {arguments.trials}")


def made() -> tuple[Floats, Floats]:
    """Sums and sizes of 100,000 prompts."""
    rng = np.random.default_rng(1)
    sizes = rng.integers(5, 40, size=100_000).astype(float)
    return rng.lognormal(0, 1.25, size=100_000) * sizes, sizes


def measured(package: Path) -> dict[str, tuple[Floats, Floats]]:
    """KL of every prompt, by candidate."""
    from harness.signoff.figures import figures_of
    from harness.signoff.verify import open_package

    records = open_package(package).records
    found = {name: figures_of(record) for name, record in records.items()}
    return {name: (figures.kl, figures.positions) for name, figures in found.items() if figures.positions.size}


def coverage(sums: Floats, sizes: Floats, n: int, trials: int) -> float:
    """The share of trials whose interval holds the population's mean."""
    rng, truth = np.random.default_rng(n), sums.sum() / sizes.sum()
    hits = 0
    for trial in range(trials):
        drawn = rng.integers(0, sums.size, size=n)
        found = intervals(sums[drawn][:, None], sizes[drawn], 2000, seed=trial)[0]
        hits += found.low <= truth <= found.high
    return hits / trials


if __name__ == "__main__":
    main()
