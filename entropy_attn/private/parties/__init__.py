"""Who runs a private program: the two-party engine, and the two processes that talk through it."""
