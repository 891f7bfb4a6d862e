"""Files of data sets: found, downloaded, read, split, augmented, put into batches."""
