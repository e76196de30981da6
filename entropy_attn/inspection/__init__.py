"""What a model's heads do on a text of the user's: `python -m entropy_attn.inspect`."""
