"""Pixels: decoding, resizing, and operations on 8-bit images, equal to Pillow's to the bit."""
