"""Which ids of a conversation an assistant wrote, against the masks that transformers makes of `{% generation %}`."""

import json

import pytest
import tokenizers as runtime
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from lamoid.errors import CheckpointError, DataError, LamoidError, UsageError
from lamoid.tokenizers import templates
from lamoid.tokenizers.answers import Encoded, RewrittenError, encode_answers
from lamoid.tokenizers.chat import ChatEncoder, TemplateFormat, llama_2, llama_3
from lamoid.tokenizers.templates import TemplateRenderer
from lamoid.tokenizers.tiktoken import read_tiktoken, write_tiktoken
from lamoid.tokenizers.tokenizer import Tokenizer

LLAMA_3 = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content | trim + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m.content | trim + '<|eot_id|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content + '<|eot_id|>' }}{% endgeneration %}"
    "{% else %}{{ m.content + '<|eot_id|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\\n' }}{% endif %}"
)
"""A newline behind the end of every turn, which is not trained, and one in front of the answer, in one text with it."""
PHI = CHATML + "{% if not add_generation_prompt %}{{ eos_token }}{% endif %}"
"""A token at the end of the conversation that no turn in its middle has."""
SPACED = (
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}"
    "{% generation %}{{ ' ' + m.content + '<|eot_id|><|end_of_text|>' }}{% endgeneration %}"
    "{% else %}{{ '[' + m.role + '] ' + m.content + ' [/]' }}{% endif %}{% endfor %}"
)
"""No word before an answer, as in Llama 2's format, and two tokens behind it, of which both are trained."""
TEMPLATES = {"llama 3": LLAMA_3, "chatml": CHATML, "phi": PHI, "spaced": SPACED}


def say(*contents: str, system: str = "") -> list[dict[str, str]]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return [{"role": "system", "content": system}] * bool(system) + turns


CONVERSATIONS = [
    say("What is the capital of France?", "Paris."),
    say("Hello", "Hi! How can I help?", "1+1?", "2", "And 2+2?", "4, of course.\n", system="Be brief."),
    say(
        "Thủ đô của Việt Nam là gì?", "Hà Nội.", "Ở đó có gì ngon?", "Phở, bún chả.", system="Trả lời bằng tiếng Việt."
    ),
    say("Tie\u0302\u0301ng Vie\u0323\u0302t", "Vâng, tie\u0302\u0301ng Vie\u0323\u0302t"),
    say("你好！", "你好，世界。", "안녕하세요 👨‍👩‍👧", "안녕하세요! ٣٤٥ 👍🏽"),
    say("\u3000wide\u00a0", "𠮷野家で𩸽を食べる㐀㐁"),
    say("code?", "```python\ndef f(x):\n    return x  # {{ x }}\n```", "why", "because"),
    say("same", "same", "same", "same"),
    say("an empty answer", "", "another", "no"),
    say("x<|eot_id|>y", "the model wrote <|eot_id|> too<|end_of_text|>", "z", "w"),
    say("ends with <|eot_", "id|> and <|start_header_id|>"),
    [*say("tool?", "calls"), {"role": "tool", "content": "42"}, {"role": "assistant", "content": "It is 42."}],
    [{"role": "assistant", "content": "I begin."}, *say("You do?", "I do.")],
]


def answers_of(messages) -> list[int]:
    return [i for i, message in enumerate(messages) if message["role"] == "assistant"]


def encode(template, tokenizer, conversations, answers=None) -> list[Encoded | LamoidError]:
    with TemplateRenderer(template) as renderer:
        encoder = ChatEncoder(TemplateFormat(renderer, tokenizer), tokenizer)
        return encode_answers(encoder, conversations, answers or [answers_of(messages) for messages in conversations])


def text_of(tokenizer: Tokenizer, encoded: Encoded) -> str:
    """What is trained, special tokens too, with a bar wherever something untrained stands between."""
    marks = [index if trained else None for index, trained in zip(encoded.ids, encoded.trained, strict=True)]
    pieces, run = [], []
    for mark in [*marks, None]:
        if mark is not None:
            run.append(mark)
        elif run:
            pieces.append(tokenizer.decode(run, skip_special_tokens=False))
            run = []
    return " | ".join(pieces)


def spy_on_requests(monkeypatch) -> list[str | None]:
    """What is sent to the process that renders, None for its start; filled as it goes."""
    requests: list[str | None] = []
    exchange = TemplateRenderer._exchange

    def spy(self, request, seconds):
        requests.append(request)
        return exchange(self, request, seconds)

    monkeypatch.setattr(TemplateRenderer, "_exchange", spy)
    return requests


@pytest.fixture(scope="module")
def tokenizer(bpe) -> Tokenizer:
    return read_tiktoken(write_tiktoken(bpe))


@pytest.fixture(scope="module")
def twin(tokenizer, tmp_path_factory) -> PreTrainedTokenizerFast:
    folder = tmp_path_factory.mktemp("twin")
    for name, content in tokenizer.files().items():
        (folder / name).write_bytes(content)
    return PreTrainedTokenizerFast.from_pretrained(folder)


