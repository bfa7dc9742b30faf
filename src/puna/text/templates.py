"""Templates that are saved with every model: the chat format in Jinja, and how to parse an answer.

`CHAT_TEMPLATE` gives the same ids as `chat.render` for every dialogue whose text contains no special token's name.
"""

from typing import Any

CHAT_TEMPLATE = r"""{#- Llama 3's chat format, with <think> for reasoning and <tool_call> for calls. -#}
{%- macro text(content) -%}
{%- if content is string -%}
{{- content -}}
{%- elif content -%}
{%- for part in content -%}
{%- if part.type != 'text' -%}
{{- raise_exception('Only text is understood, not ' ~ part.type ~ '.') -}}
{%- endif -%}
{{- part.text -}}
{%- endfor -%}
{%- endif -%}
{%- endmacro -%}
{%- macro header(role) -%}
{{- '<|start_header_id|>' ~ role ~ '<|end_header_id|>\n\n' -}}
{%- endmacro -%}
{%- macro toolbox() -%}
{{- 'You can call these functions, each described by a JSON object:\n' -}}
{%- for tool in tools -%}
{{- '' if loop.first else '\n' -}}{{- tool | tojson -}}
{%- endfor -%}
{{- '\n\nCall a function like this, once for each call:\n<tool_call>\n' -}}
{{- '{"name": "the function", "arguments": {"parameter": "value"}}\n</tool_call>' -}}
{%- endmacro -%}
{{- bos_token -}}
{%- if tools and messages[0].role not in ['system', 'developer'] -%}
{{- header('system') ~ toolbox() ~ '<|eot_id|>' -}}
{%- endif -%}
{%- for message in messages -%}
{%- set body = text(message.content) | trim -%}
{%- if message.role in ['system', 'developer'] -%}
{{- header('system') ~ body -}}
{%- if tools and loop.first -%}
{{- ('\n\n' if body else '') ~ toolbox() -}}
{%- endif -%}
{%- elif message.role == 'user' -%}
{{- header('user') ~ body -}}
{%- elif message.role in ['tool', 'ipython'] -%}
{{- header('ipython') ~ body -}}
{%- elif message.role == 'assistant' -%}
{{- header('assistant') -}}
{%- set reasoning = (message.reasoning_content or '') | trim -%}
{%- if reasoning -%}
{{- '<think>\n' ~ reasoning ~ '\n</think>\n\n' -}}
{%- endif -%}
{{- body -}}
{%- for entry in message.tool_calls or [] -%}
{%- set call = entry.function or entry -%}
{{- '\n' if body or not loop.first else '' -}}
{{- '<tool_call>\n{"name": ' ~ (call.name | tojson) ~ ', "arguments": ' -}}
{{- call.arguments if call.arguments is string else call.arguments | tojson -}}
{{- '}\n</tool_call>' -}}
{%- endfor -%}
{%- else -%}
{{- raise_exception('Unknown role ' ~ message.role ~ '.') -}}
{%- endif -%}
{{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- header('assistant') -}}
{%- endif -%}
"""

# How transformers, vLLM and SGLang take an answer apart again (transformers 5's `response_template`).
RESPONSE_TEMPLATE: dict[str, Any] = {
    "defaults": {"role": "assistant"},
    "start_anchor": "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "fields": {
        "reasoning_content": {"open_pattern": r"\s*<think>\s*", "close_pattern": r"\s*</think>\s*", "content": "text"},
        "tool_calls": {
            "open_pattern": r"\s*<tool_call>\s*",
            "close_pattern": r"\s*</tool_call>\s*",
            "repeats": True,
            "content": "json",
            "transform": {"type": "function", "function": "{content}"},
        },
        "content": {
            "close_pattern": r"\s*(?:<\|eot_id\|>|<\|eom_id\|>|<\|end_of_text\|>)",
            "content": "text",
        },
    },
}
