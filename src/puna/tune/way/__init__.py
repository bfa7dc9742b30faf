"""All stages in Llama 3's order, each measured beside a control."""
