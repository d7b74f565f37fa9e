"""Questions and answers: SQuAD's format, characters to tokens and back, windows, the best valid span."""

import json

import numpy as np
import pytest
import transformers

from lamoid.data.padded import LabelledRows
from lamoid.data.spans import Question, best_span, encode_questions, extract_answers, find_span, read_questions
from lamoid.errors import DataError
from lamoid.nn.losses import IGNORED
from lamoid.tokenizers.framing import frame_many
from lamoid.tokenizers.gpt2 import train_roberta
from lamoid.tokenizers.load import load_tokenizer

LONG = " ".join(f"Câu số {n} nói về thành phố thứ {n}, 第{n}个城市, {n}번째 도시." for n in range(40))
CASES = [
    ("Ai viết?", "Truyện Kiều do Nguyễn Du viết, khoảng năm 1820.", "Nguyễn Du"),
    ("Khi nào?", "Truye\u0323\u0302n Kie\u0302\u0300u, khoa\u0309ng na\u0306m 1820 (?).", "na\u0306m 1820"),
    ("谁写的？", "《红楼梦》由曹雪芹写成，共一百二十回。", "曹雪芹"),
    ("누가 썼나?", "《홍길동전》은 허균이 지은 소설이다.", "허균이"),
    ("emoji?", "😀😀 the answer 👍🏽 is 😀 here", "👍🏽 is"),
    ("first?", "Answer first, then the rest.", "Answer"),
    ("last?", "The answer comes last", "last"),
    ("all?", "everything", "everything"),
    ("far away?", LONG, "第33个城市"),
]


def question(text, context, answer, number=0):
    answers = ((answer, context.index(answer)),) if answer is not None else ()
    return Question(str(number), text, context, answers, f"line {number}")


QUESTIONS = [question(*case, number) for number, case in enumerate(CASES)]


@pytest.fixture(scope="module", params=["bert", "roberta"])
def both(request, minilm, tmp_path_factory):
    if request.param == "bert":
        return load_tokenizer(minilm), transformers.AutoTokenizer.from_pretrained(minilm)
    ours, folder = train_roberta([c for _, c, _ in CASES] * 2, 500), tmp_path_factory.mktemp("roberta")
    for name, content in ours.files().items():
        (folder / name).write_bytes(content)
    return ours, transformers.AutoTokenizer.from_pretrained(folder)


def one_hot(made):
    """Logits that say what the labels say; nothing in windows without the answer."""
    logits = [], []
    for row, places in zip(made.rows, made.labels, strict=True):
        for side, place in zip(logits, places, strict=True):
            side.append(np.where((np.arange(len(row)) == place) & (max(places) > 0), 9.0, 0.0))
    return logits


# ---- characters to tokens and back


@pytest.mark.parametrize(("max_tokens", "overlap"), [(64, 24), (100, 50), (512, 128)])
def test_answers_survive_the_way_to_tokens_and_back(both, max_tokens, overlap):
    ours, _ = both
    made = encode_questions(ours, QUESTIONS, max_tokens=max_tokens, overlap=overlap)
    assert made.n_lost == 0
    answers = extract_answers(QUESTIONS, made, *one_hot(made), max_answer_tokens=60)
    for answer, q in zip(answers, QUESTIONS, strict=True):
        ((text, start),) = q.answers
        if ours.special_id("bos") is None:
            assert (answer.text, answer.start) == (text, start)
        else:  # tokens of byte-level BPE may hold parts of two Chinese characters
            assert text in answer.text and len(answer.text) <= len(text) + 2
            assert q.context[answer.start :].startswith(answer.text)


def test_places_are_those_of_transformers(both):
    ours, twin = both
    for q in QUESTIONS:
        ((text, start),) = q.answers
        options = {"truncation": "only_second", "max_length": 64, "stride": 24, "return_overflowing_tokens": True}
        expected = twin(q.question, q.context, split_special_tokens=True, **options)
        made = encode_questions(ours, [q], max_tokens=64, overlap=24)
        assert len(made.rows) == len(expected["input_ids"])
        for window, labels in enumerate(made.labels):
            first = expected.char_to_token(window, start, sequence_index=1)
            last = expected.char_to_token(window, start + len(text) - 1, sequence_index=1)
            if first is None or last is None:
                assert labels == [0, 0]
            else:  # where a character makes several tokens, theirs is the first of the last one, ours the last
                begins, end = made.rows[window].offsets[:, 0], start + len(text)
                assert labels[0] == first and labels[1] >= last
                assert begins[labels[1]] < end and not 0 < begins[labels[1] + 1] < end


