"""Pixels: decoding, resizing, and operations on 8-bit images, bit-identical to Pillow's."""
