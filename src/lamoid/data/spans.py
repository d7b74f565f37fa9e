"""Questions whose answers are spans of a text: SQuAD's format -> windows of tokens, and back to the words of the text.

A context that is longer than a row becomes several windows that overlap; in those without the answer, and where there is
none at all, the span is the first token, [CLS] (Devlin et al. 2019, sections 4.2 and 4.3).
"""

import codecs
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from lamoid.data.records import keep_good, parse_json, read_records, say_file, text_of
from lamoid.data.sources import JSONL_SUFFIXES, find_files, inner_suffix, read_blocks
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.framing import Framed, windows
from lamoid.tokenizers.tokenizer import Tokenizer

SUFFIXES = JSONL_SUFFIXES | {".json"}
SCHEMA = '"question", "context" and "answers" (each a "text" with its "answer_start" in characters)'


@dataclass(frozen=True)
class Question:
    """A question about a context; its answers as (text, first character), none where it cannot be answered."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[str, int], ...]
    source: str


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and what was left out."""

    questions: list[Question]
    bad: list[str]


def read_questions(
    paths: Sequence[str], *, skip_bad: bool = False, notify: Callable[[str], object] = lambda text: None
) -> QuestionSet:
    """Read SQuAD's JSON (1.1 and 2.0), and JSON lines of question, context and answers.

    Raises DataError naming file and line or question, or with `skip_bad` counts it and goes on; either way where nothing
    is left. An answer must stand in the context where it says.
    """
    questions: list[Question] = []
    bad: list[str] = []
    for file in {file: None for path in paths for file in find_files(path, SUFFIXES)}:
        bad_here: list[str] = []
        found = list(keep_good(_read_file(file), bad_here, skip_bad=skip_bad))
        n_without = sum(not question.answers for question in found)
        what = f"questions with answers in their context ({n_without:,} without)"
        say_file(file, what, len(found), bad_here, notify)
        questions, bad = questions + found, bad + bad_here
    if not questions:
        raise DataError(f"{', '.join(paths)}: no question ({len(bad)} bad ones); expected {SCHEMA}, or SQuAD's JSON")
    return QuestionSet(questions, bad)


def _read_file(file: Path) -> Iterator[Question | DataError]:
    if inner_suffix(file) in JSONL_SUFFIXES:
        for where, record in read_records(file):
            yield record if isinstance(record, DataError) else _question(record, where, where)
        return
    if inner_suffix(file) != ".json":
        raise DataError(
            f"{file} is of no known kind; expected one of {' '.join(sorted(SUFFIXES))} (also .gz, .xz, .zst)"
        )
    content = parse_json(b"".join(read_blocks(file)).removeprefix(codecs.BOM_UTF8), str(file))
    if isinstance(content, DataError):
        raise content
    yield from _squad(content, file)


def _squad(content: Any, file: Path) -> Iterator[Question | DataError]:
    """data[].paragraphs[]: a context and its qas[]."""
    try:
        paragraphs = [paragraph for article in content["data"] for paragraph in article["paragraphs"]]
        records = [{**qa, "context": paragraph["context"]} for paragraph in paragraphs for qa in paragraph["qas"]]
    except (TypeError, KeyError) as error:
        raise DataError(f'{file} is not SQuAD\'s: expected {{"data": [{{"paragraphs": […]}}]}} ({error!r})') from None
    for number, record in enumerate(records, start=1):
        yield _question(record, f"{file} question {number} (id {str(record.get('id'))[:40]})", f"{file} {number}")


def _question(record: dict[str, Any], where: str, place: str) -> Question | DataError:
    try:
        question, context = text_of(record, "question", where), text_of(record, "context", where)
        answers = _answers(record, where)
        for text, start in answers:
            _check_answer(text, start, context, where)
    except DataError as error:
        return error
    return Question(str(record.get("id", place)), question, context, answers, where)


def _answers(record: dict[str, Any], where: str) -> tuple[tuple[str, int], ...]:
    """SQuAD's list of objects, or the object of lists that `datasets` makes of it."""
    answers = record.get("answers")
    if isinstance(answers, dict):
        texts, starts = answers.get("text"), answers.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise DataError(f'{where}: "answers" must have lists "text" and "answer_start" of one length')
        answers = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(answers, list) or not all(isinstance(answer, dict) for answer in answers):
        raise DataError(
            f"{where}: expected {SCHEMA}, and an empty list where there is none; it has {', '.join(record)[:80]}"
        )
    if record.get("is_impossible") is True:
        return ()
    return tuple((text_of(a, "text", where), _start_of(a, where)) for a in answers)


