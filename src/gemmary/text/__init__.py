"""Text to tokens and back: tokenizer, chat turns, streaming."""
