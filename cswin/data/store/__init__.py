"""A dataset on disk: the manifest, its shards, their index, and their verification."""
