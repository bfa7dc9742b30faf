"""Text to token ids and back: the tokenizer and the chat renderer. The only place where either is made."""
