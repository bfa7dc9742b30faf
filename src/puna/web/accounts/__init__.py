"""Accounts, their sessions, API keys and invitations, and the pages for them."""
