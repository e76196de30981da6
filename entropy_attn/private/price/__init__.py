"""What a private program costs, without running it. No engine is imported here."""