def test_long_contexts_become_windows_some_without_the_answer(both):
    ours, _ = both
    made = encode_questions(ours, QUESTIONS[-1:], max_tokens=64, overlap=24)
    assert len(made.rows) > 5 and set(made.owners) == {0}
    assert all(len(row) <= 64 for row in made.rows)
    n_with = sum(labels != [0, 0] for labels in made.labels)
    assert 1 <= n_with <= 2 < len(made.rows)


def test_an_answer_inside_a_token_takes_the_whole_token(both):
    ours, _ = both
    (row,) = frame_many(ours, ["q"], ["everything else"], max_tokens=50)
    first, last = find_span(row, 2, 4)
    begin, end = row.offsets[first, 0], row.offsets[last, 1]
    assert begin <= 2 and end >= 4


def test_space_around_an_answer_changes_nothing(both):
    ours, _ = both
    context = "It was in  1820 , they say."
    for answer in ("1820", " 1820", "  1820 "):
        made = encode_questions(ours, [question("q", context, answer)], max_tokens=50, overlap=5)
        ((first, last),) = made.labels
        assert context[made.rows[0].offsets[first, 0] : made.rows[0].offsets[last, 1]] == "1820"


def test_questions_without_an_answer_point_at_the_first_token(both):
    ours, _ = both
    made = encode_questions(ours, [question("why?", LONG, None)], max_tokens=64, overlap=16)
    assert set(map(tuple, made.labels)) == {(0, 0)} and made.n_lost == 0


def test_an_answer_longer_than_every_window_is_not_trained(both):
    ours, _ = both
    made = encode_questions(ours, [question("q", LONG, LONG[10:-10]), QUESTIONS[0]], max_tokens=64, overlap=16)
    assert made.n_lost == 1
    assert all(
        (labels == [IGNORED, IGNORED]) == (owner == 0) for labels, owner in zip(made.labels, made.owners, strict=True)
    )


def test_a_question_that_fills_the_row_is_named(both):
    with pytest.raises(DataError, match=r"line 7: 'why why .* leaves"):
        encode_questions(both[0], [question("why " * 80, "b", "b", 7)], max_tokens=64, overlap=16)


def test_rows_make_batches(both):
    ours, _ = both
    made = encode_questions(ours, QUESTIONS, max_tokens=64, overlap=24)
    batch, _ = LabelledRows(made.rows, made.labels, 4, 0, ours.special_id("pad"))((0, 0))
    assert batch.labels.shape == (4, 2)


# ---- the best span


def brute_force(row, begins, ends, most):
    context = [i for i, source in enumerate(row.sources) if source == 1]
    spans = [(begins[i] + ends[j], i, j) for i in context for j in context if i <= j < i + most]
    return max(spans, key=lambda span: span[0])


@pytest.mark.parametrize("most", [1, 2, 7, 30, 1000])
def test_the_best_span_is_the_best_of_all_valid_ones(both, most):
    ours, _ = both
    row = encode_questions(ours, QUESTIONS[:1], max_tokens=64, overlap=24).rows[0]
    random = np.random.default_rng(0)
    for _ in range(30):
        begins, ends = random.normal(size=(2, len(row)))
        begins[0] = ends[0] = 50.0  # the first token and the question are no answers
        begins[2] = 40.0
        score, first, last = best_span(row, begins, ends, most)
        assert (score, first, last) == pytest.approx(brute_force(row, begins, ends, most))


def test_the_best_window_wins_and_the_margin_is_against_no_answer(both):
    ours, _ = both
    made = encode_questions(ours, QUESTIONS[-1:], max_tokens=64, overlap=24)
    begins = [np.zeros(len(row)) for row in made.rows]
    ends = [np.zeros(len(row)) for row in made.rows]
    place = next(i for i, labels in enumerate(made.labels) if labels != [0, 0])
    first, last = made.labels[place]
    begins[place][first], ends[place][last] = 5.0, 4.0
    for b in begins:
        b[0] = 3.0
    begins[1][0] = 2.0
    (answer,) = extract_answers(QUESTIONS[-1:], made, begins, ends)
    assert answer.text == "第33个城市" or answer.text in LONG
    assert answer.margin == 9.0 - 2.0


def test_a_context_without_tokens_has_the_empty_answer(minilm):
    ours = load_tokenizer(minilm)
    q = question("q", "\u200b\u200d", None)
    made = encode_questions(ours, [q], max_tokens=20, overlap=2)
    (answer,) = extract_answers([q], made, *one_hot(made))
    assert (answer.text, answer.margin) == ("", -np.inf)


