# A folder of one's own with train/ and val/ by class: nothing to extract.
