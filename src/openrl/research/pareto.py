"""Which points no other beats on every objective, and how far apart they lie."""

from collections.abc import Sequence

import numpy as np

Point = Sequence[float]
"""One value for each objective, larger is better."""


def dominates(ours: Point, theirs: Point) -> bool:
    """Nowhere worse, and somewhere better."""
    pairs = list(zip(ours, theirs, strict=True))
    return all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


def ranks(points: Sequence[Point]) -> list[int]:
    """0 for the Pareto front, 1 for the front of what is left without it, and so on."""
    found, left, rank = [0] * len(points), set(range(len(points))), 0
    while left:
        front = {i for i in left if not any(dominates(points[j], points[i]) for j in left)}
        for i in front:
            found[i] = rank
        left, rank = left - front, rank + 1
    return found


def crowding(points: Sequence[Point]) -> list[float]:
    """How far each is from its neighbours, infinite at the ends (crowding distance of NSGA-II, Deb et al., 2002)."""
    distance = np.zeros(len(points))
    for values in np.array(points, dtype=float).reshape(len(points), -1).T:
        order = np.argsort(values, kind="stable")
        ordered = values[order]
        distance[order[[0, -1]]] = np.inf
        if ordered[-1] > ordered[0]:
            distance[order[1:-1]] += (ordered[2:] - ordered[:-2]) / (ordered[-1] - ordered[0])
    return [float(each) for each in distance]


def spread_order(points: Sequence[Point]) -> list[int]:
    """Indices, front by front; in each, those first that lie far from their neighbours."""
    if not points:
        return []
    rank = ranks(points)
    distance = [0.0] * len(points)
    for each in set(rank):
        members = [i for i in range(len(points)) if rank[i] == each]
        for i, value in zip(members, crowding([points[i] for i in members]), strict=True):
            distance[i] = value
    return sorted(range(len(points)), key=lambda i: (rank[i], -distance[i], i))
