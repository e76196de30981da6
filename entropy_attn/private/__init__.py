"""The model as two-party computation: commands above `program`, `parties` and `price`."""
