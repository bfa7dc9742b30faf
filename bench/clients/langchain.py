"""langchain-openai: a function, an answer of a recursive pydantic type, a stream; also by responses."""

import os
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_openai import ChatOpenAI
from pydantic import BaseModel


class Node(BaseModel):
    """A node."""

    place: Path
    next: "Node | None" = None


options = {"model": os.environ["MODEL"], "base_url": os.environ["BASE_URL"], "api_key": "none", "max_retries": 0}
for responses in (False, True):
    model = ChatOpenAI(**options, use_responses_api=responses, max_tokens=400)
    bound = model.bind_tools([Node])
    answer = bound.invoke("A node, please.")
    assert answer.tool_calls[0]["name"] == "Node", answer
    messages = [HumanMessage("x"), answer, ToolMessage("ok", tool_call_id=answer.tool_calls[0]["id"])]
    assert bound.invoke(messages).text == "Done."
    assert "".join(chunk.text for chunk in model.stream("Hello")) == "Done."
    broken = AIMessage(
        "",
        invalid_tool_calls=[
            {"name": "Node", "args": '{"place": "', "id": "c", "error": None, "type": "invalid_tool_call"}
        ],
    )
    assert model.invoke([HumanMessage("x"), broken, HumanMessage("y")]).text
    forced = model.bind_tools([Node], tool_choice="any").invoke("A node, please.")
    assert forced.tool_calls or forced.response_metadata
print("functions of recursive types, broken calls in the history, streams, by chat and by responses")
