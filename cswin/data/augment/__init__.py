"""Augmentation of images and batches: crop, RandAugment, erasing, mixing, normalisation."""
