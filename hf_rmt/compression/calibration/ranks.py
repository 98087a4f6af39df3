"""Chooses the ranks of all layers by the importance of each direction per parameter.

A direction is a singular value with its vectors, and the rank is how many of them a layer keeps.
The importance (or worth) of a direction is the cost of losing it, as in `low_rank.importance`.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence

from torch import Tensor


def choose_ranks(
    importances: Mapping[str, Tensor],
    costs: Mapping[str, int],
    *,
    budget: int | None = None,
    threshold: float = 1.0,
) -> dict[str, int]:
    """Choose the ranks: the directions with the largest importance per parameter come first.

    A direction is a singular value with its vectors, and its importance is the cost of losing it.
    The rank of a layer is how many directions it keeps.

    Args:
        importances: The importance of each direction of a layer, descending, by layer name.
        costs: Number of parameters of one direction, by layer name.
        budget: The largest number of parameters of all layers together; None for no limit.
        threshold: Stop when the chosen directions have this fraction of the total importance.

    Returns:
        The rank of each layer.

    Examples:
        >>> import torch
        >>> choose_ranks({"a": torch.tensor([9.0, 1.0]), "b": torch.tensor([4.0, 3.0])},
        ...              {"a": 10, "b": 10}, budget=30)
        {'a': 1, 'b': 2}
    """
    values = {name: importance.tolist() for name, importance in importances.items()}
    ranks, rest = dict.fromkeys(values, 0), sum(map(sum, values.values()))
    lost, left = (1 - threshold) * rest, math.inf if budget is None else budget
    queue = [(-value[0] / costs[name], name) for name, value in values.items() if value]
    heapq.heapify(queue)
    while queue and (rest > lost or threshold == 1):
        _, name = heapq.heappop(queue)
        if costs[name] > left:
            continue
        rank = ranks[name] = ranks[name] + 1
        left, rest = left - costs[name], rest - values[name][rank - 1]
        if rank < len(values[name]):
            heapq.heappush(queue, (-values[name][rank] / costs[name], name))
    return ranks


def shared_ranks(
    worth: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], size: float
) -> dict[str, int | None]:
    """The ranks with which all layers together keep a given share of their parameters.

    A rank is how many directions (singular values with their vectors) a layer keeps. The importance
    of a direction is the cost of losing it.

    Args:
        worth: The importance of each direction of a layer, descending, by layer name.
        shapes: Shapes of the layers' weight matrices, by layer name.
        size: Share of the layers' parameters to keep, in (0, 1].

    Returns:
        The rank of each layer, at least 1; None for a layer that stays dense, because factors would
        have about as many parameters, or more.

    Raises:
        ValueError: If `size` is too small for one direction per layer.
    """
    costs = {name: sum(shapes[name]) for name in worth}
    entries = {name: shapes[name][0] * shapes[name][1] for name in worth}
    most = {name: entries[name] // costs[name] for name in worth}
    least, needed, surplus = sum(costs.values()), 0, -1
    further = {name: values[1 : most[name]] for name, values in worth.items()}
    while needed > surplus:
        # a layer that stays dense has more parameters than factors of the largest rank would have
        surplus = needed
        budget = int(size * sum(entries.values())) - surplus
        if budget < least:
            raise ValueError(
                f"size={size} allows {max(budget, 0)} parameters, but one direction per layer "
                f"needs {least}; raise size, or name fewer target_modules"
            )
        ranks = choose_ranks(further, costs, budget=budget - least)
        dense = [name for name, rank in ranks.items() if rank + 1 >= most[name]]
        needed = sum(entries[name] % costs[name] for name in dense)
    return {name: None if name in dense else rank + 1 for name, rank in ranks.items()}


def ranks_that_lose(
    lost: float, worth: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, int | None]:
    """The smallest ranks with which at most a given part of the importance is lost.

    A rank is how many directions (singular values with their vectors) a layer keeps. The importance
    of a direction is the cost of losing it. `shared_ranks` gives the ranks for each share of
    parameters to keep; the smallest share that suffices is taken, in whole percent.

    Args:
        lost: The part of the total importance of all layers that may be lost, in [0, 1].
        worth: The importance of each direction of a layer, descending, by layer name.
        shapes: Shapes of the layers' weight matrices, by layer name.

    Returns:
        The ranks, as `shared_ranks` gives them.

    Raises:
        ValueError: If the layers have no room for one direction each.

    Examples:
        >>> import torch
        >>> worth = {"a": torch.tensor([90.0, 9.0, 0.9, 0.1])}
        >>> ranks_that_lose(0.02, worth, {"a": (4, 16)})
        {'a': 2}
    """
    total = sum(float(values.sum()) for values in worth.values())
    low, high = 0, 100  # low loses too much, or has no room; high does neither
    while high - low > 1:
        middle = (low + high) // 2
        try:
            ranks = shared_ranks(worth, shapes, middle / 100)
        except ValueError:
            low = middle
            continue
        rest = (worth[name][rank:].sum() for name, rank in ranks.items() if rank is not None)
        low, high = (low, middle) if sum(map(float, rest)) <= lost * total else (middle, high)
    return shared_ranks(worth, shapes, high / 100)
