"""/v1/responses, built on the chunks of a chat completion."""
