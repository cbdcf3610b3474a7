"""Settings: defined and documented in settings.py, resolved per stage in resolve.py."""
