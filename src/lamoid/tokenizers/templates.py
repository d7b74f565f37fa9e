"""Chat templates of models: where they are found, and their rendering in a process that can be killed (fault F27)."""

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lamoid.errors import CheckpointError, MissingExtra
from lamoid.tokenizers.tokenizer import CONFIG_FILE, TEMPLATE_FILE, check_encodable, read_config

MAX_TEMPLATE_BYTES = 2**20
MAX_START_S, MAX_RENDER_S = 60, 5
MAX_REQUEST_TEXTS, MAX_REQUEST_BYTES = 256, 2**20
MAX_ANSWER_BYTES = 32 * 2**20
SAFE_JINJA2 = (3, 1, 6)  # older ones have known ways out of the sandbox
_WORKER = Path(__file__).with_name("template_worker.py")
_ENVIRONMENT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "TZ")  # and no tokens or passwords


def find_template(directory: Path) -> str | None:
    """The chat template that a model directory carries, None where it has none.

    In this order: `chat_template.jinja`; `chat_template` of `chat_template.json` or `tokenizer_config.json`, a text, or
    a list of named ones, of which it is the one named `default`, if there is one. Raises CheckpointError where it is no
    text.
    """
    file = directory / TEMPLATE_FILE
    if file.is_file():
        return read_template(file)
    for file in (directory / "chat_template.json", directory / CONFIG_FILE):
        found = read_config(file).get("chat_template")
        if isinstance(found, list):
            defaults = (t.get("template") for t in found if isinstance(t, dict) and t.get("name") == "default")
            found = next(defaults, None)
        if found is not None:
            return check_template(found, file)
    return None


def read_template(file: Path) -> str:
    """The template in a file of its own."""
    try:
        if file.stat().st_size > MAX_TEMPLATE_BYTES:
            raise CheckpointError(
                f"{file} has {file.stat().st_size} bytes; a template has at most {MAX_TEMPLATE_BYTES}"
            )
        return file.read_bytes().decode("utf-8")  # as it is, line ends too
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{file} cannot be read as a chat template: {error}") from error


def check_template(template: object, source: Path | str) -> str:
    """A template out of a larger file. Raises CheckpointError unless it is a text of a bearable length."""
    if not isinstance(template, str):
        raise CheckpointError(f"{source}: the chat template is a {type(template).__name__}; it must be a text")
    n_bytes = len(template.encode("utf-8", "replace"))
    if n_bytes > MAX_TEMPLATE_BYTES:
        raise CheckpointError(f"{source}: the chat template has {n_bytes} bytes; at most {MAX_TEMPLATE_BYTES} are read")
    check_encodable(template, f"{source}: the chat template")
    return template


class TemplateRenderer:
    """Renders one template, in a process of its own that stays between calls; `close` ends it, and so does `with`.

    The process has little memory, few seconds, and none of the environment's secrets. One that takes too long or dies
    costs an error; the next call gets a new one. Raises MissingExtra where jinja2 is missing or too old to be safe.
    """

    def __init__(self, template: str) -> None:
        _require_jinja2()
        self.template = template
        self._process: subprocess.Popen[bytes] | None = None
        self._end: Any = None

    def __enter__(self) -> "TemplateRenderer":
        return self

    def __exit__(self, *details: object) -> None:
        self.close()

    def render(self, variables: Mapping[str, object]) -> str:
        """The text. Raises CheckpointError with the template's complaint, or what limit it broke."""
        text = self.render_many([variables])[0]
        if isinstance(text, CheckpointError):
            raise text
        return text

    def render_many(self, each: Sequence[Mapping[str, object]]) -> list[str | CheckpointError]:
        """For each set of variables the text, or the template's complaint about it; many of them in one request.

        Raises CheckpointError where a request breaks a limit: then none of its texts is known.
        """
        texts: list[str | CheckpointError] = []
        for request in _requests(self.template, each):
            answer: dict[str, Any] = {}
            try:
                if self._process is None:
                    self._start()
                answer = self._exchange(request, MAX_RENDER_S)
            finally:
                if not answer:  # whatever happened, even Ctrl-C: its answer would be taken for the next request's
                    self.close()
            texts += [_text(one) for one in answer["answers"]]
        return texts

    def close(self) -> None:
        """End the process."""
        if self._end is not None:
            self._end()
        self._process = self._end = None

    def _start(self) -> None:
        environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
        self._process = subprocess.Popen(
            [sys.executable, "-P", str(_WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            process_group=0,  # Ctrl-C is not for it
        )
        self._end = weakref.finalize(self, _end, self._process)
        self._exchange(None, MAX_START_S)

    def _exchange(self, request: str | None, seconds: float) -> dict[str, Any]:
        """Send a request, if any, and read one answer; the process is killed when the time is over."""
        process = self._process
        assert process is not None and process.stdin is not None and process.stdout is not None
        began, timer = time.monotonic(), threading.Timer(seconds, process.kill)
        timer.start()
        try:
            if request is not None:
                process.stdin.write(request.encode() + b"\n")
                process.stdin.flush()
            line = process.stdout.readline(MAX_ANSWER_BYTES)
        except BrokenPipeError:
            line = b""
        finally:
            timer.cancel()
        if not line.endswith(b"\n"):
            reason = (
                f"took longer than {seconds} s"
                if time.monotonic() - began >= seconds
                else "broke its limits of time, memory or output"
            )
            raise CheckpointError(f"the chat template {reason}; choose another one with --template")
        return dict(json.loads(line))


def _requests(template: str, each: Sequence[Mapping[str, object]]) -> Iterator[str]:
    """The renderings in requests small enough that only a template that misbehaves can break a limit."""
    waiting, n_bytes = list[str](), 0
    for variables in each:
        text = json.dumps(dict(variables))
        if waiting and (len(waiting) == MAX_REQUEST_TEXTS or n_bytes + len(text) > MAX_REQUEST_BYTES):
            yield _request(template, waiting)
            waiting, n_bytes = [], 0
        waiting.append(text)
        n_bytes += len(text)
    if waiting:
        yield _request(template, waiting)


def _request(template: str, each: Sequence[str]) -> str:
    return f'{{"template": {json.dumps(template)}, "each": [{", ".join(each)}]}}'


def _text(answer: Mapping[str, str]) -> str | CheckpointError:
    if "error" in answer:
        return CheckpointError(f"the chat template failed: {answer['error']}; choose another one with --template")
    return answer["text"]


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _require_jinja2() -> None:
    from importlib.metadata import PackageNotFoundError, version  # 2 MB, for templates alone

    try:
        found = version("jinja2")
    except PackageNotFoundError:
        raise MissingExtra("jinja2, which chat templates need,", "chat") from None
    if tuple(int(part) for part in found.split(".")[:3] if part.isdigit()) < SAFE_JINJA2:
        raise MissingExtra(f"jinja2 {found} is here, but 3.1.6 or newer", "chat")
