"""What a model wrote, or whoever talked to it, where people read it among our own words."""

import json


def printable(text: str) -> str:
    r"""Return text on one line, with what a terminal does not print written as JSON would.

    So nothing in it begins a line of its own or turns round what follows: escapes, line breaks and the Unicode marks that do
    so appear as `\u202e`, which in JSON is the same string.
    """
    return "".join(each if each.isprintable() else json.dumps(each)[1:-1] for each in text)
