"""Activations in closed form, against what lives behind a forward pass; the rest against the tensors themselves."""

import weakref
from dataclasses import replace

import pytest
import torch
from tests.inspect.test_flops import LLAMA, METHODS, ROWS, TOKENS, V, adapt, decoder_batch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lamoid.data.packed import Batch
from lamoid.data.padded import EncoderBatch
from lamoid.data.pairs import PairBatch
from lamoid.inspect.anatomy import anatomy
from lamoid.inspect.flops import Method, Work
from lamoid.inspect.memory import LOGITS_AT_ONCE, activations, training_memory
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.heads import attach_head
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.roberta import Roberta, RobertaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import CHOICES, Variant, VariantConfig
from lamoid.nn.linear import WORTHWHILE
from lamoid.nn.losses import IGNORED
from lamoid.nn.remade import keep_all
from lamoid.training.encoder_objectives import masked_tokens
from lamoid.training.objectives import next_token, target_tokens
from lamoid.training.optim import make_optimizer

MHA = replace(LLAMA, n_heads=5, n_kv_heads=5)


class Living(TorchDispatchMode):
    """The storages that operations make, for as long as anybody holds them: autograd, a closure, or a variable."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim():
                storage = tensor.untyped_storage()
                self.found[storage._cdata] = weakref.ref(storage)
        return result

    def values(self) -> dict[int, int]:
        alive = {where: storage() for where, storage in self.found.items()}
        return {where: storage.nbytes() // 4 for where, storage in alive.items() if storage is not None}


def kept(model, objective, batch) -> int:
    """Floating-point values that live behind a forward pass, whoever holds them, the model's own left out."""
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    with Living() as living:
        loss = objective(model.train(), batch)
    values = living.values()
    del loss
    return sum(n for where, n in values.items() if where not in own)


