"""openai-agents: an agent with a function and an answer of a type, by chat completions and by responses."""

import asyncio
import os

from agents import (
    Agent,
    AsyncOpenAI,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)

set_tracing_disabled(True)
asked = []


@function_tool
def get_time(city: str) -> str:
    """The time in a city."""
    asked.append(city)
    return "noon"


async def main() -> None:
    client = AsyncOpenAI(base_url=os.environ["BASE_URL"], api_key="none", max_retries=0)
    for kind in (OpenAIChatCompletionsModel, OpenAIResponsesModel):
        asked.clear()
        agent = Agent(name="A", tools=[get_time], model=kind(model=os.environ["MODEL"], openai_client=client))
        result = await Runner.run(agent, "The time?")
        assert result.final_output == "Done.", result.final_output
        assert asked == ["echo hello"], asked
        streamed = Runner.run_streamed(agent, "The time?")
        async for _ in streamed.stream_events():
            pass
        assert streamed.final_output == "Done."
        follow = await Runner.run(agent, [*result.to_input_list(), {"role": "user", "content": "Again?"}])
        assert follow.final_output == "Done."


asyncio.run(main())
print("a function, streams and a history, by chat and by responses")
