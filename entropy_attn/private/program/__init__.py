"""What a model becomes: its private program and the weights it runs on. No engine is imported here."""
