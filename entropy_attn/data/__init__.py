"""Text in, batches of token sequences out: corpora, tokenizers, datasets built once, and the Grain pipeline."""
