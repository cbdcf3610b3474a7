"""What happens to an image and to a batch: crop, RandAugment, erasing, mixing, normalisation."""
