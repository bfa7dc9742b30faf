"""Another server (vLLM, llama.cpp, or any with OpenAI's API) behind the `Backend` protocol."""
