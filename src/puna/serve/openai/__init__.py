"""OpenAI's API: requests, response objects, routes, and streams."""
