"""Small files of synthetic stars."""

import numpy as np

GRID = np.arange(3650.0, 5750.0, 2.0)
WIDE = np.arange(3340.0, 10240.0, 4.0)


def star(seed, grid=GRID):
    """Return (p,) flux with lines, in an arbitrary unit."""
    rng = np.random.default_rng(seed)
    centre, depth = rng.uniform(3700, 5700, 40), rng.uniform(0.1, 0.5, 40)
    absorbed = (depth * np.exp(-0.5 * ((grid[:, None] - centre) / 4.0) ** 2)).sum(axis=1)
    return 1e-15 * (grid / 5000) ** -1.0 * np.exp(-absorbed) * (1 + 0.01 * rng.normal(size=grid.size))


def write_star(folder, number, grid=GRID, **more):
    """Write one star to a numbered .npz file."""
    flux = star(number, grid)
    content = {
        "wavelength": grid,
        "flux": flux[None],
        "ivar": np.full((1, grid.size), 1e34),
        "ra": [float(number)],
    }
    content |= {"id": [f"star {number}"], "survey": "stars", **more}
    path = folder / f"{number:03d}.npz"
    np.savez(path, **{name: value for name, value in content.items() if value is not None})
    return path


def write_stars(folder, count, **more):
    """Write a folder of `count` stars."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        write_star(folder, number, **more)
    return folder
