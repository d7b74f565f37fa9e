"""Tuned models of the laboratory: methods differ in nothing else, bytes are those of the tensors, a merge is the sum."""

import itertools

import pytest
import torch
from peft import LoraConfig as TheirLora
from peft import get_peft_model
from transformers import LlamaConfig as TheirConfig
from transformers import LlamaForCausalLM

from lamoid.recipes.lab import budget, timing, tuned_models
from lamoid.recipes.lab.budget import BUDGET, TRIAL, n_tokens
from lamoid.recipes.lab.small_models import small_llama
from lamoid.recipes.lab.timing import alternate
from lamoid.recipes.lab.tuned_models import METHODS, TINY, decode, tune

SETTINGS = BUDGET | TRIAL | {"task": "python-docs", "share": 1.0, "methods": METHODS}


def test_methods_begin_alike_and_read_the_same():
    """A method under two names comes to the same; at a rate of next to nothing, all that do not quantize are where they began."""
    still = {name: method | {"rate": 1e-12} for name, method in METHODS.items()}
    found = tune(SETTINGS | {"methods": {"one": METHODS["LoRA"], "two": METHODS["LoRA"], **still}}, 0)
    assert {**found["one"], "step_s": 0} == {**found["two"], "step_s": 0}
    assert found["one"]["new"] < found["before"]["new"]
    for name in METHODS:
        assert (abs(found[name]["old"] - found["before"]["old"]) < 1e-6) == (name != "QLoRA")


def test_the_new_text_is_read_for_a_share_of_the_steps_and_spelled_as_the_old(monkeypatch):
    read, scored = [], []

    def learned(model, b, seed):
        names = ("data", "steps", "warmup", "weight_decay", "rate")
        read.append((*(b[name] for name in names), b.get("spelled_as"), seed))
        return {"state_bytes": 0, "step_s": 0.0}

    monkeypatch.setattr(tuned_models, "learn", learned)
    monkeypatch.setattr(tuned_models, "loss", lambda model, b: scored.append((b["data"], b.get("spelled_as"))) or 1.0)
    b = SETTINGS | {"steps": 40, "warmup": 3, "share": 0.25, "task": "mine", "methods": {"LoRA": METHODS["LoRA"]}}
    tune(b, 7)
    assert read == [
        ("python-docs", 40, 3, 0.1, 5e-3, None, 7),
        ("mine", 10, 1, 0.0, 1e-2, "python-docs", 1007),
    ]
    assert scored == [("mine", "python-docs"), ("python-docs", None)] * 2


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated")  # peft calls transformers so
@pytest.mark.parametrize("rank", [2, 8])
def test_bytes_are_those_of_peft(rank):
    """The same LoRA on the same Llama, made by others, and AdamW's state after one step."""
    found = tune(SETTINGS | {"methods": {"LoRA": METHODS["LoRA"] | {"rank": rank}}}, 0)["LoRA"]
    c = small_llama(SETTINGS, 0).config
    theirs = LlamaForCausalLM(
        TheirConfig(
            **{"vocab_size": c.vocab_size, "hidden_size": c.d_model, "intermediate_size": c.d_ff},
            **{"num_hidden_layers": c.n_layers, "num_attention_heads": c.n_heads, "tie_word_embeddings": True},
        )
    )
    frozen = sum(p.nbytes for p in theirs.parameters())
    model = get_peft_model(theirs, TheirLora(r=rank, target_modules="all-linear"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    model(input_ids=torch.zeros(1, 2, dtype=torch.long), labels=torch.zeros(1, 2, dtype=torch.long)).loss.backward()
    optimizer.step()
    state = sum(t.nbytes for moments in optimizer.state.values() for t in moments.values())
    sizes = (sum(p.nbytes for p in trained), state, frozen)
    assert (found["trained"], found["optimizer"], found["frozen"]) == sizes
    assert sizes[0] < found["saved"] < sizes[0] + 200 * len(trained), "the weights, and a line about each"


def test_four_bits_take_an_eighth():
    """Codes, and a byte of scale for 64 weights; the embedding stays in float32."""
    found = tune(SETTINGS | {"methods": {name: METHODS[name] for name in ("LoRA", "QLoRA")}}, 0)
    model = small_llama(SETTINGS, 0)
    matrices = [p for name, p in model.named_parameters() if p.dim() == 2 and "embedding" not in name]
    saved = found["LoRA"]["frozen"] - found["QLoRA"]["frozen"]
    expected = sum(p.nbytes - (p.numel() + 1) // 2 - -(-p.numel() // 64) - 8 for p in matrices)
    assert saved == expected and found["LoRA"]["trained"] == found["QLoRA"]["trained"]


def test_decoding_has_both_sides_of_a_merge():
    found = decode(SETTINGS | TINY)
    assert 0 < found["moved"] < 1e-5, "they were merged, and compute the same"
    assert {len(times) for times in found["times"].values()} == {TINY["rounds"]}


def test_each_side_of_decoding_has_its_layers(monkeypatch):
    monkeypatch.setattr(tuned_models, "_step", lambda model, ids: {type(part).__name__ for part in model.modules()})
    monkeypatch.setattr(tuned_models, "alternate", lambda sides, rounds, least_s, clock: sides)
    kinds = {name: found & {"LoraLinear", "Adapter"} for name, found in decode(SETTINGS | TINY)["times"].items()}
    assert kinds == {"base": set(), "LoRA, merged": set(), "LoRA": {"LoraLinear"}, "Houlsby": {"Adapter"}}


@torch.no_grad()
def test_a_step_is_the_last_token_behind_all_others():
    model, ids = small_llama(SETTINGS, 0).eval(), torch.arange(16)[None]
    step = tuned_models._step(model, ids)
    for _ in range(2):
        torch.testing.assert_close(step(), model.hidden_states(ids)[:, -1:], rtol=1e-5, atol=1e-5)


def test_the_clock_is_asked(monkeypatch):
    """A clock that goes one second further with each question: a round of any side takes one, each of four calls a quarter."""
    seconds = itertools.count()
    monkeypatch.setattr(timing, "_calls", lambda run, least_s: 4)
    times = alternate({"a": lambda: 0, "b": lambda: 0}, 3, 0.0, lambda: float(next(seconds)))
    assert times == {"a": [0.25] * 3, "b": [0.25] * 3}


def test_another_text_is_spelled_with_the_first_ones_vocabulary(tmp_path):
    files = {"one": "the dog chases the pig. " * 400, "two": "con chó đuổi con lợn; 개가 돼지를 쫓는다; 狗追猪。" * 200}
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    one, two = (str(tmp_path / name) for name in files)
    b = SETTINGS | {"data": two, "spelled_as": one}
    first, text = budget._text(b | {"data": one}), budget._text(b)
    assert n_tokens(b) == first.tokenizer.vocab_size and text.tokenizer.fingerprint() == first.tokenizer.fingerprint()
    assert text.tokenizer.fingerprint() != budget._text(SETTINGS | {"data": two}).tokenizer.fingerprint()
    assert "개가 돼지를 쫓는다" in text.tokenizer.decode([int(i) for i in text.tokens[:400]])
