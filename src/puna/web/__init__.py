"""The HTTP layer every product shares: accounts, database, pages, streams, Markdown.

It knows no models.
"""
