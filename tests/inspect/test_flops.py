"""Parameters and operations in closed form, against counted parameters and torch's own counter of matrix products."""

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode, addmm_flop, sdpa_backward_flop_count, sdpa_flop_count

from lamoid.adapt.adapters import AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import Nf4Config, quantize_base
from lamoid.data.packed import Batch
from lamoid.data.padded import EncoderBatch
from lamoid.data.pairs import PairBatch
from lamoid.inspect.anatomy import anatomy
from lamoid.inspect.flops import Method, Work, count_pairs, count_parameters, forward_flops, training_flops
from lamoid.models import bert, gpt2, llama, roberta, transformer
from lamoid.models.bert import Bert, BertConfig
from lamoid.models.gpt2 import GPT2, GPT2Config
from lamoid.models.heads import attach_head
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.models.roberta import Roberta, RobertaConfig
from lamoid.models.transformer import Transformer, TransformerConfig
from lamoid.models.variant import CHOICES, Variant, VariantConfig
from lamoid.nn.losses import IGNORED
from lamoid.training.encoder_objectives import class_loss, masked_tokens, on_labels, span_loss
from lamoid.training.objectives import next_token, target_tokens

ROWS, TOKENS, V = 3, 7, 53
LLAMA = LlamaConfig(V, 20, 3, 6, 2, 4, 28, 16)
DECODERS = {
    "llama": (Llama, LLAMA),
    "llama, tied, biases, MHA": (
        Llama,
        LlamaConfig(V, 20, 2, 5, 5, 6, 28, 16, tied_embeddings=True, attention_bias=True, feed_forward_bias=True),
    ),
    "gpt2": (GPT2, GPT2Config(V, 20, 2, 5, 36, 16)),
}
FORWARD_ONLY = [*DECODERS]
METHODS = {
    "full": Method(),
    "lora": Method("lora", rank=3),
    "lora on q and v": Method("lora", rank=3, targets=("q_proj", "v_proj")),
    "lora on down": Method("lora", rank=3, targets=("down_proj",)),
    "lora on one layer": Method("lora", rank=5, targets=("layers.1.attention.o_proj",)),
    "qlora": Method("qlora", rank=3),
    "houlsby": Method("houlsby", bottleneck=5),
}
UNKNOWN_TO_TORCH = {  # its counter leaves out what is computed in place, and the processor's fused kernel
    torch.ops.aten.addmm_: lambda _, a, b, *args, out_shape=None, **kwargs: addmm_flop(_, a, b),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *a, out_shape=None, **kw: (
        sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda g, q, k, v, *a, out_shape=None, **kw: (
        sdpa_backward_flop_count(g, q, k, v)
    ),
}


def adapt(model, method: Method):
    if method.kind == "qlora":
        quantize_base(model, Nf4Config())
    if method.kind in ("lora", "qlora"):
        add_lora(model, LoraConfig(method.rank, targets=method.targets))
    if method.kind == "houlsby":
        add_adapters(model, AdapterConfig(method.bottleneck))
    return model


def decoder_batch(n_trained: int) -> Batch:
    ids, labels = torch.randint(V, (ROWS, TOKENS)), torch.randint(V, (ROWS, TOKENS))
    labels.view(-1)[n_trained:] = IGNORED
    return Batch(ids, labels)


def counted(model, objective, batch) -> int:
    """Operations of a forward and a backward pass as torch counts them, with its own formulas."""
    counter = FlopCounterMode(display=False, custom_mapping=UNKNOWN_TO_TORCH)
    with counter:
        loss, _ = objective(model, batch)
        loss.backward()
    return counter.get_total_flops()


def check_parameters(model, parts, method: Method) -> None:
    found = count_parameters(parts, method)
    quantized = sum(m.in_features * m.out_features for m in model.modules() if type(m).__name__ == "Nf4Linear")
    assert found.total == sum(p.numel() for p in model.parameters()) + quantized
    assert found.trainable == sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert found.quantized == quantized


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("n_trained", [ROWS * TOKENS, 5])
@pytest.mark.parametrize("path", ["explicit", "fused"])
def test_a_llama_by_every_method(method: Method, checkpointing: bool, n_trained: int, path: str):
    model = adapt(Llama(LLAMA, attention_path=path, gradient_checkpointing=checkpointing).initialise(0), method)
    parts, work = anatomy(LLAMA), Work(ROWS, TOKENS, n_trained)
    check_parameters(model, parts, method)
    expected = training_flops(
        parts, work, method, checkpointing=checkpointing, whole_square=True, recomputed=path == "fused"
    )
    assert counted(model, next_token, decoder_batch(n_trained)) == expected


@pytest.mark.parametrize("kind, config", DECODERS.values(), ids=DECODERS)
def test_decoders(kind, config):
    model = kind(config, attention_path="explicit").initialise(0)
    parts, work = anatomy(config), Work(ROWS, TOKENS, 11)
    check_parameters(model, parts, Method())
    assert counted(model, next_token, decoder_batch(11)) == training_flops(parts, work, whole_square=True)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(V, (ROWS, TOKENS)))
    everywhere = Work(ROWS, TOKENS, ROWS * TOKENS)
    assert counter.get_total_flops() == forward_flops(parts, everywhere, whole_square=True)


