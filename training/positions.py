"""Position encodings of spots: learned tables, fixed ones, a learned slope, or none.

After training, every encoding becomes two tables under the published names, one row per coordinate, so that
all checkpoints have one format; without positions the tables are empty.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mclst.models.mclstexp import MclSTExp
from mclst.training.settings import TrainConfig

WAVELENGTH = 10_000.0
NAIVE_UNIT = {"array": 64.0, "pixel": 16_384.0}
"""Units of a naive position: 64 array steps (a legacy ST array is 33 to 35 spots wide, a Visium one 128) or
16,384 level-0 pixels."""


class LinearPosition(nn.Module):
    """Position proportional to the coordinate, along a learned direction of the expression space."""

    def __init__(self, width: int, std: float, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.weight = nn.Parameter(torch.randn(1, width) * std)

    def forward(self, coordinate: Tensor) -> Tensor:
        """int64 [S] → float32 [S, width]."""
        return coordinate.to(self.weight.dtype)[:, None] / self.unit * self.weight


def prepare_positions(network: MclSTExp, config: TrainConfig) -> None:
    """Set up the positions of `config` in a network built with `table_rows` rows."""
    tables = (network.x_embed, network.y_embed)
    if config.positions == "learnable":
        for table in tables:
            nn.init.normal_(table.weight, std=config.position_std)
    elif config.positions == "sinusoidal":
        rows, width = tables[0].weight.shape
        for table, values in zip(tables, sinusoids(rows, width), strict=True):
            table.weight.data.copy_(values)
            table.weight.requires_grad_(False)
    elif config.positions == "naive":
        unit = NAIVE_UNIT[config.settings.context.positions]
        for name, table in zip(("x_embed", "y_embed"), tables, strict=True):
            network.add_module(name, LinearPosition(table.weight.shape[1], config.position_std, unit))


def tabulate_positions(network: MclSTExp, rows: int) -> None:
    """Replace a LinearPosition by a table of its values at 0 … rows - 1; other encodings are tables."""
    for name in ("x_embed", "y_embed"):
        module = network.get_submodule(name)
        if isinstance(module, LinearPosition):
            with torch.no_grad():
                table = module(torch.arange(rows, device=module.weight.device))
            network.add_module(name, nn.Embedding(rows, table.shape[1], _weight=table))


def sinusoids(rows: int, width: int) -> tuple[Tensor, Tensor]:
    """Fixed sinusoidal tables float32 [rows, width] for x and for y.

    x uses the first half of the columns and y the rest, since the sum of two equal tables cannot tell (x, y)
    from (y, x). In each half of width w, column 2i is sin(p / 10000^(2i/w)) and column 2i + 1 the cosine
    (Vaswani et al. 2017, section 3.5).
    """
    halves = (width - width // 2, width // 2)
    position = torch.arange(rows, dtype=torch.float64)[:, None]
    tables = []
    for side, columns in enumerate(halves):
        column = torch.arange(columns)
        angle = position / WAVELENGTH ** ((column - column % 2).double() / max(columns, 1))
        values = torch.where(column % 2 == 0, angle.sin(), angle.cos())
        table = torch.zeros(rows, width, dtype=torch.float64)
        table[:, side * halves[0] : side * halves[0] + columns] = values
        tables.append(table.float())
    return tables[0], tables[1]
