"""The process in which chat templates are rendered: a JSON request a line in, a JSON answer a line out.

A request is one template and the variables of `each` rendering; the answer has, in their order, a text or an error.

A template is a stranger's program. Here jinja2's sandbox keeps it away from Python, the operating system's limits keep
its memory and time small, and `templates.py`, which starts this file by its path, kills it when it takes too long.
It imports jinja2 and the standard library alone, so that it is there in a tenth of a second.
"""

import contextlib
import json
import resource
import signal
import sys
from collections.abc import Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_MEMORY_BYTES = 512 * 2**20
MAX_CPU_S = 4
MAX_OUTPUT_CHARACTERS = 2**20  # a context of 131,072 tokens has about half of it


class _GenerationBlock(Extension):
    """`{% generation %} … {% endgeneration %}`, with which some templates mark the answer, changes nothing here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node | list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def main() -> None:
    """Answer requests until the input ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for limit, value in ((resource.RLIMIT_AS, MAX_MEMORY_BYTES), (resource.RLIMIT_FSIZE, 0), (resource.RLIMIT_CORE, 0)):
        with contextlib.suppress(OSError, ValueError):  # not every system has each of them
            resource.setrlimit(limit, (value, value))
    environment = _environment()
    _answer({"ready": True})
    for line in sys.stdin.buffer:
        request = json.loads(line)
        _limit_cpu()
        try:
            template = environment.from_string(request["template"])
        except Exception as error:
            _answer({"answers": [_error(error)] * len(request["each"])})
            continue
        _answer({"answers": [_render(template, variables) for variables in request["each"]]})


def _render(template: Template, variables: dict[str, object]) -> dict[str, str]:
    try:
        return {"text": _join(template.generate(variables))}
    except Exception as error:
        return _error(error)


def _error(error: Exception) -> dict[str, str]:
    return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def _environment() -> ImmutableSandboxedEnvironment:
    """What templates of Hugging Face models expect to find."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _GenerationBlock]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {"raise_exception": _refuse, "strftime_now": _now}
    return environment


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def _refuse(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _to_json(
    value: object, ensure_ascii: bool = False, indent: Any = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """jinja2's own would write < and > as escapes for HTML."""
    return json.dumps(value, indent=indent, ensure_ascii=ensure_ascii, separators=separators, sort_keys=sort_keys)


def _join(pieces: Iterable[str]) -> str:
    kept, n_characters = [], 0
    for piece in pieces:
        n_characters += len(piece)
        if n_characters > MAX_OUTPUT_CHARACTERS:
            raise ValueError(f"more than {MAX_OUTPUT_CHARACTERS} characters")
        kept.append(piece)
    return "".join(kept)


def _limit_cpu() -> None:
    """From now on MAX_CPU_S more seconds of computing, then the system ends this process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime) + 1 + MAX_CPU_S
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, hard))


def _answer(value: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
