"""From archives to batches: sources, store, images, augmentation, loader. Only `store.mindrecord` needs MindSpore."""
