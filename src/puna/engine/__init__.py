"""Generation: continues many prompts at once, over one pool of KV blocks and one scheduler.

`generate.load_engine` gives an `Engine`, whose `generate`, `stream` and `submit` continue prompts. What a prompt gives
does not depend on which others run at the same time.
"""
