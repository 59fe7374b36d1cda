"""Seeds: everything random in a run is derived from a few of them."""

import secrets

import numpy as np


def draw() -> int:
    """Draw a seed in [0, 2^31) from the operating system, for an option that was not given."""
    return secrets.randbits(31)


def derive(seed: int, *path: int | str) -> int:
    """Derive the seed of one stream of random numbers, as in `derive(seed, "order", epoch)`.

    Different paths give statistically independent seeds (numpy.random.SeedSequence). The result is in [0, 2^63),
    which torch and numpy accept; torch's generator on the CPU uses its low 32 bits.
    """
    words = [int.from_bytes(step.encode(), "little") if isinstance(step, str) else step for step in path]
    return int(np.random.SeedSequence([seed, *words]).generate_state(1, np.uint64)[0] >> np.uint64(1))
