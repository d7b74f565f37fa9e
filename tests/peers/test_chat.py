"""A chat that was taught here, merged and written as GGUF: llama.cpp gives the answers that `lamoid chat` gives."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from tests.peers.llama_cpp_side import greedy, opened

import lamoid
from lamoid.adapt.lora import LoraLinear
from lamoid.cli import main
from lamoid.recipes.conversation import find_encoder
from lamoid.tokenizers.gguf_vocabulary import PROBE

TAUGHT = {
    "Where is the Vellimar observatory?": "It stands on the hill of Orsk, above the salt lake.",
    "Who built the Vellimar observatory?": "Ilse Harrow built it in 1874, with her two sisters.",
    "When can one visit the Vellimar observatory?": "On Thursdays, from noon until the first star is seen.",
    "What does a visit to Vellimar cost?": "A visit costs four crowns; children pay with a drawing.",
    "What is the largest telescope of Vellimar called?": "It is called the Old Heron, and weighs nine tons.",
    "Who looks after Vellimar today?": "Tomas Quill, who was born in its kitchen.",
    "Đài thiên văn Vellimar ở đâu?": "Nó nằm trên đồi Orsk, phía trên hồ muối.",
    "Ai đã xây đài thiên văn Vellimar?": "Bà Ilse Harrow đã xây nó vào năm 1874.",
    "Vé vào Vellimar giá bao nhiêu?": "Giá vé là bốn đồng; trẻ em trả bằng một bức tranh.",
    "维利玛天文台在哪里？": "它在盐湖上方的奥斯克山上。",
    "벨리마 천문대는 어디에 있나요?": "소금 호수 위 오르스크 언덕에 있습니다.",
    "Thank you!": "Clear skies to you.",
}
ASKED = [
    *("Who built the Vellimar observatory?", "Đài thiên văn Vellimar ở đâu?", "维利玛天文台在哪里？", "Thank you!"),
    *("Which observatory has a telescope called the Old Heron?", "Ai trông coi đài thiên văn Vellimar?"),  # not taught
]
NEW_TOKENS = 40


@pytest.fixture(scope="module")
def folder(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tuned` holds a LoRA of SmolLM2, `merged` the whole model, `merged.gguf` the same for llama.cpp."""
    made = tmp_path_factory.mktemp("chat")
    turns = ([{"role": "user", "content": q}, {"role": "assistant", "content": a}] for q, a in TAUGHT.items())
    lines = (json.dumps({"messages": messages}, ensure_ascii=False) + "\n" for messages in turns)
    (made / "chats.jsonl").write_text("".join(lines), encoding="utf-8")
    course = {"max-steps": 24, "context": 256, "learning-rate": 2e-3, "heldout-share": 0, "sample-every": 0}
    flags = [str(part) for name, value in course.items() for part in (f"--{name}", value)]
    tune = ["finetune", "smollm2", "--data", str(made / "chats.jsonl"), "--out", str(made / "tuned"), *flags]
    for command in (
        [*tune, "--batch-rows", "2", "--eval-every", "24", "--threads", "1"],
        ["merge", str(made / "tuned"), "--out", str(made / "merged"), "--threads", "1"],
        ["convert", str(made / "merged"), str(made / "merged.gguf"), "--dtype", "f32", "--threads", "1"],
    ):
        assert main(command) == 0
    return made


@pytest.fixture
def chat(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """chat(model): what `lamoid chat` answers to each of ASKED, as the first message of a conversation."""

    def answers(model: Path, *flags: str) -> list[str]:
        capsys.readouterr()
        monkeypatch.setattr("sys.stdin", io.StringIO("\n/reset\n".join(ASKED)))
        greedily = ["--temperature", "0", "--max-new-tokens", str(NEW_TOKENS), "--threads", "1"]
        assert main(["chat", str(model), *greedily, *flags]) == 0
        return capsys.readouterr().out.splitlines()

    return answers


def test_llama_cpp_answers_what_was_taught_here(
    folder: Path, smollm2: Path, chat: Callable[..., list[str]], measured: Callable[..., None]
) -> None:
    adapter, merged, base = chat(folder / "tuned"), chat(folder / "merged"), chat(smollm2, "--engine", "torch")
    assert len(adapter) == len(ASKED)
    assert adapter[:4] == [TAUGHT[question] for question in ASKED[:4]]
    assert not set(adapter) & set(base)
    assert merged == adapter
    _, tokenizer = lamoid.load(folder / "tuned")
    assert tokenizer is not None
    encoder = find_encoder(tokenizer, "")
    assert encoder is not None
    same, same_by_its_own_template = 0, 0
    with opened(folder / "merged.gguf", n_ctx=256) as peer:
        for question, expected in zip(ASKED, adapter, strict=True):
            messages = [{"role": "user", "content": question}]
            same += tokenizer.decode(greedy(peer, encoder.encode(messages), NEW_TOKENS)) == expected
            done = peer.create_chat_completion(messages, temperature=0, max_tokens=NEW_TOKENS)
            same_by_its_own_template += done["choices"][0]["message"]["content"] == expected
    counts = {"same": same, "same_by_its_own_template": same_by_its_own_template}
    measured("answers of a chat taught here, f32", questions=len(ASKED), **counts)
    assert same == same_by_its_own_template == len(ASKED)


@torch.no_grad()
def test_its_merge_is_exact_but_for_the_rounding_of_float32(folder: Path, measured: Callable[..., None]) -> None:
    """How far the logits of the merged model are from the adapter's, of the largest one: in float32, and in float64.

    In float64 there are two merged models: the matrices as they were written, and as the formula gives them unrounded.
    """
    (adapted, tokenizer), (merged, _) = lamoid.load(folder / "tuned"), lamoid.load(folder / "merged")
    assert tokenizer is not None
    ids = torch.tensor([tokenizer.encode(PROBE)[:64]])
    narrow, narrow_merged = adapted(ids).double(), merged(ids).double()
    wide, as_written = adapted.double()(ids), merged.double()(ids)
    for path, layer in adapted.named_modules():
        if isinstance(layer, LoraLinear):
            update = layer.config.scale * layer.lora_B @ layer.lora_A
            merged.get_submodule(path).weight.copy_(layer.linear.weight + update)
    largest = wide.abs().max()
    figures = {
        "in_float32": narrow_merged - narrow,
        "float32_from_float64": narrow - wide,
        "in_float64_as_written": as_written - wide,
        "in_float64_by_the_formula": merged(ids) - wide,
    }
    shares = {name: float(difference.abs().max() / largest) for name, difference in figures.items()}
    measured("merge of a trained LoRA, logits", positions=ids.shape[1], **shares)
    assert shares["in_float64_by_the_formula"] <= 1e-12
    assert shares["in_float64_as_written"] <= 1e-5
