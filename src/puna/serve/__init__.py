"""The model server: OpenAI's API (`openai`), and what computes the answers (`backends`)."""
