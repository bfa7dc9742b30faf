"""One step of the engine: scheduler, KV cache, model runner, and the loop that drives them."""