# ---- files

RECORDS = [
    {"id": str(n), "question": q, "context": c, "answers": [{"text": a, "answer_start": c.index(a)}]}
    for n, (q, c, a) in enumerate(CASES)
]


def squad(records):
    paragraphs = [{"context": r["context"], "qas": [{k: v for k, v in r.items() if k != "context"}]} for r in records]
    return json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": paragraphs}]})


@pytest.fixture
def write(tmp_path):
    def write(content, name="a.jsonl"):
        file = tmp_path / name
        file.write_bytes(content if isinstance(content, bytes) else content.encode())
        return str(file)

    return write


def test_all_forms_give_the_same_questions(write):
    said = []
    of_lists = [
        {**r, "answers": {"text": [r["answers"][0]["text"]], "answer_start": [r["answers"][0]["answer_start"]]}}
        for r in RECORDS
    ]
    files = [
        write("".join(json.dumps(r) + "\n" for r in RECORDS), "a.jsonl"),
        write("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in of_lists), "b.jsonl"),
        write(squad(RECORDS), "c.json"),
        write("\ufeff" + squad(of_lists), "d.json"),
    ]
    for file in files:
        found = read_questions([file], notify=said.append).questions
        assert [(q.id, q.question, q.context, q.answers) for q in found] == [
            (q.id, q.question, q.context, q.answers) for q in QUESTIONS
        ]
    assert f"questions with answers in their context (0 without), {len(CASES)} examples" in said[0]


def test_questions_without_an_answer_are_read(write):
    impossible = {"id": "x", "question": "why?", "context": "c d", "answers": [], "is_impossible": True}
    misleading = {**impossible, "id": "y", "answers": [{"text": "c", "answer_start": 0}]}
    content = json.dumps(impossible) + "\n" + json.dumps(misleading) + "\n"
    said = []
    found = read_questions([write(content)], notify=said.append).questions
    assert [q.answers for q in found] == [(), ()]
    assert "(2 without)" in said[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"answers": [{"text": "Du", "answer_start": 3}]},
            r"the answer 'Du' is not at character 3, where .*; it stands at 22",
        ),
        ({"answers": [{"text": "Hồ", "answer_start": 3}]}, "it stands nowhere in the context"),
        ({"answers": [{"text": "Du", "answer_start": "22"}]}, "answer_start is '22'"),
        ({"answers": [{"text": "Du", "answer_start": -25}]}, "answer_start is -25"),
        ({"answers": [{"text": "Du", "answer_start": True}]}, "answer_start is True"),
        ({"answers": [{"text": "", "answer_start": 0}]}, "text must be a text that is not empty"),
        ({"answers": ["Du"]}, 'expected "question", "context" and "answers"'),
        ({"answers": None}, 'expected "question", "context" and "answers"'),
        ({"answers": {"text": ["Du"], "answer_start": []}}, "lists .* of one length"),
        ({"question": ""}, "question must be a text that is not empty"),
        ({"context": 7}, "context must be a text that is not empty, got '7'"),
        ({"context": "\ud800 Du"}, "lone surrogate at character 0 of context"),
    ],
)
def test_bad_questions_are_named_or_skipped(write, change, message):
    bad = {**RECORDS[0], **change}
    lines = write("".join(json.dumps(r) + "\n" for r in (RECORDS[1], bad, RECORDS[2])))
    with pytest.raises(DataError, match=rf"a\.jsonl line 2: .*{message}.*--skip-bad"):
        read_questions([lines])
    with pytest.raises(DataError, match=rf"a\.json question 2 \(id 0\): .*{message}"):
        read_questions([write(squad([RECORDS[1], bad, RECORDS[2]]), "a.json")])
    found = read_questions([lines], skip_bad=True)
    assert [q.id for q in found.questions] == ["1", "2"] and len(found.bad) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", r"a\.json is not JSON"),
        ("a.json", "[]", r"a\.json is not SQuAD's"),
        ("a.json", '{"data": [{"paragraphs": [{"qas": [1], "context": "c"}]}]}', r"a\.json is not SQuAD's"),
        ("a.json", '{"data": []}', r"no question \(0 bad ones\)"),
        ("a.json", b'{"data": "\xff"}', r"a\.json is not UTF-8: byte 0xFF"),
        ("a.jsonl", "", r"no question \(0 bad ones\)"),
        ("a.csv", "question,context\n", r"a\.csv is of no known kind"),
    ],
)
def test_unreadable_files_are_named(write, name, content, message):
    with pytest.raises(DataError, match=message):
        read_questions([write(content, name)])
