"""Tokenizer, chat renderer and templates: the only code that turns text into token ids and loss masks."""
