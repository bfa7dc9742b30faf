"""The server: OpenAI's API over HTTP, health, metrics, and the page to talk in."""