@pytest.mark.parametrize("part, choice", [(part, choice) for part, choices in CHOICES.items() for choice in choices])
def test_every_variant(part: str, choice: str):
    config = VariantConfig(V, 20, 2, 5, 5, 4, 28, 16, shaw_distance=3, **{part: choice})
    model = Variant(config, attention_path="explicit").initialise(0)
    parts, work = anatomy(config), Work(ROWS, TOKENS, 11)
    check_parameters(model, parts, Method())
    assert counted(model, next_token, decoder_batch(11)) == training_flops(parts, work, whole_square=True)


ENCODERS = {"bert": (Bert, BertConfig(V, 20, 2, 5, 36, 16)), "roberta": (Roberta, RobertaConfig(V, 20, 2, 5, 36, 16))}


@pytest.mark.parametrize("kind, config", ENCODERS.values(), ids=ENCODERS)
@pytest.mark.parametrize("head", ["mlm", "pretraining", "sequence", "token", "span"])
@pytest.mark.parametrize("method", [Method(), Method("lora", rank=3), Method("houlsby", bottleneck=5)])
def test_encoders_with_their_heads(kind, config, head: str, method: Method):
    labels = ("a", "b", "c") if head in ("sequence", "token") else ()
    model = attach_head(kind(config, attention_path="explicit").initialise(0), head, 0, labels)
    adapt(model.encoder, method)
    parts, work = anatomy(config, head, 3), Work(ROWS, TOKENS, 4)
    check_parameters(model, parts, method)
    ids = torch.randint(2, V, (ROWS, TOKENS))
    shape = {"sequence": (ROWS, 1), "span": (ROWS, 2)}.get(head, (ROWS, TOKENS))
    target = torch.randint(2, shape)
    if head in ("mlm", "pretraining"):
        target.view(-1)[4:] = IGNORED
    following = torch.randint(2, (ROWS,)) if head == "pretraining" else None
    batch = EncoderBatch(ids, torch.ones_like(ids), torch.zeros_like(ids), target, following)
    labelled = {"sequence": class_loss, "token": class_loss, "span": span_loss}
    objective = on_labels(labelled[head]) if head in labelled else masked_tokens
    assert counted(model, objective, batch) == training_flops(parts, work, method)


@pytest.mark.parametrize("place", ["pre", "post"])
def test_the_transformer(place: str):
    config = TransformerConfig(V, 20, 2, 5, 28, norm_place=place)
    model = Transformer(config, attention_path="explicit").initialise(0)
    parts, work = anatomy(config), Work(ROWS, TOKENS, 11, source_tokens=9)
    check_parameters(model, parts, Method())
    labels = torch.randint(V, (ROWS, TOKENS))
    labels.view(-1)[11:] = IGNORED
    source = torch.randint(V, (ROWS, 9))
    batch = PairBatch(source, torch.ones_like(source), torch.randint(V, (ROWS, TOKENS)), labels)
    assert counted(model, target_tokens(), batch) == training_flops(parts, work, whole_square=True)


def test_causal_pairs_are_those_of_the_mask():
    for n_queries, n_keys in ((1, 1), (5, 5), (1, 9), (3, 11)):
        mask = torch.ones(n_queries, n_keys).tril(n_keys - n_queries)
        assert count_pairs(n_queries, n_keys, causal=True) == int(mask.sum())


PRESETS = llama.PRESETS | gpt2.PRESETS | bert.PRESETS | roberta.PRESETS | transformer.PRESETS


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_every_published_size(name: str):
    kinds = {"Llama": Llama, "GPT2": GPT2, "Bert": Bert, "Roberta": Roberta, "Transformer": Transformer}
    config = PRESETS[name]
    with torch.device("meta"):
        model = kinds[type(config).__name__.removesuffix("Config")](config)
    assert count_parameters(anatomy(config)).total == sum(p.numel() for p in model.parameters())


def test_a_llama_needs_no_copy_to_be_counted():
    """LoRA of a size that no machine here holds."""
    n = count_parameters(anatomy(llama.PRESETS["llama-3.1-405b"]), Method("qlora"))
    assert copy.copy(n) == n and n.trainable < n.total / 1000 and n.quantized > 0.98 * n.total
