"""Published accuracies of the authors' weights, top-1 and top-5 in per cent, as PaddleClas lists them for its conversions."""

ACCURACY: dict[str, tuple[float, float]] = {
    "cswin_64_12211_tiny_224": (82.81, 96.28),
    "cswin_64_24322_small_224": (83.58, 96.58),
    "cswin_96_24322_base_224": (84.20, 96.92),
    "cswin_144_24322_large_224": (86.43, 97.99),
    "cswin_96_24322_base_384": (85.50, 97.49),
    "cswin_144_24322_large_384": (87.48, 98.33),
}
