"""Another server's model as a backend: vLLM, llama.cpp's server, or any that speaks OpenAI's protocol."""