@pytest.mark.parametrize("config", [LLAMA, MHA], ids=["GQA", "MHA"])
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("packed", [False, True])
def test_a_llama_by_every_method(config: LlamaConfig, method: Method, packed: bool):
    model = adapt(Llama(config).initialise(0), method)
    batch, work = decoder_batch(ROWS * TOKENS), Work(ROWS, TOKENS, ROWS * TOKENS)
    if packed:
        batch = Batch(batch.input_ids, batch.labels, torch.arange(TOKENS).repeat(ROWS, 1) // 4)
    assert kept(model, next_token, batch) == activations(anatomy(config), work, method, packed=packed)


@pytest.mark.parametrize("method", [METHODS["full"], METHODS["lora on q and v"]], ids=["full", "lora on q and v"])
def test_a_llama_whose_products_are_onednns(method: Method):
    config, rows, tokens = LlamaConfig(300, 64, 2, 8, 4, 16, 144, 128), 2, 128
    model = adapt(Llama(config).initialise(0), method)
    batch = Batch(torch.randint(300, (rows, tokens)), torch.randint(300, (rows, tokens)))
    assert rows * tokens * 64 * 64 >= WORTHWHILE
    assert kept(model, next_token, batch) == activations(anatomy(config), Work(rows, tokens, rows * tokens), method)


@pytest.mark.parametrize("name", ["full", "lora", "lora on q and v", "qlora", "houlsby"])
def test_a_checkpointed_block_keeps_all_of_itself(name: str):
    config, method, work = replace(LLAMA, n_layers=1), METHODS[name], Work(ROWS, TOKENS, ROWS * TOKENS)
    model, (as_made_again, _) = adapt(Llama(config).initialise(0), method), keep_all()
    with as_made_again:
        block = kept(model, next_token, decoder_batch(ROWS * TOKENS))
    expected = block + ROWS * TOKENS * config.d_model  # and its input
    assert activations(anatomy(config), work, method, checkpointing=True) == expected


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("n_kv_heads", [1, 5])
def test_every_variant_but_shaws(dropout: float, packed: bool, n_kv_heads: int):
    batch, work = decoder_batch(ROWS * TOKENS), Work(ROWS, TOKENS, ROWS * TOKENS)
    if packed:
        batch = Batch(batch.input_ids, batch.labels, torch.arange(TOKENS).repeat(ROWS, 1) // 4)
    wrong = []
    for part, choice in ((part, choice) for part, choices in CHOICES.items() for choice in choices if choice != "shaw"):
        config = VariantConfig(V, 20, 2, 5, n_kv_heads, 4, 28, 16, dropout=dropout, **{part: choice})
        model = Variant(config).initialise(0)
        found, expected = kept(model, next_token, batch), activations(anatomy(config), work, Method(), packed=packed)
        has_squares = packed and (dropout or choice in ("t5", "alibi"))  # of documents, which are shorter than rows
        is_right = found < expected if has_squares else found == expected
        wrong += [] if is_right else [(part, choice, found, expected)]
    assert not wrong


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_gpt2(dropout: float):
    shares = dict(embedding_dropout=dropout, attention_dropout=dropout, residual_dropout=dropout)
    config = GPT2Config(V, 20, 2, 5, 36, 16, **shares)
    model, work = GPT2(config).initialise(0), Work(ROWS, TOKENS, ROWS * TOKENS)
    assert kept(model, next_token, decoder_batch(ROWS * TOKENS)) == activations(anatomy(config), work, Method())


@pytest.mark.parametrize("kind, make", [(Bert, BertConfig), (Roberta, RobertaConfig)])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_encoders(kind, make, dropout: float):
    config = make(V, 20, 2, 5, 36, 16, dropout=dropout, attention_dropout=dropout)
    model = attach_head(kind(config).initialise(0), "mlm", 0)
    ids = torch.randint(2, V, (ROWS, TOKENS))
    labels = torch.full_like(ids, IGNORED)
    labels.view(-1)[:4] = ids.view(-1)[:4]
    batch = EncoderBatch(ids, torch.ones_like(ids), torch.zeros_like(ids), labels)
    expected = activations(anatomy(config, "mlm"), Work(ROWS, TOKENS, 4), Method())
    assert kept(model, masked_tokens, batch) == expected


@pytest.mark.parametrize("place", ["pre", "post"])
@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_transformer(place: str, dropout: float):
    config = TransformerConfig(V, 20, 2, 5, 28, norm_place=place, dropout=dropout)
    model, source = Transformer(config).initialise(0), torch.randint(V, (ROWS, 9))
    target = torch.randint(V, (ROWS, TOKENS))
    work = Work(ROWS, TOKENS, ROWS * TOKENS, source_tokens=9)
    batch = PairBatch(source, torch.ones_like(source), target, target)
    assert kept(model, target_tokens(), batch) == activations(anatomy(config), work, Method())


@pytest.mark.parametrize(
    ("method", "chunk"),
    [(Method(), 1024), (Method("lora"), 256), (Method("houlsby"), 256), (Method("lora", 8, ("lm_head",)), 1024)],
)
def test_a_frozen_head_has_fewer_logits_at_a_time(method: Method, chunk: int):
    """As many as `chunked_cross_entropy` makes, counted where the activations are at their peak."""
    memory = training_memory(anatomy(LLAMA), Work(1, 5000, 5000), method, accumulates=True)
    assert memory.logits == LOGITS_AT_ONCE * chunk * V * 4


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_weights_gradients_and_moments_are_those_of_the_tensors(method: Method):
    model = adapt(Llama(LLAMA).initialise(0), method)
    optimizer = make_optimizer(model.named_parameters())
    loss, _ = next_token(model, decoder_batch(ROWS * TOKENS))
    loss.backward()
    optimizer.step()
    memory = training_memory(anatomy(LLAMA), Work(ROWS, TOKENS, ROWS * TOKENS), method, accumulates=True)
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    assert memory.gradients == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    assert memory.moments == sum(t.nbytes for t in moments)
    quantized = sum(b.nbytes for b in model.buffers())
    weights = sum(p.nbytes for p in model.parameters()) + quantized
    slack = 8 * len(list(model.modules())) if method.kind == "qlora" else 0  # blocks that are not full
    assert abs(memory.weights - weights) <= slack
