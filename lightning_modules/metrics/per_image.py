"""What all metrics here share: rows, one an image, gathered from all ranks and counted once."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import Metric


class PerImageMetric(Metric):
    """A metric computed from columns of values that :meth:`append` collects.

    Samplers give every rank equally many images by repeating some; ``index`` tells which rows are
    of the same image. Ranks may hold different numbers of rows, or none.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    columns: ClassVar[dict[str, torch.dtype]] = {}
    """Name and type of each column; one is the image's ``index``."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        for name in self.columns:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    @property
    def update_called(self) -> bool:
        """Always true: no image to judge, as in data without masks, is answered by NaN.

        torchmetrics warns of ``compute`` before the first ``update`` otherwise.
        """
        return True

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather the rows of all ranks; arguments as of :meth:`torchmetrics.Metric.sync`."""
        for name in self.columns:
            # A rank without rows would offer an empty float32 tensor, whatever the column's type,
            # and the ranks would no longer exchange the same number of bytes.
            if isinstance(getattr(self, name), list) and not getattr(self, name):
                setattr(self, name, [self.column(name)])
        super().sync(*args, **kwargs)

    def append(self, **rows: Tensor) -> None:
        """Add rows; all columns must be given."""
        for name, dtype in self.columns.items():
            getattr(self, name).append(rows[name].detach().to(self.device, dtype))

    def column(self, name: str) -> Tensor:
        """All rows of a column, before or after the ranks were gathered."""
        state = getattr(self, name)
        if isinstance(state, Tensor):
            return state
        return torch.cat([torch.empty(0, dtype=self.columns[name], device=self.device), *state])


def first_rows(index: Tensor) -> Tensor:
    """Positions of the first row of each image, in the order of the index.

    Args:
        index: int64 ``(N,)``, possibly with repetitions.

    Returns:
        int64 ``(M,)`` with M <= N.

    Example:
        >>> import torch
        >>> first_rows(torch.tensor([7, 3, 7, 5]))
        tensor([1, 3, 0])
    """
    ordered, order = index.sort(stable=True)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[1:] = ordered[1:] != ordered[:-1]
    return order[first]


def check_rows(metric: Metric, **rows: Tensor) -> None:
    """Check that all arguments are one-dimensional and equally long.

    Raises:
        ValueError: If they are not, naming the shapes.
    """
    shapes = {name: tuple(values.shape) for name, values in rows.items()}
    if len(set(shapes.values())) > 1 or any(len(shape) != 1 for shape in shapes.values()):
        raise ValueError(f"{type(metric).__name__} got {shapes}: all of them must be (B,)")
