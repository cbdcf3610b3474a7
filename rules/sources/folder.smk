# The user's own folder with train/ and val/ by class: nothing to extract.
