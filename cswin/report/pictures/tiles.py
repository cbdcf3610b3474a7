"""Rows of small images with captions, in blocks with headings."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from cswin.report.pictures.style import INK, SMALL, WIDTH, heading_height

COLUMNS = 8
_SIDE = WIDTH / COLUMNS  # of a cell, inches
_IMAGE = 0.92  # share of a cell's width that the image takes
_LINE = 0.15  # height of a line of a caption, inches
_HEADING = 0.36  # height of a block's heading, inches


@dataclass(frozen=True)
class Tile:
    """An image with its caption.

    Attributes:
        pixels: (C, H, W) uint8, C 1 or 3.
        caption: lines below the image.
        colour: of the frame and of the caption's first line.
    """

    pixels: np.ndarray
    caption: tuple[str, ...]
    colour: str = INK


@dataclass(frozen=True)
class Block:
    """Tiles under a heading."""

    heading: str
    tiles: list[Tile]

    @property
    def height(self) -> float:
        """Inches."""
        return _HEADING + -(-len(self.tiles) // COLUMNS) * self.cell

    @property
    def cell(self) -> float:
        """Height of a tile with its caption, inches."""
        return _SIDE * _IMAGE + _LINE * max((len(tile.caption) for tile in self.tiles), default=0) + 0.12


def blocks_height(blocks: list[Block], subtitle: str = "one line") -> float:
    """Height in inches of a picture that holds these blocks and nothing else."""
    return sum(block.height for block in blocks) + heading_height(subtitle)


def percent(share: float) -> str:
    """A share of 1 as per cent, short."""
    value = 100 * float(share)
    return "<0.1 %" if value < 0.1 else f"{value:.1f} %" if value < 9.95 else f"{value:.0f} %"


def shortened(name: str, longest: int = 11) -> str:
    """A class name that fits below a tile."""
    return name if len(name) <= longest else name[: longest - 1] + "…"


def draw_blocks(figure: Figure, blocks: list[Block]) -> None:
    """All blocks from top to bottom, in a picture of `blocks_height`."""
    total = sum(block.height for block in blocks)
    axes = figure.add_subplot()
    axes.set(xlim=(0, WIDTH), ylim=(total, 0), aspect="equal")
    axes.axis("off")
    top = 0.0
    for block in blocks:
        axes.text(0.04, top + 0.25, block.heading, size=SMALL + 1.5, weight="bold", va="baseline", parse_math=False)
        for number, tile in enumerate(block.tiles):
            row, column = divmod(number, COLUMNS)
            _draw_tile(axes, tile, column * _SIDE + 0.04, top + _HEADING + row * block.cell)
        top += block.height


def _draw_tile(axes: Axes, tile: Tile, left: float, top: float) -> None:
    side, pixels = _SIDE * _IMAGE, np.moveaxis(tile.pixels, 0, -1)
    if pixels.shape[-1] == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    # Small images keep their pixels visible; large ones are shrunk without moiré.
    filter_ = "nearest" if len(pixels) < 64 else "antialiased"
    axes.imshow(pixels, extent=(left, left + side, top + side, top), interpolation=filter_, aspect="auto")
    axes.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor=tile.colour, linewidth=1.6))
    for number, line in enumerate(tile.caption):
        axes.text(left, top + side + 0.05 + _LINE * (number + 0.75), line, size=SMALL - 0.5, color=INK if number else tile.colour,
                  weight="normal" if number else "bold", va="baseline", parse_math=False, clip_on=True)  # fmt: skip
