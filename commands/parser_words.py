"""What a parser says, in one line: jsonargparse reports on every type that a setting could have had."""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import fields, is_dataclass

from run_state.names import did_you_mean

_FRAME = re.compile(
    "Does not validate|Subtypes:|Errors:|Given value|Parser key|Problem with given|Subclass types|a class path|a dict "
    "with|Expected a path but"
)
_OF_A_TYPE = ("Expected a", "Not a valid subclass")
_MISSPELT = re.compile(
    r"Option '(\S+)' is not|arguments: --([\w.]+)|has no attribute '(\w+)'|option '(\S+)'$|invalid choice: '(.+?)'"
)


def tell(message: str, names: Iterable[str] = ()) -> str:
    """Return the reason among the words of a parser, with the nearest name where one is misspelt.

    The `names` are those of its options, without dashes.
    """
    lines = [line.strip(" -") for line in message.splitlines()]
    reasons = [line for line in lines if line and not _FRAME.match(line)]
    own = [line for line in reasons if not line.startswith(_OF_A_TYPE)]
    key = ".".join(re.findall('Parser key "([^"]+)"', message))
    listed = " ".join(re.findall(r"(?:Literal\[|choose from )(.*?)[\])]", message))
    choices = list(dict.fromkeys(re.findall(r"[\w.-]+", listed)))
    value = re.search("G(?:ot|iven) value: (.*)", message)
    if own or not key or not value:
        reason = own[0] if own and len(lines) > len(own) else re.sub('Parser key "(.*?)"', r"\1", message)
        misspelt = _MISSPELT.search(reason)
        known = [*names, *choices, *_names_of_classes(message)]
        hint = did_you_mean(next(filter(None, misspelt.groups())), known) if misspelt else ""
        return f"{key}: {reason}{hint}" if own and key else f"{reason}{hint}"
    if nested := re.match(r"NestedArg\(key='(.*?)'", value[1]):
        return f"{key}.{nested[1]} is not accepted by what {key} is now"
    types = re.findall(r"Expected a <class '(?:\w+\.)*(\w+)'>", message)
    expected = choices or [name for name in dict.fromkeys(types) if name != "NoneType"]
    if "import path" in message or "valid subclass" in message:
        expected.append("an import path")
    return f"{key} is {value[1]}, expected {', '.join(expected)}{did_you_mean(value[1], choices)}"


def _names_of_classes(message: str) -> Iterator[str]:
    """Yield what the classes that a message names take, and what is in their modules."""
    for path in re.findall(r"class_path '([\w.]+)'", message):
        module, _, name = path.rpartition(".")
        present = vars(sys.modules.get(module, object))
        yield from ("class_path", "init_args", *present)
        for option, parameter in inspect.signature(present.get(name, tell)).parameters.items():
            yield option
            if is_dataclass(parameter.default):
                yield from (f"{option}.{field.name}" for field in fields(parameter.default))
