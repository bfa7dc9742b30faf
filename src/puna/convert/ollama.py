"""Export to Ollama: a GGUF file and its Modelfile.

Ollama renders dialogues with Go templates, not Jinja, so Puna's chat format is implemented here a third time, after
`text.chat.render` and `CHAT_TEMPLATE`. Go templates cannot trim: leading and trailing white space of a message is kept.
Ollama detects support for tools and reasoning, and their syntax, from the template: the tags are plain text around
`.ToolCalls` and `.Thinking`.
"""

from pathlib import Path

from puna.convert.gguf import ExportedFile, export_gguf, sampling_defaults
from puna.core.files import new_directory, write_text
from puna.model.config import ModelConfig
from puna.model.hub import model_name
from puna.model.store import load_config, load_stage
from puna.text.templates import CHAT_TEMPLATE
from puna.text.tokenizer import Tokenizer

# Ollama's templates have no begin token: llama.cpp adds it.
# The list of tools, as in `text.chat`; newlines within a loop are actions, so that they are not taken for tags.
_TOOLS = """\
You can call these functions, each described by a JSON object:
{{ range $n, $tool := $.Tools }}{{ if $n }}{{ "\\n" }}{{ end }}{{ $tool }}{{ end }}

Call a function like this, once for each call:
<tool_call>
{"name": "the function", "arguments": {"parameter": "value"}}
</tool_call>"""
GO_TEMPLATE = (
    """\
{{- range $i, $message := .Messages }}
{{- $last := eq (len (slice $.Messages $i)) 1 }}
{{- if and $.Tools (eq $i 0) (ne .Role "system") }}<|start_header_id|>system<|end_header_id|>

"""
    + _TOOLS
    + """<|eot_id|>
{{- end }}
{{- if eq .Role "system" }}<|start_header_id|>system<|end_header_id|>

{{ .Content }}
{{- if and $.Tools (eq $i 0) }}{{ if .Content }}{{ "\\n\\n" }}{{ end }}"""
    + _TOOLS
    + """{{ end }}<|eot_id|>
{{- else if eq .Role "user" }}<|start_header_id|>user<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- else if eq .Role "tool" }}<|start_header_id|>ipython<|end_header_id|>

{{ .Content }}<|eot_id|>
{{- else if eq .Role "assistant" }}<|start_header_id|>assistant<|end_header_id|>

{{ if .Thinking }}<think>
{{ .Thinking }}
</think>

{{ end }}{{ .Content }}
{{- if .ToolCalls }}
{{- range $j, $call := .ToolCalls }}{{ if or $message.Content $j }}{{ "\\n" }}{{ end }}<tool_call>
{"name": "{{ .Function.Name }}", "arguments": {{ .Function.Arguments }}}
</tool_call>
{{- end }}
{{- end }}
{{- if not $last }}<|eot_id|>{{ end }}
{{- end }}
{{- if and $last (ne .Role "assistant") }}<|start_header_id|>assistant<|end_header_id|>

{{ end }}
{{- end }}"""
)


def export_ollama(
    directory: Path, out: Path, scheme: str, *, name: str = "", verify: bool = True
) -> tuple[ExportedFile, list[str]]:
    """Write `out`/NAME.gguf and `out`/Modelfile. Returns the file and notes for the user.

    Raises PunaError as `export_gguf`, and when `out` exists. The folder appears when both files are complete.
    """
    name = name or model_name(directory)
    config, tokenizer = load_config(directory), Tokenizer.load(directory)
    file = f"{name}-{scheme.upper()}.gguf"
    kind = load_stage(directory)
    with new_directory(out) as place:
        written = export_gguf(directory, place / file, scheme, name=name, verify=verify)
        write_text(place / "Modelfile", modelfile(file, config, tokenizer, kind, directory))
    written.path = out / file
    notes = []
    if kind != "base" and tokenizer.chat_template not in (None, CHAT_TEMPLATE):
        notes.append(
            "The model's chat template is not Puna's: the Modelfile has no TEMPLATE, and Ollama looks for one "
            "that it supports in the GGUF file."
        )
    return written, notes


def modelfile(file: str, config: ModelConfig, tokenizer: Tokenizer, kind: str, directory: Path) -> str:
    """The text of a Modelfile. file: the GGUF in the same folder; kind: "base" or "chat"."""
    lines = [f"FROM ./{file}"]
    if kind == "base":
        lines.append('TEMPLATE "{{ .Prompt }}"')
    elif tokenizer.chat_template in (None, CHAT_TEMPLATE):
        lines.append(f'TEMPLATE """{GO_TEMPLATE}"""')
    # Ollama reserves memory for all of num_ctx: a context of 131,072 would take gigabytes at the start.
    lines.append(f"PARAMETER num_ctx {min(config.max_position_embeddings, 8192)}")
    # Otherwise Ollama's own defaults apply, including a repetition penalty that the model does not have.
    sampling = {"temperature": 1.0, **sampling_defaults(directory), "repeat_penalty": 1.0}
    lines += [f"PARAMETER {key} {value:g}" for key, value in sampling.items()]
    names = {number: token for token, number in tokenizer.special.items()}
    lines += [f'PARAMETER stop "{names[number]}"' for number in tokenizer.eos_ids if number in names]
    return "\n".join(lines) + "\n"
