"""Square windows over an image, and the square of keys that each sees (Zhu et al., 2021)."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Tiling2d:
    """Tile (i, j) holds window x window queries; its keys reach `margin` cells beyond them on all four sides.

    An image of any height and width is filled up with zeros to whole tiles.

    Attributes:
        window: w.
    """

    window: int

    @property
    def margin(self) -> int:
        """As published: half a window, yet one cell at least."""
        return max(self.window // 2, 1)

    @property
    def span(self) -> int:
        """Keys of a tile along one side."""
        return self.window + 2 * self.margin

    def queries(self, image: Tensor) -> Tensor:
        """(B, H, height, width, D) to (B, tiles, H, window^2, D)."""
        height, width = (-size % self.window for size in image.shape[2:4])
        return self._squares(F.pad(image, (0, 0, 0, width, 0, height)), self.window)

    def keys(self, image: Tensor) -> Tensor:
        """(B, H, height, width, D) to (B, tiles, H, span^2, D)."""
        height, width = (-size % self.window for size in image.shape[2:4])
        margin = self.margin
        return self._squares(F.pad(image, (0, 0, margin, margin + width, margin, margin + height)), self.span)

    def exist(self, padding: Tensor) -> Tensor:
        """(B, height, width) bool to (B, tiles, span^2): which keys of a tile are there."""
        return self.keys(padding[:, None, ..., None])[:, :, 0, :, 0]

    def untiled(self, mixed: Tensor, height: int, width: int) -> Tensor:
        """(B, tiles, H, window^2, D), all tiles of an image, back to (B, H, height, width, D)."""
        rows = -(-height // self.window)
        square = mixed.unflatten(1, (rows, -1)).unflatten(4, (self.window, self.window))
        image = square.permute(0, 3, 1, 4, 2, 5, 6).flatten(4, 5).flatten(2, 3)
        return image[:, :, :height, :width]

    def _squares(self, image: Tensor, size: int) -> Tensor:
        """Squares of so many cells a side, one every `window` cells: (B, tiles, H, size^2, D)."""
        squares = image.unfold(2, size, self.window).unfold(
            3, size, self.window
        )  # (B, H, rows, columns, D, size, size)
        return squares.permute(0, 2, 3, 1, 5, 6, 4).flatten(4, 5).flatten(1, 2)
