"""Columns of a table without pandas, which takes a quarter of a second to load."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Self

from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

NONE: Mapping[str, NDArray[Any]] = MappingProxyType({})


class Columns(Mapping[str, "NDArray[Any]"]):
    """Columns of a table by name, read-only; a DataFrame for who asks for one.

    Parameters
    ----------
    index : ndarray of str, shape (n,), or range
        Names of the rows, or their numbers.
    columns : mapping of str to ndarray, shape (n,)
        Or to what makes a column when it is first read.
    """

    def __init__(
        self,
        index: NDArray[Any] | range,
        columns: Mapping[str, NDArray[Any] | Callable[[], NDArray[Any]]] = NONE,
    ) -> None:
        self.index = index
        self._columns = dict(columns)

    @classmethod
    def of(cls, frame: pd.DataFrame) -> Self:
        """Take the columns of a DataFrame, which stays as it is."""
        columns = cls(frame.index.to_numpy(), {str(name): values.to_numpy for name, values in frame.items()})
        columns.frame = frame
        return columns

    @cached_property
    def frame(self) -> pd.DataFrame:
        """The table as a DataFrame."""
        import pandas as pd

        return pd.DataFrame(dict(self), index=self.index)

    def __getitem__(self, name: str) -> NDArray[Any]:
        column = self._columns[name]
        if callable(column):
            column = self._columns[name] = column()
        return column

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)
