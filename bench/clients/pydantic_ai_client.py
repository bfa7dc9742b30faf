"""pydantic-ai: an agent with a function, by chat completions and by responses."""

import os

from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url=os.environ["BASE_URL"], api_key="none")
asked = []


def get_time(city: str) -> str:
    """The time in a city."""
    asked.append(city)
    return "noon"


for kind in (OpenAIChatModel, OpenAIResponsesModel):
    asked.clear()
    agent = Agent(kind(os.environ["MODEL"], provider=provider), tools=[get_time])
    result = agent.run_sync("The time?")
    assert result.output == "Done.", result.output
    assert asked == ["echo hello"]
    assert agent.run_sync("Again?", message_history=result.all_messages()).output == "Done."
print("a function and a history, by chat and by responses")
