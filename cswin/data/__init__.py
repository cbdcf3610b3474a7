"""From archives to batches: everything here works without MindSpore, except mindrecord.py and loader.py."""