def _start_of(answer: dict[str, Any], where: str) -> int:
    start = answer.get("answer_start")
    if type(start) is not int or start < 0:
        raise DataError(f"{where}: answer_start is {start!r}; it must be the answer's first character, counted from 0")
    return start


def _check_answer(text: str, start: int, context: str, where: str) -> None:
    there = context[start : start + len(text)]
    if there != text:
        at = context.find(text)
        hint = f"it stands at {at}" if at >= 0 else "it stands nowhere in the context"
        raise DataError(
            f"{where}: the answer {text[:40]!r} is not at character {start}, where {there[:40]!r} stands; {hint}"
        )


@dataclass(frozen=True)
class Windows:
    """Rows, the [first, last] token of each one's span, and the number of the question that each belongs to.

    Where an answer lies in none of its question's windows, it cannot be trained: their labels are IGNORED, and `n_lost`
    counts such questions.
    """

    rows: list[Framed]
    labels: list[list[int]]
    owners: list[int]
    n_lost: int


def encode_questions(tokenizer: Tokenizer, questions: Sequence[Question], *, max_tokens: int, overlap: int) -> Windows:
    """Windows of [CLS] question [SEP] context [SEP]; of several answers the first is trained."""
    result = Windows([], [], [], 0)
    n_lost = 0
    for number, question in enumerate(questions):
        try:
            made = windows(tokenizer, question.question, question.context, max_tokens=max_tokens, overlap=overlap)
        except DataError as error:
            raise DataError(f"{question.source}: {error}") from None
        spans = [find_span(row, *_bounds(question.answers[0])) if question.answers else [0, 0] for row in made]
        if question.answers and not any(map(any, spans)):
            spans, n_lost = [[IGNORED, IGNORED]] * len(made), n_lost + 1
        result.rows.extend(made)
        result.labels.extend(spans)
        result.owners.extend([number] * len(made))
    return replace(result, n_lost=n_lost)


def _bounds(answer: tuple[str, int]) -> tuple[int, int]:
    """The characters of an answer without the white space around it, which no token has."""
    text, start = answer
    begin = start + len(text) - len(text.lstrip())
    return begin, begin + len(text.strip())


def find_span(row: Framed, begin: int, end: int) -> list[int]:
    """The first and last token that have characters of [begin, end); [0, 0] where not all of it is in this window."""
    context = np.flatnonzero(row.sources == 1)
    offsets = row.offsets[context]
    touched = context[(offsets[:, 0] < end) & (offsets[:, 1] > begin)]
    if not len(touched) or offsets[0, 0] > begin or offsets[-1, 1] < end:
        return [0, 0]
    return [int(touched[0]), int(touched[-1])]


@dataclass(frozen=True)
class Answer:
    """A span of the context as text, its first character, and how much likelier it is than that there is none (nats)."""

    text: str
    start: int
    margin: float


def extract_answers(
    questions: Sequence[Question],
    made: Windows,
    begin_logits: Sequence[np.ndarray],
    end_logits: Sequence[np.ndarray],
    *,
    max_answer_tokens: int = 30,
) -> list[Answer]:
    """The best span of each question over all of its windows.

    A span is valid if it lies in the context, ends where it begins or later, and has at most `max_answer_tokens`; its
    score is the sum of its two logits. `margin` is that less the lowest score of [CLS] among the windows: negative where
    a model that was trained on questions without an answer finds none (Devlin et al. 2019, section 4.3).
    """
    best = [(-np.inf, 0, 0)] * len(questions)
    none = [np.inf] * len(questions)
    for row, owner, begins, ends in zip(made.rows, made.owners, begin_logits, end_logits, strict=True):
        none[owner] = min(none[owner], float(begins[0] + ends[0]))
        score, first, last = best_span(row, begins, ends, max_answer_tokens)
        if score > best[owner][0]:
            best[owner] = (score, int(row.offsets[first, 0]), int(row.offsets[last, 1]))
    return [
        Answer(question.context[begin:end], begin, score - null)
        for question, (score, begin, end), null in zip(questions, best, none, strict=True)
    ]


def best_span(row: Framed, begins: np.ndarray, ends: np.ndarray, max_answer_tokens: int) -> tuple[float, int, int]:
    """(score, first token, last token) of the best valid span; a score of −∞ where the context has no token."""
    context = np.flatnonzero(row.sources == 1)
    best = (-np.inf, 0, 0)
    for length in range(min(max_answer_tokens, len(context))):
        scores = begins[context[: len(context) - length]] + ends[context[length:]]
        place = int(scores.argmax())
        if scores[place] > best[0]:
            best = (float(scores[place]), int(context[place]), int(context[place + length]))
    return best
