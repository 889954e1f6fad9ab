"""The assignment problem: rows to columns, one to one, at the least cost."""

import numpy as np
import numpy.typing as npt


def assignment(costs: npt.ArrayLike) -> list[tuple[int, int]]:
    """Pairs (row, column) of a finite (R, C) matrix whose costs sum to the least.

    min(R, C) pairs in the order of rows. Hungarian method with potentials, O(R^2 C); see Burkard,
    Dell'Amico and Martello, "Assignment Problems" (2009), section 4.4.
    """
    matrix = np.asarray(costs, np.float64)
    rows, columns = matrix.shape
    if not rows or not columns:
        return []
    if rows > columns:
        return sorted((row, column) for column, row in assignment(matrix.T))
    # Row and column 0 are virtual: `owner[c]` is the row of column c, 0 for none.
    over_rows, over_columns = np.zeros(rows + 1), np.zeros(columns + 1)
    owner = np.zeros(columns + 1, np.int64)
    for row in range(1, rows + 1):
        owner[0], column = row, 0
        slack, reached = np.full(columns + 1, np.inf), np.zeros(columns + 1, np.int64)
        used = np.zeros(columns + 1, np.bool_)
        while owner[column]:
            used[column] = True
            current = owner[column]
            reduced = matrix[current - 1] - over_rows[current] - over_columns[1:]
            better = ~used[1:] & (reduced < slack[1:])
            slack[1:][better], reached[1:][better] = reduced[better], column
            free = np.where(used[1:], np.inf, slack[1:])
            following = int(np.argmin(free)) + 1
            step = free[following - 1]
            over_rows[owner[used]] += step
            over_columns[used] -= step
            slack[~used] -= step
            column = following
        while column:
            before = reached[column]
            owner[column], column = owner[before], before
    return sorted((int(owner[c]) - 1, c - 1) for c in range(1, columns + 1) if owner[c])
