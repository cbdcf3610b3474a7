"""Sources of images: archives, folders, the digits of scikit-learn; and the tree that an extraction writes."""
