"""Questions about Python's standard library with their answers, made by rule from its docstrings, without importing it.

    What does NAME do?        the first sentence of its docstring
    What does NAME return?    what follows "Return" in a later sentence

The context holds the docstrings of three neighbours in a file, one behind the other and without their names: which of them
is about NAME has to be understood. Files are held out whole.
"""

import ast
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NEIGHBOURS, WORDS, MOST_TRAINED, MOST_HELDOUT, HELDOUT_EVERY = 3, (6, 45), 3500, 400, 5
_LEFT_OUT = {"test", "tests", "idlelib", "lib2to3", "site-packages", "turtledemo", "ensurepip", "pydoc_data"}
_RETURN = re.compile(r"[.!?]\s+Returns?\s+([^.]{10,150}?)\.(?:\s|$)")
_SENTENCES = re.compile(r"(?<=[.!?])\s+")


def questions() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """To train on, and held out: records as `lamoid finetune --task span` reads them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    files = [f for f in sorted(root.rglob("*.py")) if not _LEFT_OUT & set(f.relative_to(root).parts)]
    parts: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for number, file in enumerate(files):
        parts[number % HELDOUT_EVERY == 0].extend(_of_file(file.read_text(encoding="utf-8", errors="replace")))
    return _spread(parts[0], MOST_TRAINED), _spread(parts[1], MOST_HELDOUT)


def first_sentence(text: str) -> str:
    """Up to the first full stop that ends something."""
    return _SENTENCES.split(text.strip(), maxsplit=1)[0]


def most_like(question: str, context: str) -> str:
    """The sentence of the context that shares most words with the question, whose names are taken apart; the first of equals."""
    asked = _stems(question)
    return max(_SENTENCES.split(context), key=lambda sentence: len(asked & _stems(sentence)))


def _stems(text: str) -> set[str]:
    return {word[:4].lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+", text)}


def _of_file(source: str) -> list[dict[str, Any]]:
    documented, made = list(_documented(source)), []
    for start in range(0, len(documented), NEIGHBOURS):
        group = documented[start : start + NEIGHBOURS]
        if len({first_sentence(text) for _, text in group}) < NEIGHBOURS:
            continue
        context, begin = " ".join(text for _, text in group), 0
        for name, text in group:
            for asked, answer, at in _about(name, text):
                answers = [{"text": answer, "answer_start": begin + at}]
                made.append({"question": asked, "context": context, "answers": answers})
            begin += len(text) + 1
    return made


def _documented(source: str) -> Iterator[tuple[str, str]]:
    """Names of public functions and classes, and the first words of their docstrings, on one line."""
    try:
        nodes = list(ast.walk(ast.parse(source)))
    except SyntaxError:
        return
    for node in nodes:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            words = (ast.get_docstring(node) or "").split()
            text = " ".join(words[: WORDS[1]])
            if len(words) >= WORDS[0] and "." in text:
                yield node.name, text[: text.rfind(".") + 1]


def _about(name: str, text: str) -> list[tuple[str, str, int]]:
    found = [(f"What does {name} do?", first_sentence(text), 0)]
    if match := _RETURN.search(text):
        found.append((f"What does {name} return?", match[1], match.start(1)))
    return found


def _spread(items: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """As many as `most`, from all over."""
    step = max(len(items) / most, 1)
    return [items[int(i * step)] for i in range(min(most, len(items)))]
