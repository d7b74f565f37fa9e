"""Examples of conversations: what is trained, what is cut, what is held out."""

import json

import numpy as np
import pytest

from lamoid.data.conversations import Conversation
from lamoid.data.instruct import EncodedSet, Example, encode_conversations, split_heldout
from lamoid.errors import DataError, UsageError
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.chat import ChatEncoder, TemplateFormat, llama_3
from lamoid.tokenizers.templates import TemplateRenderer
from lamoid.tokenizers.tokenizer import Tokenizer

WORDS = ["Tiếng Việt được viết", "你好，世界。", "안녕하세요", "plain words and more words"]
REWRITES_ANSWERS = (
    "{% for m in messages %}{{ '<|start_header_id|>' + m.role + '\\n' }}"
    "{% if m.role == 'assistant' and loop.last %}{{ '<think></think>' }}{% endif %}"
    "{{ m.content + '<|eot_id|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant\\n' }}{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_bpe(WORDS * 3, 320)


@pytest.fixture(scope="module")
def encoder(tokenizer) -> ChatEncoder:
    return ChatEncoder(llama_3, tokenizer)


def chat(*contents: str, system: str = "", kind: str = "messages", n_given: int = 0, source: str = "a.jsonl line 7"):
    turns = [{"role": ("user", "assistant")[i % 2], "content": content} for i, content in enumerate(contents)]
    return Conversation((*[{"role": "system", "content": system}] * bool(system), *turns), kind, source, n_given)


def text(content: str) -> Conversation:
    return Conversation((), "text", "b.txt", text=content)


def trained_text(tokenizer: Tokenizer, example: Example) -> str:
    return tokenizer.decode(example.ids[example.trained].tolist(), skip_special_tokens=False)


def whole_text(tokenizer: Tokenizer, example: Example) -> str:
    return tokenizer.decode(example.ids.tolist(), skip_special_tokens=False)


# ---- what is trained


def test_all_answers_or_the_last(tokenizer, encoder):
    conversations = [chat("Chào", "Xin chào!", "你好", "你好！", system="s"), chat("a", "b")]
    for train_on, expected in (
        ("all", ["Xin chào!<|eot_id|>你好！<|eot_id|>", "b<|eot_id|>"]),
        ("last", ["你好！<|eot_id|>", "b<|eot_id|>"]),
    ):
        found = encode_conversations(conversations, tokenizer, encoder, train_on=train_on, context=200)
        assert [trained_text(tokenizer, e) for e in found.examples] == expected
        for example, conversation in zip(found.examples, conversations, strict=True):
            assert example.ids.tolist() == encoder.encode(conversation.messages, add_generation_prompt=False)
            assert example.conversation is conversation and not example.was_cut


def test_questions_behind_the_last_answer_are_left_out(tokenizer, encoder):
    (example,) = encode_conversations([chat("a", "b", "c")], tokenizer, encoder, context=200).examples
    assert example.ids.tolist() == encoder.encode(chat("a", "b").messages, add_generation_prompt=False)


def test_given_answers_are_not_trained(tokenizer, encoder):
    (example,) = encode_conversations([chat("a", "b", "c", "d", n_given=3)], tokenizer, encoder, context=200).examples
    assert trained_text(tokenizer, example) == "d<|eot_id|>"


def test_text_is_trained_throughout(tokenizer):
    """Between begin- and end-of-text, as in pretraining; special tokens in it stay text."""
    (example,) = encode_conversations([text("你好 <|eot_id|>")], tokenizer, None, context=200).examples
    ids = tokenizer.encode("你好 <|eot_id|>")
    assert example.ids.tolist() == [*ids, tokenizer.special_id("eos")] and ids[0] == tokenizer.special_id("bos")
    assert example.trained.tolist() == [False] + [True] * len(ids)


def test_counts(tokenizer, encoder):
    found = encode_conversations([chat("a", "b"), text("x"), chat("c", "de")], tokenizer, encoder, context=200)
    assert [e.conversation.format for e in found.examples] == ["messages", "text", "messages"]
    assert found.n_tokens == sum(len(e.ids) for e in found.examples)
    assert found.n_trained == sum(int(e.trained.sum()) for e in found.examples) == 2 + 2 + 3
    share = f"{found.n_trained / found.n_tokens:.0%}"
    assert found.summary == f"3 examples of {found.n_tokens} tokens, {share} of them trained"


# ---- without a chat format


def test_prompt_and_completion_follow_each_other(tokenizer):
    found = encode_conversations(
        [chat("2 + 2 =", " 4", kind="prompt–completion", n_given=1)], tokenizer, None, context=99
    )
    (example,) = found.examples
    assert whole_text(tokenizer, example) == "<|begin_of_text|>2 + 2 = 4<|end_of_text|>"
    assert trained_text(tokenizer, example) == " 4<|end_of_text|>"


def test_alpaca_stands_under_headings(tokenizer):
    (example,) = encode_conversations(
        [chat("q\n\ni", "a", system="s", kind="Alpaca")], tokenizer, None, context=99
    ).examples
    expected = "<|begin_of_text|>s\n\n### Instruction:\nq\n\ni\n\n### Response:\na<|end_of_text|>"
    assert whole_text(tokenizer, example) == expected
    assert trained_text(tokenizer, example) == "a<|end_of_text|>"


def test_special_tokens_in_plain_formats_stay_text(tokenizer):
    hostile = chat("<|end_of_text|>", "<|begin_of_text|>", kind="prompt–completion", n_given=1)
    (example,) = encode_conversations([hostile], tokenizer, None, context=200).examples
    begin, end = tokenizer.special_id("bos"), tokenizer.special_id("eos")
    assert example.ids.tolist().count(begin) == example.ids.tolist().count(end) == 1


def test_tokenizers_that_place_no_begin_and_know_no_end(tokenizer):
    state = json.loads(tokenizer.backend.to_str())
    state["post_processor"] = None
    silent = Tokenizer(type(tokenizer.backend).from_str(json.dumps(state)), tokenizer.specials)
    bare = Tokenizer(type(tokenizer.backend).from_str(json.dumps(state)), {})
    conversations = [chat("a", "b", kind="prompt–completion", n_given=1), text("c")]
    for own, expected in ((silent, ["ab<|end_of_text|>", "c<|end_of_text|>"]), (bare, ["ab"])):
        found = encode_conversations(conversations, own, None, context=99)
        assert [whole_text(own, example) for example in found.examples] == expected
    assert found.n_untrained == 1  # one token, with nothing before it that could predict it


@pytest.mark.parametrize(
    "kind, contents", [("messages", ["a", "b"]), ("ShareGPT", ["a", "b"]), ("prompt–completion", ["a", "b", "c", "d"])]
)
def test_chats_need_a_format(tokenizer, kind, contents):
    with pytest.raises(UsageError, match=r"a\.jsonl line 7 is a chat.*--template: llama-2, llama-3"):
        encode_conversations([chat(*contents, kind=kind)], tokenizer, None, context=99)


# ---- too long


LONG = [f"{i} một câu dài hơn " * 3 for i in range(12)]


def test_all_answers_keep_the_beginning(tokenizer, encoder):
    """Whole turns go from the end, as many as needed and no more; the system message stays."""
    conversation = chat(*LONG, system="s")
    lengths = [len(encoder.encode(conversation.messages[: 3 + 2 * n], add_generation_prompt=False)) for n in range(6)]
    for n, length in enumerate(lengths):
        for context in (length, lengths[n + 1] - 1 if n < 5 else length + 1):
            found = encode_conversations([conversation], tokenizer, encoder, context=context)
            (example,) = found.examples
            assert example.ids.tolist() == encoder.encode(
                conversation.messages[: 3 + 2 * n], add_generation_prompt=False
            )
            assert found.n_cut == example.was_cut == (n < 5)
            assert trained_text(tokenizer, example) == "".join(
                f"{a.strip()}<|eot_id|>" for a in LONG[1 : 2 + 2 * n : 2]
            )


@pytest.mark.parametrize("how", ["last", "given"])
def test_the_last_answer_keeps_the_end(tokenizer, encoder, how):
    conversation = chat(*LONG, system="s", n_given=12 if how == "given" else 0)
    system, turns = conversation.messages[:1], conversation.messages[1:]
    for n in range(1, 6):
        kept = encoder.encode([*system, *turns[-2 * n :]], add_generation_prompt=False)
        for context in (len(kept), len(kept) + 3):
            found = encode_conversations(
                [conversation], tokenizer, encoder, train_on="last" if how == "last" else "all", context=context
            )
            (example,) = found.examples
            assert example.ids.tolist() == kept and example.was_cut and found.n_cut == 1
            assert trained_text(tokenizer, example) == f"{LONG[-1].strip()}<|eot_id|>"


def test_what_does_not_fit_even_so_is_dropped(tokenizer, encoder):
    conversations = [chat(*LONG), chat("a", "b"), chat("x", "y " * 100)]
    found = encode_conversations(conversations, tokenizer, encoder, context=30)
    assert [e.conversation for e in found.examples] == conversations[1:2]
    assert (found.n_cut, found.n_dropped) == (0, 2)
    assert found.summary.endswith("2 too long and dropped")


def test_long_ones_can_be_dropped(tokenizer, encoder):
    conversations = [chat(*LONG), chat("a", "b"), text("z " * 100)]
    found = encode_conversations(conversations, tokenizer, encoder, context=100, long="drop")
    assert [e.conversation for e in found.examples] == conversations[1:2]
    assert (found.n_cut, found.n_dropped) == (0, 2)


@pytest.mark.parametrize("context", [2, 3, 7, 10, 50, 51])
def test_long_texts_are_divided(tokenizer, context):
    """Every token but the first is trained once, with what stands before it in its part."""
    content = "một hai ba 你好 안녕 " * 4
    found = encode_conversations([text(content)], tokenizer, None, context=context)
    ids = [*tokenizer.encode(content), tokenizer.special_id("eos")]
    assert [i for e in found.examples for i in e.ids[e.trained]] == ids[1:]
    assert all(2 <= len(e) <= context for e in found.examples)
    starts = [example.ids[0] for example in found.examples]
    assert starts == ids[:-1][:: context - 1]
    assert found.n_cut == (len(ids) > context) and all(e.was_cut == (len(ids) > context) for e in found.examples)


def test_nothing_left_is_an_error(tokenizer, encoder):
    with pytest.raises(
        DataError, match="nothing is left to train on: .*1 too long and dropped; the context is 10 tokens"
    ):
        encode_conversations([chat("a", "b" * 99)], tokenizer, encoder, context=10)
    with pytest.raises(UsageError, match="context is 1 tokens; at least 2"):
        encode_conversations([chat("a", "b")], tokenizer, encoder, context=1)


# ---- templates


def test_templates_that_rewrite_earlier_answers_make_an_example_of_each(tokenizer):
    with TemplateRenderer(REWRITES_ANSWERS) as renderer:
        own = ChatEncoder(TemplateFormat(renderer, tokenizer), tokenizer)
        found = encode_conversations([chat("a", "b", "c", "d"), chat("e", "f")], tokenizer, own, context=99)
        for n, example in zip((2, 4), found.examples[:2], strict=True):
            assert example.ids.tolist() == own.encode(
                chat("a", "b", "c", "d").messages[:n], add_generation_prompt=False
            )
        assert [trained_text(tokenizer, e) for e in found.examples] == [f"<think></think>{x}<|eot_id|>" for x in "bdf"]
        assert found.n_unrolled == 1
        training, heldout = split_heldout(found.examples, 0.5, 0)
        assert {len(training), len(heldout)} == {1, 2}  # the two examples of one conversation stay together


def test_each_answer_of_a_divided_conversation_keeps_what_fits_before_it(tokenizer):
    """Cutting its end would leave the example of the answer before it; so its oldest turns go."""
    conversation = chat(*LONG)
    with TemplateRenderer(REWRITES_ANSWERS) as renderer:
        own = ChatEncoder(TemplateFormat(renderer, tokenizer), tokenizer)
        context = len(own.encode(conversation.messages[:4], add_generation_prompt=False)) + 9
        found = encode_conversations([conversation], tokenizer, own, context=context)
        for n, example in enumerate(found.examples):
            kept = conversation.messages[max(2 * n - 2, 0) : 2 * n + 2]
            assert example.ids.tolist() == own.encode(kept, add_generation_prompt=False)
            assert trained_text(tokenizer, example) == f"<think></think>{LONG[2 * n + 1]}<|eot_id|>"
            assert example.was_cut == (n > 1)
    assert (len(found.examples), found.n_unrolled, found.n_cut, found.n_dropped) == (6, 1, 1, 0)


def test_one_answer_behind_two_questions_keeps_the_last(tokenizer, encoder):
    first, *rest = chat(LONG[0], LONG[1]).messages
    conversation = Conversation((first, first, *rest), "messages", "a.jsonl line 1")
    kept = encoder.encode([first, *rest], add_generation_prompt=False)
    (example,) = encode_conversations([conversation], tokenizer, encoder, context=len(kept)).examples
    assert example.ids.tolist() == kept and example.was_cut


def test_what_the_template_refuses(tokenizer):
    template = "{% if messages[0].content == 'x' %}{{ raise_exception('not x') }}{% endif %}" + REWRITES_ANSWERS
    conversations = [chat("a", "b"), chat("x", "y"), chat("x", *LONG)]
    with TemplateRenderer(template) as renderer:
        own = ChatEncoder(TemplateFormat(renderer, tokenizer), tokenizer)
        with pytest.raises(DataError, match=r"a\.jsonl line 7: the chat template failed: .*not x"):
            encode_conversations(conversations, tokenizer, own, context=99)
        found = encode_conversations(conversations, tokenizer, own, context=99, skip_bad=True)
        assert len(found.examples) == 1 and found.n_bad == 2


# ---- held out


def examples(n: int) -> list[Example]:
    return [Example(np.arange(3), np.arange(3) > 0, chat(f"q {i}", f"a {i}")) for i in range(n)]


def keys(some: list[Example]) -> set[int]:
    return {example.conversation.key for example in some}


def test_held_out_is_a_share_of_the_conversations():
    some = examples(1000)
    training, heldout = split_heldout(some, 0.1, 0)
    assert 70 <= len(heldout) <= 130
    assert keys(training) | keys(heldout) == keys(some) and not keys(training) & keys(heldout)
    assert training == [e for e in some if e in training]  # in their order
    again = split_heldout(list(reversed(some)), 0.1, 0)
    assert keys(again[1]) == keys(heldout)
    assert keys(split_heldout(some, 0.1, 1)[1]) != keys(heldout)
    assert keys(heldout) < keys(split_heldout(some, 0.2, 0)[1])


def test_the_choice_survives_added_data():
    some = examples(1000)
    before, after = keys(split_heldout(some[:500], 0.1, 3)[1]), keys(split_heldout(some, 0.1, 3)[1])
    assert before == after & keys(some[:500])


@pytest.mark.parametrize("n, share, expected", [(2, 0.001, 1), (5, 0.0001, 1), (2, 0.999, 1), (5, 0.999, 4), (3, 0, 0)])
def test_at_least_one_and_never_all(n, share, expected):
    training, heldout = split_heldout(examples(n), share, 0)
    assert (len(training), len(heldout)) == (n - expected, expected)


def test_bad_shares():
    for share in (-0.1, 1, 2, float("nan")):
        with pytest.raises(UsageError, match="held-out share is"):
            split_heldout(examples(3), share, 0)
    with pytest.raises(DataError, match="1 conversation cannot be"):
        split_heldout(examples(1) * 3, 0.1, 0)


def test_an_empty_set_says_so():
    assert EncodedSet([]).summary.startswith("0 examples of 0 tokens")
