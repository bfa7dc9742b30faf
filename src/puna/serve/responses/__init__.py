"""/v1/responses: OpenAI's newer form of chat, made of the older one's chunks."""