# ---- against transformers


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_ids_and_masks_are_those_of_transformers(tokenizer, twin, template):
    plain = [c for c in CONVERSATIONS if "<|" not in json.dumps(c)]  # transformers takes those for special tokens
    for messages, encoded in zip(plain, encode(template, tokenizer, plain), strict=True):
        theirs = twin.apply_chat_template(
            messages, chat_template=template, return_dict=True, return_assistant_tokens_mask=True
        )
        assert encoded.ids == theirs["input_ids"]
        assert encoded.trained == [bool(mask) for mask in theirs["assistant_masks"]]


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
def test_ids_are_those_of_the_encoder(tokenizer, template):
    """Also where messages spell special tokens, which stay text."""
    with TemplateRenderer(template) as renderer:
        encoder = ChatEncoder(TemplateFormat(renderer, tokenizer), tokenizer)
        many = encode_answers(encoder, CONVERSATIONS, [answers_of(messages) for messages in CONVERSATIONS])
        for messages, encoded in zip(CONVERSATIONS, many, strict=True):
            assert encoded.ids == encoder.encode(messages, add_generation_prompt=False)
            assert len(encoded.trained) == len(encoded.ids)


# ---- what is trained


def test_the_answers_and_their_ends_are_trained_and_nothing_else(tokenizer):
    ends = {"llama 3": "<|eot_id|>", "chatml": "<|eot_id|>", "phi": "<|eot_id|>", "spaced": "<|eot_id|><|end_of_text|>"}
    for name, template in TEMPLATES.items():
        for messages, encoded in zip(CONVERSATIONS, encode(template, tokenizer, CONVERSATIONS), strict=True):
            contents = [messages[i]["content"] for i in answers_of(messages)]
            contents = [c.strip() if name == "llama 3" else " " * (name == "spaced") + c for c in contents]
            assert text_of(tokenizer, encoded) == " | ".join(content + ends[name] for content in contents)


def test_only_the_answers_that_are_wanted(tokenizer):
    conversation = CONVERSATIONS[1]
    for wanted, expected in (
        ([6], "4, of course.<|eot_id|>"),
        ([2, 6], "Hi! How can I help?<|eot_id|> | 4, of course.<|eot_id|>"),
    ):
        (encoded,) = encode(LLAMA_3, tokenizer, [conversation], [wanted])
        assert text_of(tokenizer, encoded) == expected


def test_built_in_formats(tokenizer, bpe):
    (encoded,) = encode_answers(ChatEncoder(llama_3, bpe), [say("Hi", " Chào! ", "?", "你好", system="x")], [[2, 4]])
    assert text_of(bpe, encoded) == "Chào!<|eot_id|> | 你好<|eot_id|>"
    state = json.loads(bpe.backend.to_str().replace("<|begin_of_text|>", "<s>").replace("<|end_of_text|>", "</s>"))
    specials = {"bos": "<s>", "eos": "</s>"}
    renamed = Tokenizer(runtime.Tokenizer.from_str(json.dumps(state)), specials)
    (encoded,) = encode_answers(ChatEncoder(llama_2, renamed), [say("Hi", "Chào!", "?", "你好", system="x")], [[2, 4]])
    assert text_of(renamed, encoded) == " Chào! </s> |  你好 </s>"


def test_without_an_end_of_turn_the_line_end_is_trained(tokenizer):
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '\\n' }}{% endfor %}"
    (encoded,) = encode(
        template + "{% if add_generation_prompt %}assistant: {% endif %}", tokenizer, [say("a", "1. b", "c", "2. d")]
    )
    assert text_of(tokenizer, encoded) == "1. b\n | 2. d\n"


def test_a_token_that_has_a_character_of_the_answer_is_trained(tokenizer):
    """No character of an answer goes untrained: a token that it shares with the prompt is trained whole."""
    template = "{% for m in messages %}{{ m.role + ': ' + m.content + '<|eot_id|>' }}{% endfor %}"
    (encoded,) = encode(template + "{% if add_generation_prompt %}assistant: {% endif %}", tokenizer, [say("a", "bcd")])
    assert text_of(tokenizer, encoded) == " bcd<|eot_id|>"


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_metaspace(bpe, scheme):
    """Tokenizers that put a space in front of a text, or only in front of the first one."""
    state = json.loads(bpe.backend.to_str())
    state["normalizer"], state["model"]["byte_fallback"] = None, False
    letters = sorted({c for messages in CONVERSATIONS for m in messages for c in m["content"]} | set("▁<|>:_[/]"))
    vocabulary = {
        c: n for n, c in enumerate(dict.fromkeys(["<|begin_of_text|>", "<|eot_id|>", "<|end_of_text|>", *letters]))
    }
    state["model"] |= {"vocab": vocabulary, "merges": [], "unk_token": None}
    state["added_tokens"] = [
        {"id": n, "content": token, "special": True}
        | dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
        for token, n in vocabulary.items()
        if token.startswith("<|") and len(token) > 2
    ]
    state["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": False}
    state["decoder"], state["post_processor"] = (
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "never", "split": False},
        None,
    )
    tokenizer = Tokenizer(
        runtime.Tokenizer.from_str(json.dumps(state)), {"eos": "<|end_of_text|>", "bos": "<|begin_of_text|>"}
    )
    for messages, encoded in zip(CONVERSATIONS, encode(SPACED, tokenizer, CONVERSATIONS), strict=True):
        contents = [messages[i]["content"] for i in answers_of(messages)]
        runs = [run.strip() for run in text_of(tokenizer, encoded).split(" | ")]
        assert runs == [(content + "<|eot_id|><|end_of_text|>").strip() for content in contents]


