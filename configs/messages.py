"""What Hydra and OmegaConf say about a config, in the words of a user: where, which key, what."""

from __future__ import annotations

import re

KINDS = {"Integer": "a whole number", "Float": "a number", "Boolean": "true or false"}
"""OmegaConf's types."""

NOISE = re.compile(
    r"\s+(full_key:|reference_type=|object_type=|provider=)|Config search path:|To append to your"
)
"""Lines that describe Hydra or OmegaConf internals, or suggest adding a key that nothing would
read."""

PLACES = (
    (r"In '(\w+/[\w-]+)': (?:\w+ raised while composing config:\n?)?", r"configs/\1.yaml: "),
    (r"Error merging override (.*)\n?", r"\1: "),
    (r"Could not override '(\w+)'\.\n?", r"\1=: "),
)

REASONS = (
    (
        r"Value '(.*)' of type '\w+' could not be converted to (\w+)",
        lambda found: f"expected {KINDS.get(found[2], found[2])}, got {found[1]}",
    ),
    (r"Value '(.*)' is not a valid bool.*", r"expected true or false, got \1"),
    (r"Cannot convert '\w+' to string: '(.*)'", r"expected a text, got \1"),
    (r"Invalid value assigned: \w+ is not a ListConfig.*", "expected a list such as [1,2]"),
    (r".* is not a subclass of .*", "expected lines of key: value"),
    (r"Cannot merge .*", "expected a list where configs/schema.py has one, and else key: value"),
    (r"[Ff]ield '.*' is not Optional", "expected a value, got null"),
    (r"Key '.*' (not in|is not in struct).*", "there is no such key; nothing would read it"),
    (
        r"Structured config of type .* has missing mandatory value: .*",
        "has no value: the yaml that is chosen must set it, or the command line",
    ),
)


def in_words(text: str, where: str = "") -> str:
    """An exception's text, which may be of several lines, without what only Hydra understands.

    Args:
        text: of the exception and its cause.
        where: the file that was read, if the text does not know it.
    """
    key = re.search(r"full_key: (\S+)", text)
    message = "\n".join(line for line in text.splitlines() if line and not NOISE.match(line))
    place = f"{where}: " if where else ""
    for pattern, words in PLACES:
        if found := re.match(pattern, message):
            place, message = found.expand(words), message[found.end() :]
            break
    if key and not place.startswith(key[1].partition("[")[0]):
        place += f"{key[1]}: "
    for pattern, words in REASONS:
        if re.fullmatch(pattern, message):
            return place + re.sub(f"^{pattern}$", words, message)
    return place + message
