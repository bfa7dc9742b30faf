"""Puna raises an open Llama-class language model and puts it in people's hands."""

__version__ = "0.1.0"
