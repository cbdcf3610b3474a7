"""Settings: defined, typed, bounded and documented once (settings.py), resolved per stage (resolve.py)."""
