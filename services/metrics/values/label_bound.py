"""A limit on how many series a metric can have, whatever its callers send."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

OTHER: Final = "other"
"""The label value that replaces all values beyond the limit."""


class LabelBound:
    """Admits label sets of one metric up to a limit; later ones are counted together as `other`.

    A known label set always keeps its own series, so a flood of new ones never hides the old.
    """

    def __init__(self, names: Sequence[str], *, max_values: int, max_series: int) -> None:
        """Allow `max_values` values of each label, and `max_series` label sets in total.

        `other` is not counted in either limit.
        """
        self._values: tuple[set[str], ...] = tuple(set() for _ in names)
        self._sets: set[tuple[str, ...]] = set()
        self._max_values = max_values
        self._max_series = max_series
        self._all_other = (OTHER,) * len(names)

    def __len__(self) -> int:
        """Return the number of label sets admitted."""
        return len(self._sets)

    def admit(self, values: tuple[str, ...]) -> tuple[str, ...]:
        """Return the values to count under: the same, or with `other` in place of some or all."""
        if values in self._sets:
            return values
        bounded = tuple(
            value if value in known or len(known) < self._max_values else OTHER
            for value, known in zip(values, self._values, strict=True)
        )
        if bounded in self._sets:
            return bounded
        if len(self._sets) >= self._max_series:
            return self._all_other
        self._sets.add(bounded)
        for value, known in zip(bounded, self._values, strict=True):
            if value != OTHER:
                known.add(value)
        return bounded
