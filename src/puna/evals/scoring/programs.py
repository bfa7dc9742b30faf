"""Finds the Python program in a model's answer, however it is wrapped.

The program is a fenced block, or the answer itself; it may be whole or continue the prompt's function, be indented too
little or too much, begin with `from __future__`, and stand among sentences. Candidates are parsed by `ast`, and the
first that is Python counts; nothing runs here.
"""

import ast
import re
import textwrap
import warnings

from puna.tasks.fences import fenced_blocks

MAX_ANSWER = 200_000
"""The beginning of an answer, in characters, that is searched."""
MAX_TRIES = 12
"""How many places a program among sentences may begin at, and how many sentences behind it are cut off."""
_BEGIN = re.compile(r"(?:def|class|async def|from|import|@\w)(?![\w'])")


def find_program(response: str, prompt: str, name: str) -> str | None:
    """Return the program in a response that defines `name`, with the prompt's imports or head; None if there is none.

    prompt: Python that ends in the head of a function, which the response may continue; or nothing. The last block that
    defines the function counts. What is no Python is returned as it is, if it looks as if it defined the function.
    """
    text = response[:MAX_ANSWER].replace("\r\n", "\n").replace("\r", "\n")
    _, thought, rest = text.rpartition("</think>")
    text = rest if thought and rest.strip() else text
    blocks = _blocks(text) or [(text, False)]
    for code, closed in blocks:
        if program := _whole(code, name, closed):
            return f"{prompt}{code}" if _goes_on(prompt, code, name) else _joined(prompt, program)
    if not _mentions(prompt, name):
        return next((_dedented(code) for code, _ in blocks if _mentions(code, name)), None)
    for code, closed in blocks:
        if body := _body(code, prompt, name, closed):
            return f"{prompt}{body}"
    return f"{prompt}{blocks[0][0]}"


def _blocks(text: str) -> list[tuple[str, bool]]:
    """The fenced blocks of a text that have content, the last one first, and whether each is closed."""
    found = [*reversed(fenced_blocks(text)), *reversed(fenced_blocks(text, containers=False))]
    return [(block.content, block.closed) for block in found if block.content.strip()]


def _whole(code: str, name: str, closed: bool) -> str | None:
    """The code if it defines the function by itself; of what is not a closed block, the part that does."""
    if not re.search(rf"\b{re.escape(name)}\b", code):
        return None
    code = _dedented(code)
    if closed or _compiles(code):
        return code if _compiles(code) and name in _defined(code) else None
    lines = code.split("\n")
    for start in [number for number, line in enumerate(lines) if _BEGIN.match(line)][:MAX_TRIES]:
        part = _without_rest("\n".join(lines[start:]), 0)
        if part and name in _defined(part):
            return part
    return None


def _goes_on(prompt: str, code: str, name: str) -> bool:
    """Whether what the code defines is a helper of that name within the prompt's function, whose body goes on."""
    tree = _parsed(f"{prompt}{code}") if code.strip("\n")[:1].isspace() and _mentions(prompt, name) else None
    last = tree.body[-1] if tree and tree.body else None
    inner = last.body[-1] if isinstance(last, ast.FunctionDef) and last.name == name else None
    return inner is not None and not isinstance(inner, ast.FunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom)


def _body(code: str, prompt: str, name: str, closed: bool) -> str | None:
    """The code as the body of the prompt's function, with the indentation that this needs."""
    first, _, rest = code.strip("\n").partition("\n")
    for body in (
        code,
        _indented(code),
        f"    {first.strip()}\n{rest}",  # only the first line lost its spaces
        _indented(f"{first.strip()}\n{_dedented(rest)}"),
    ):
        program = f"{prompt}{body}"
        if not closed and not _compiles(program):
            program = _without_rest(program, len(prompt)) or program
        if _compiles(program) and _has_body(program, name):
            return program[len(prompt) :]
    return None


def _dedented(code: str) -> str:
    """Remove the indentation that all lines share. Unlike textwrap's, this leaves blank lines within strings alone."""
    lines = code.split("\n")
    margins = [line[: len(line) - len(line.lstrip(" \t"))] for line in lines if line.strip()]
    margin = min(margins, key=len, default="")
    while not all(one.startswith(margin) for one in margins):
        margin = margin[:-1]
    return "\n".join(line.removeprefix(margin) for line in lines) if margin else code


def _indented(code: str) -> str:
    return textwrap.indent(_dedented(code), "    ")


def _without_rest(code: str, least: int) -> str | None:
    """Cut a program off where it stops being Python, at the margin; None if less than `least` characters are left."""
    for _ in range(MAX_TRIES):
        try:
            _compile(code)
        except SyntaxError as error:
            lines = code.split("\n")
            stop = min((error.lineno or 1), len(lines)) - 1
            while stop > 0 and not re.match(r"\S", lines[stop]):
                stop -= 1  # back to the statement that has the error in it
            code = "\n".join(lines[:stop]) + "\n"
        except (ValueError, RecursionError, MemoryError, OverflowError):
            return None
        else:
            return code
        if len(code) <= max(1, least):
            return None
    return None


def _joined(prompt: str, program: str) -> str:
    """A whole program with the prompt's imports and helpers, behind what must come first: from __future__ import."""
    tree = _parsed(prompt)
    helpers = [node for node in (tree.body if tree else ()) if not isinstance(node, ast.Expr)][:-1]
    if not helpers:
        return program
    tree = _parsed(program)
    future = [
        node.end_lineno or 0
        for node in (tree.body if tree else ())
        if isinstance(node, ast.ImportFrom) and node.module == "__future__"
    ]
    lines, last = program.split("\n"), max(future, default=0)
    return "\n".join([*lines[:last], *map(ast.unparse, helpers), *lines[last:]])


def _has_body(program: str, name: str) -> bool:
    """Whether the function has more than the docstring that the prompt gave it."""
    tree = _parsed(program)
    return any(
        not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant)
        for node in (tree.body if tree else ())
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name == name
        for statement in node.body
    )


def _defined(program: str) -> set[str]:
    """The names of a program's functions, and of what it assigns."""
    tree = _parsed(program)
    names: set[str] = set()
    for node in tree.body if tree else ():
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def _mentions(text: str, name: str) -> bool:
    """Whether a text, Python or nearly so, defines the function."""
    return (
        re.search(rf"^[ \t]{{0,40}}(?:async )?def {{1,9}}{re.escape(name)} {{0,9}}\(", text, re.MULTILINE) is not None
    )


def _compile(code: str) -> None:
    """Compile a program without running it: unlike parsing, this also finds a `return` outside a function."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes and the like
        compile(code, "answer.py", "exec", dont_inherit=True)


def _compiles(code: str) -> bool:
    try:
        _compile(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        return False
    return True


def _parsed(code: str) -> ast.Module | None:
    """The tree of a program; None for what is not Python."""
    if not _compiles(code):
        return None
    return ast.parse(code)
