"""Do 95 % intervals hold the truth in 95 % of all studies? Simulated. Run: python benchmarks/coverage.py

Dice-like scores of four domains, with and without failures, noise between seeds and within; beside the interval of
`dgbench.scores.statistics` the plain percentiles of the same bootstrap, which most papers give. Then cases that come in
groups, as two volumes of one patient: their interval with the groups, and as if each were a patient of its own.
"""

import numpy as np

from dgbench.scores.statistics import CaseScores, Resampling, estimate

STUDIES, DRAWS, SEED_NOISE, NOISE = 1000, 1000, 0.02, 0.03
IN_GROUPS = 0.9  # share of the variance of cases that those of a group have in common
KINDS = {"skewed": 0.0, "a tenth fails": 0.1}  # share of cases that score 0; the others are Beta(8, 2)


def covered(n: int, seeds: int, failures: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """Share of studies whose interval holds the truth, studentised and percentile, and the first one's mean width."""
    domain = np.arange(n) % 4
    weight = 1 / (4 * np.bincount(domain)[domain])
    resampling, truth = Resampling(domain, DRAWS), 0.8 * (1 - failures)
    hits, width = np.zeros(2), 0.0
    for _ in range(STUDIES):
        cases = np.where(rng.random(n) < failures, 0, rng.beta(8, 2, n))
        values = cases + rng.normal(0, SEED_NOISE, (seeds, 1)) + rng.normal(0, NOISE, (seeds, n))
        scores = CaseScores(values, weight, domain)
        found, _ = estimate(scores, resampling=resampling)
        drawn = (resampling.counts * weight * (resampling.seeds(values) @ values)).sum(1)
        low, high = np.quantile(drawn, [0.025, 0.975])
        hits += [found.low <= truth <= found.high, low <= truth <= high]
        width += (found.high - found.low) / STUDIES
    return hits[0] / STUDIES, hits[1] / STUDIES, width


def covered_in_groups(n: int, size: int, paired: bool, seeds: int, rng: np.random.Generator) -> tuple[float, float]:
    """Share of studies of `n` groups whose interval holds the truth, with groups and without them.

    size: cases of a group, all in one of four domains; paired: one in each of four domains.
    """
    group = np.tile(np.arange(n), 4) if paired else np.repeat(np.arange(n), size)
    domain = np.repeat(np.arange(4), n) if paired else group % 4
    weight = 1 / (4 * np.bincount(domain)[domain])
    drawn = Resampling(domain, DRAWS, group=group), Resampling(domain, DRAWS)
    level, hits = np.array([0.0, 0.05, -0.1, 0.02]), np.zeros(2)
    truth = 0.7 + level.mean()
    for _ in range(STUDIES):
        shared, own = rng.normal(0, IN_GROUPS**0.5, n)[group], rng.normal(0, (1 - IN_GROUPS) ** 0.5, len(group))
        cases = 0.7 + level[domain] + 0.1 * (shared + own)
        values = cases + rng.normal(0, SEED_NOISE, (seeds, 1)) + rng.normal(0, NOISE, (seeds, len(group)))
        found = [estimate(CaseScores(values, weight, domain), resampling=r)[0] for r in drawn]
        hits += [of.low <= truth <= of.high for of in found]
    return hits[0] / STUDIES, hits[1] / STUDIES


def main() -> None:
    rng = np.random.default_rng(0)
    print(f"{STUDIES} studies each; the standard error of a share of 0.95 is {(0.95 * 0.05 / STUDIES) ** 0.5:.3f}")
    print(f"{'scores':15}{'cases':>6}{'seeds':>6}{'interval':>10}{'percentile':>11}{'width':>8}")
    for kind, failures in KINDS.items():
        for n in (12, 30, 116):
            for seeds in (3, 5):
                held, plain, width = covered(n, seeds, failures, rng)
                print(f"{kind:15}{n:6}{seeds:6}{held:10.3f}{plain:11.3f}{width:8.3f}")
    print(f"{'groups':27}{'seeds':>6}{'interval':>10}{'as cases':>11}")
    designs = (("40 of 2 cases", 40, 2, False), ("12 of 5 cases", 12, 5, False), ("30 in four domains", 30, 4, True))
    for what, n, size, paired in designs:
        held, alone = covered_in_groups(n, size, paired, 3, rng)
        print(f"{what:27}{3:6}{held:10.3f}{alone:11.3f}")


if __name__ == "__main__":
    main()
