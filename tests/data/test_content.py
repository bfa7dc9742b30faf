"""What a corpus is made of, by its text."""

import inspect
import json
import textwrap

import pytest

from puna.data.content import is_code

PROSE = [
    "It was a quiet evening. The lamp in the window had gone out,\nand nobody lit it.\n\n“Are you there?” she said.\n",
    "First Citizen:\nBefore we proceed any further, hear me speak.\n\nAll:\nSpeak, speak.\n\nFirst Citizen:\n"
    "You are all resolved rather to die than to famish?\nWe are accounted poor citizens;\n",
    "冰是水的固态。\n当温度低于零度时，水会结冰。\n这个过程叫做凝固。\n",
    "Zutaten:\n\n- zwei Eier\n- ein Becher Milch\n\nAlles verrühren, dann backen.\nEs wird eine Stunde dauern.\n",
]
CODE = [
    inspect.getsource(textwrap),
    inspect.getsource(json.decoder),
    '#include <stdio.h>\n\nint main(void) {\n  for (int i = 0; i < 3; i++) {\n    puts("x");\n  }\n  return 0;\n}\n',
    "export function add(a, b) {\n  return a + b;\n}\n\nconst three = add(1, 2);\nconsole.log(three);\n",
    "use std::io;\n\nfn main() {\n    let mut line = String::new();\n    io::stdin().read_line(&mut line);\n}\n",
]


@pytest.mark.parametrize("text", PROSE)
def test_prose(text: str) -> None:
    assert not is_code(text)


@pytest.mark.parametrize("text", CODE)
def test_code(text: str) -> None:
    assert is_code(text)
