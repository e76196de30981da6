"""A run's folder: the only readers and writers of its files, and models loaded from it."""
