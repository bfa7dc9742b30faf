"""A model's text as HTML in which nothing runs, loads or links by itself.

`render` is a complete text, `Live` one that grows. `maths`, `emphasis` and `addresses` are what this Markdown adds
to CommonMark.
"""

from puna.web.markdown.render import Live, blocks, plain_blocks, render, render_plain, visible

__all__ = ["Live", "blocks", "plain_blocks", "render", "render_plain", "visible"]
