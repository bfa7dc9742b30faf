"""All stages in Llama 3's order, each compared with a control."""