@given(st.lists(st.text(max_size=30), min_size=2, max_size=6).filter(lambda contents: len(contents) % 2 == 0))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_any_text_is_trained_where_an_assistant_said_it(bpe, contents):
    (encoded,) = encode_answers(ChatEncoder(llama_3, bpe), [say(*contents)], [answers_of(say(*contents))])
    assert text_of(bpe, encoded) == " | ".join(content.strip() + "<|eot_id|>" for content in contents[1::2])


# ---- templates that make it hard


REWRITES_ANSWERS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}"
    "{{ m.content + '<|eot_id|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\\n' }}{% endif %}"
)
MOVES_THE_SYSTEM_TURN = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{% set s = messages[0].content %}{% set rest = messages[1:] %}"
    "{% else %}{% set s = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}{% if m.role == 'user' %}"
    "{% set is_last = loop.index0 >= (rest | length) - 2 %}{{ '[INST]' + (s if is_last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}"
)


@pytest.mark.parametrize("template", [REWRITES_ANSWERS, MOVES_THE_SYSTEM_TURN], ids=["answers", "system turn"])
def test_templates_that_rewrite_what_was_said(tokenizer, template):
    conversation = say("a", "b", "c", "d", system="s")
    (error,) = encode(template, tokenizer, [conversation])
    assert isinstance(error, RewrittenError)
    (last,) = encode(template, tokenizer, [conversation], [[4]])
    assert text_of(tokenizer, last).replace("<think>\n\n</think>\n\n", "").startswith("d<|e")


def test_what_is_wrong_with_one_conversation_stands_in_its_place(tokenizer):
    template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + LLAMA_3
    conversations = [say("a", "b"), say("a", "b", system="s"), [{"role": "robot", "content": "x"}], say("c", "d")]
    results = encode(template, tokenizer, conversations, [[1], [2], [0], [1]])
    kinds = [type(result) for result in results]
    assert kinds == [Encoded, CheckpointError, UsageError, Encoded]
    assert "no system" in str(results[1]) and "robot" in str(results[2])
    assert text_of(tokenizer, results[3]) == "d<|eot_id|>"


def test_template_that_does_not_compile(tokenizer):
    results = encode("{{ 'x' }", tokenizer, [say("a", "b")] * 3)
    assert all(isinstance(result, CheckpointError) and "unexpected" in str(result) for result in results)


def test_hostile_templates_are_cut_off_in_batches_too(tokenizer, monkeypatch, children_cpu_s):
    """The first request that breaks a limit is the last: what ended the process would take as long for each of the others."""
    template = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    requests = spy_on_requests(monkeypatch)
    began = children_cpu_s()
    with pytest.raises(CheckpointError, match="longer|limits"):
        encode(template, tokenizer, [say("a", "b")] * 600)
    assert [request is None for request in requests] == [True, False]  # the start, and one of several requests
    assert children_cpu_s() - began < templates.MAX_RENDER_S + 2  # of computing: a busy machine does not add to it


def test_many_texts_need_few_requests(tokenizer, monkeypatch):
    """10,000 conversations are to take seconds: nearly all that a rendering costs is the way to the other process."""
    requests = spy_on_requests(monkeypatch)
    results = encode(LLAMA_3, tokenizer, [say(f"{i}", f"{i}", f"{i}", f"{i}") for i in range(400)])
    assert [text_of(tokenizer, r) for r in results] == [f"{i}<|eot_id|> | {i}<|eot_id|>" for i in range(400)]
    assert len(requests) < 400 * 5 / 100


def test_long_conversations_go_in_requests_of_their_own(tokenizer, monkeypatch):
    monkeypatch.setattr(templates, "MAX_REQUEST_BYTES", 1000)
    conversations = [say("x" * 2000, "y" * n) for n in (1, 3000, 5)]
    results = encode(LLAMA_3, tokenizer, conversations)
    assert [text_of(tokenizer, r) for r in results] == [f"{'y' * n}<|eot_id|>" for n in (1, 3000, 5)]


def test_conversations_without_answers(tokenizer):
    (encoded,) = encode(LLAMA_3, tokenizer, [say("a", "b")], [[]])
    assert not any(encoded.trained) and encoded.ids
    assert encode_answers(ChatEncoder(llama_3, tokenizer), [], []) == []


def test_lone_surrogates_are_no_crash(tokenizer):
    with pytest.raises(DataError, match="cannot encode"):
        encode_answers(ChatEncoder(llama_3, tokenizer), [say("\ud800", "b")], [[1]])
