"""A dataset on disk: the manifest, its shards, their index, and the check of all of it."""
