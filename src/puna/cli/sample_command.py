"""continue a prompt

The prompt and its continuation stream to stdout.
"""

import argparse
import sys

from puna.cli import generation_options


def arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("model", metavar="MODEL", help="model or run directory")
    parser.add_argument("-p", "--prompt", required=True, metavar="TEXT", help="text to continue; - reads stdin")
    generation_options.add_options(parser, max_tokens=128)


def run(args: argparse.Namespace) -> None:
    """Stream the text, or print JSON."""
    from puna.core.console import print_json
    from puna.model.hub import model_directory

    model_directory(args.model)  # a wrong path is reported before torch is loaded
    params = generation_options.sampling_params(args)
    engine = generation_options.load(args)
    assert engine.tokenizer is not None
    prompt = sys.stdin.read() if args.prompt == "-" else args.prompt
    ids = engine.tokenizer.encode(prompt, bos=True)
    if args.json:
        [completion] = engine.generate([ids], params)
        print_json({"prompt": prompt, "prompt_ids": ids, **vars(completion)})
        return
    stream = engine.stream(ids, params)
    sys.stdout.write(prompt)
    for _, text in stream:
        sys.stdout.write(text)
        sys.stdout.flush()
    sys.stdout.write("\n")
