"""Where images come from: archives, folders, the embedded digits; and the tree that an extraction writes."""
