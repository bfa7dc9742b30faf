"""Generation: one scheduler and one paged KV cache behind `Engine`; device code in `cpu` and `cuda`."""
