"""Conversion of models: import from other layouts, export to GGUF, Ollama and ONNX."""
