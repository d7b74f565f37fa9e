"""PEFT directories: ours open in peft, peft's open here, with equal logits; and what is refused, by its name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.adapt.peft_twin import open_in_peft, peft_model, save
from tests.checkpoints.llamas import SHAPES
from torch import Tensor

import lamoid
from lamoid.adapt.adapters import AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import Nf4Config, Nf4Linear, quantize_base
from lamoid.checkpoints.hf import read_model, write_model
from lamoid.checkpoints.name_maps import llama_to_hf
from lamoid.checkpoints.peft import by_our_names, read_adapter, write_adapter
from lamoid.checkpoints.store import is_adapter
from lamoid.errors import CheckpointError, DataError, UsageError
from lamoid.models.llama import Llama, LlamaConfig

ODD = replace(SHAPES["one kv head, odd head size"], attention_bias=True, feed_forward_bias=True)
CONFIGS = {"grouped": SHAPES["grouped"], "tied": SHAPES["tied"], "one kv head, biases": ODD}
LORAS = {
    "rank 3": LoraConfig(3, 5.0),
    "rsLoRA, no whole alpha": LoraConfig(4, 2.5, rslora=True, targets=("q_proj", "v_proj", "down_proj")),
    "rank 1 on one layer alone": LoraConfig(1, 8.0, targets=("layers.1.attention.k_proj", "up_proj")),
    "the output layer": LoraConfig(2, 8.0, targets=("lm_head", "o_proj")),
}


def some_ids(config: LlamaConfig) -> Tensor:
    return torch.randint(0, config.vocab_size, (2, 17), generator=torch.Generator().manual_seed(0))


def trained(model: Llama) -> Llama:
    """As if it had been: nothing is zero any more."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def written(model: Llama, base: Path, name: str = "adapter") -> Path:
    directory = base.parent / name
    directory.mkdir()
    write_adapter(directory, model, None, base)
    return directory


@torch.no_grad()
def assert_equal_logits(found: Any, expected: Any, ids: Tensor) -> None:
    ours, theirs = (out if isinstance(out, Tensor) else out.logits for out in (found(ids), expected(ids)))
    assert (ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()


@pytest.fixture
def base(model_directory: Callable[..., Path]) -> Path:
    return model_directory(SHAPES["tied"], name="base")


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize("lora", LORAS.values(), ids=LORAS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_peft_opens_ours(config: LlamaConfig, lora: LoraConfig, model_directory: Callable[..., Path]) -> None:
    base, ids = model_directory(config, name="base"), some_ids(config)
    model = trained(add_lora(read_model(base), lora))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        assert (theirs(ids).logits - model(ids)).abs().max() > 0.1  # the LoRA matters
    assert_equal_logits(open_in_peft(theirs, written(model, base)), model, ids)


def test_peft_opens_a_qlora_on_the_base_that_it_was_trained_on(base: Path) -> None:
    model = trained(add_lora(quantize_base(read_model(base), Nf4Config()), LoraConfig(3)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(base)
    with torch.no_grad():
        for path, layer in model.named_modules():
            if isinstance(layer, Nf4Linear):
                hf_path = llama_to_hf(path.removesuffix("linear")).removesuffix(".")
                theirs.get_submodule(hf_path).weight.copy_(layer.weight)
    assert_equal_logits(open_in_peft(theirs, written(model, base)), model, some_ids(model.config))


def test_transformers_opens_an_adapter_like_any_model(base: Path) -> None:
    model = trained(add_lora(read_model(base), LoraConfig(3)))
    theirs = transformers.AutoModelForCausalLM.from_pretrained(written(model, base))
    assert_equal_logits(theirs, model, some_ids(model.config))


PEFTS: dict[str, dict[str, Any]] = {
    "all linear": dict(r=3, lora_alpha=7, target_modules="all-linear"),
    "rsLoRA": dict(r=4, lora_alpha=8, use_rslora=True, lora_dropout=0.3, target_modules=["q_proj", "gate_proj"]),
    "a regular expression": dict(r=2, target_modules=r".*\.0\.(self_attn|mlp)\.(k|down)_proj"),
    "some layers": dict(r=2, target_modules=["v_proj"], layers_to_transform=[1], layers_pattern="layers"),
    "left out": dict(r=2, target_modules="all-linear", exclude_modules=["up_proj", "model.layers.0.self_attn.q_proj"]),
    "the output layer": dict(r=3, target_modules=["lm_head", "o_proj"], task_type="CAUSAL_LM"),
}


@pytest.mark.parametrize("case", PEFTS)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_ours_opens_pefts(config: LlamaConfig, case: str, model_directory: Callable[..., Path], tmp_path: Path) -> None:
    base, ids = model_directory(config, name="base"), some_ids(config)
    theirs = peft_model(base, init_lora_weights=False, **PEFTS[case]).eval()
    model, tokenizer = lamoid.load(save(theirs, tmp_path / "adapter", base))
    with torch.no_grad():
        assert (model(ids) - read_model(base)(ids)).abs().max() > 1e-3  # the LoRA matters
    assert_equal_logits(model, theirs, ids)
    assert tokenizer is not None and tokenizer.chat_template  # the base's


METHODS: dict[str, Callable[[Llama], Llama]] = {
    "LoRA": lambda model: add_lora(model, LoraConfig(3, 5.0, 0.1, True, ("q_proj", "up_proj"), 7)),
    "QLoRA": lambda model: add_lora(quantize_base(model, Nf4Config()), LoraConfig(3)),
    "QLoRA, single quantization": lambda model: add_lora(quantize_base(model, Nf4Config(False)), LoraConfig(3)),
    "QLoRA in bfloat16": lambda model: add_lora(
        quantize_base(model.bfloat16(), Nf4Config(compute_dtype="bfloat16")), LoraConfig(3)
    ),
    "Houlsby": lambda model: add_adapters(model, AdapterConfig(5, behind=("o_proj", "up_proj"))),
    "Houlsby in bfloat16": lambda model: add_adapters(model.bfloat16(), AdapterConfig(5)),
}


@torch.no_grad()
@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_there_and_back_changes_no_bit(method: Callable[[Llama], Llama], base: Path) -> None:
    model, dtype = trained(method(read_model(base))), torch.float32
    if model.norm.weight.dtype == torch.bfloat16:
        dtype = torch.bfloat16
    directory, ids = written(model, base), some_ids(model.config)
    again, _ = lamoid.load(directory, dtype=dtype)
    assert is_adapter(directory) and torch.equal(again(ids), model(ids))
    state = by_our_names(model, read_adapter(directory).tensors)
    assert state.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    found = model.load_state_dict({name: torch.zeros_like(t) for name, t in state.items()}, strict=False)
    assert not found.unexpected_keys and not torch.equal(model(ids), again(ids))
    model.load_state_dict(state, strict=False)
    assert torch.equal(again(ids), model(ids))
    trained_alone = {name for name, p in again.named_parameters() if p.requires_grad}
    assert trained_alone == state.keys()  # training can go on


def test_a_directory_holds_what_a_chat_needs(base: Path, tokenizer: lamoid.Tokenizer) -> None:
    directory = base.parent / "adapter"
    directory.mkdir()
    model, own = lamoid.load(base)
    write_adapter(directory, add_lora(model, LoraConfig(3)), own, base)
    again = lamoid.load_tokenizer(directory)
    assert again.chat_template == own.chat_template and again.encode("một con mèo 猫 고양이") == own.encode(
        "một con mèo 猫 고양이"
    )
    assert (directory / "generation_config.json").read_text() == (base / "generation_config.json").read_text()
    config = json.loads((directory / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base.resolve()) and Path(str(base.resolve())).is_absolute()
    assert config["target_modules"] == ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def test_the_quantized_base_is_made_again_from_what_was_recorded(base: Path) -> None:
    """Another mean of the scales, as another machine may find it, is kept; and another dtype of the weights."""
    model = add_lora(quantize_base(read_model(base).bfloat16(), Nf4Config()), LoraConfig(3))
    directory = written(model, base)
    own = json.loads((directory / "lamoid_adapter.json").read_text())
    assert own["quantization"]["weight_dtype"] == "bfloat16" and len(own["quantization"]["offsets"]) == 14
    path = "layers.1.attention.o_proj"
    own["quantization"]["offsets"][path] *= 1.01
    (directory / "lamoid_adapter.json").write_text(json.dumps(own))
    again, _ = lamoid.load(directory, dtype=torch.float32)
    for name, layer in model.named_modules():
        if isinstance(layer, Nf4Linear):
            same = again.get_submodule(name)
            assert torch.equal(same.codes, layer.codes)
            assert torch.equal(same.offset, layer.offset) == (name != f"{path}.linear")
    assert again.embedding.weight.dtype == torch.float32
    assert torch.equal(again.embedding.weight, model.embedding.weight.float())


def edit(directory: Path, **fields: Any) -> None:
    file = directory / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    "fields",
    [
        dict(peft_type="IA3"),
        dict(peft_type="LOHA"),
        dict(peft_type=None),
        dict(task_type="SEQ_CLS"),
        dict(modules_to_save=["embed_tokens"]),
        dict(use_dora=True),
        dict(use_rslora="true"),
        dict(bias="lora_only"),
        dict(lora_bias=True),
        dict(fan_in_fan_out=True),
        dict(rank_pattern={"q_proj": 4}),
        dict(alpha_pattern={"q_proj": 4}),
        dict(layer_replication=[[0, 2]]),
        dict(trainable_token_indices=[1, 2]),
        dict(target_parameters=["w"]),
        dict(init_lora_weights="pissa"),
        dict(init_lora_weights="loftq"),
        dict(an_option_of_next_year=1),
        dict(lora_alpha="8"),
        dict(lora_alpha=True),
        dict(lora_dropout=float("nan")),
        dict(base_model_name_or_path=None),
        dict(base_model_name_or_path=["a"]),
    ],
    ids=str,
)
def test_what_cannot_be_represented_is_refused_by_its_name(fields: dict[str, Any], base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    edit(directory, **fields)
    with pytest.raises(CheckpointError, match=f"adapter_config.json: {next(iter(fields))} is "):
        read_adapter(directory)


@pytest.mark.parametrize(
    "settings", [dict(use_dora=True), dict(bias="all"), dict(modules_to_save=["lm_head"])], ids=str
)
def test_what_peft_writes_of_these_is_refused(settings: dict[str, Any], base: Path, tmp_path: Path) -> None:
    theirs = peft_model(base, r=2, target_modules=["q_proj"], **settings)
    with pytest.raises(CheckpointError, match=f"{next(iter(settings))} is "):
        lamoid.load(save(theirs, tmp_path / "adapter", base))


@pytest.mark.parametrize("rank", [1, 4, 10**9, -3, 0, 2.5, "3", None, True, [3]])
def test_another_rank_is_refused(rank: Any, base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    edit(directory, r=rank)
    with pytest.raises(CheckpointError, match="r is .*, but adapter_model.safetensors holds LoRA of rank \\[3\\]"):
        lamoid.load(directory)


def test_another_bottleneck_is_refused(base: Path) -> None:
    directory = written(add_adapters(read_model(base), AdapterConfig(5)), base)
    edit(directory, bottleneck=6)
    with pytest.raises(CheckpointError, match=r"bottleneck is 6, but adapter_model.safetensors holds \[5\]"):
        lamoid.load(directory)
    edit(directory, bottleneck=[5])
    with pytest.raises(CheckpointError, match=r"bottleneck is \[5\], but"):
        lamoid.load(directory)
    edit(directory, bottleneck=5, behind="o_proj")
    with pytest.raises(CheckpointError, match="behind is 'o_proj'; it must be a list of names"):
        lamoid.load(directory)


@pytest.mark.parametrize(
    "base_path", ["~nobody-has-this-name/x", "x" * 5000, "a\0b", "/nowhere/at/all"], ids=lambda p: p[:9]
)
def test_a_base_that_cannot_be_is_not_there(base_path: str, base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    edit(directory, base_model_name_or_path=base_path)
    with pytest.raises(DataError, match="the base of .*, is not there") as caught:
        lamoid.load(directory)
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "quantization",
    [
        {"weight_dtype": ["float32"]},
        {"weight_dtype": {}},
        {"offsets": {}},
        {"offsets": {"layers.0.attention.q_proj": 0.5}},
        {"compute_dtype": "x" * 1000},
    ],
    ids=lambda q: str(q)[:40],
)
def test_a_quantization_that_makes_no_sense_is_the_files_fault(quantization: dict[str, Any], base: Path) -> None:
    directory = written(add_lora(quantize_base(read_model(base), Nf4Config()), LoraConfig(3)), base)
    file = directory / "lamoid_adapter.json"
    raw = json.loads(file.read_text(encoding="utf-8"))
    raw["quantization"] |= quantization
    file.write_text(json.dumps(raw), encoding="utf-8")
    with pytest.raises(CheckpointError) as caught:
        lamoid.load(directory)
    assert str(directory) in str(caught.value) and len(str(caught.value)) < 1000


OTHER_BASES = {
    "another width": (replace(SHAPES["tied"], d_ff=100), "layers.0.feed_forward.gate_proj.lora_B is"),
    "fewer layers": (replace(SHAPES["tied"], n_layers=1), "layers.1.self_attn.q_proj, which is not there"),
    "more heads": (replace(SHAPES["tied"], n_kv_heads=4), "layers.0.attention.k_proj.lora_B is"),
}


@pytest.mark.parametrize(("config", "message"), OTHER_BASES.values(), ids=OTHER_BASES)
def test_another_base_is_refused(config: LlamaConfig, message: str, base: Path, model_directory) -> None:
    """By the tensors, where the adapter is peft's and knows no more of its base."""
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    (directory / "lamoid_adapter.json").unlink()
    edit(directory, base_model_name_or_path=str(model_directory(config, name="other")))
    with pytest.raises(CheckpointError, match=message):
        lamoid.load(directory)


def test_another_base_of_the_same_shape_is_refused(base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    model, tokenizer = lamoid.load(base)
    with torch.no_grad():
        model.layers[1].feed_forward.down_proj.weight[-1, 5] += 1e-3
    write_model(base, model, tokenizer)
    with pytest.raises(CheckpointError, match="was trained on another model than the one that is in .*base now"):
        lamoid.load(directory)


def test_the_base_in_other_files_is_the_same(base: Path) -> None:
    """Its fingerprint is of numbers, not of bytes."""
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    tensors = load_file(base / "model.safetensors")
    save_file(dict(reversed(tensors.items())), base / "model.safetensors", metadata={"written": "again"})
    lamoid.load(directory)


def test_weights_of_another_output_layer_beside_the_lora_are_refused(base: Path, tmp_path: Path) -> None:
    theirs = peft_model(base, r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    file = save(theirs, tmp_path / "adapter", base) / "adapter_model.safetensors"
    tensors = load_file(file)
    (name,) = (name for name in tensors if "base_layer" in name)
    lamoid.load(file.parent)
    save_file(tensors | {name: tensors[name] + 1e-3}, file)
    with pytest.raises(CheckpointError, match="belongs to another base than .*: lm_head.base_layer.weight"):
        lamoid.load(file.parent)


@pytest.mark.parametrize("change", ["missing", "superfluous", "misshapen", "foreign", "integers", "empty", "dora"])
def test_other_tensors_are_named(change: str, base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    file, prefix = directory / "adapter_model.safetensors", "base_model.model.model.layers.0.mlp.up_proj."
    tensors = load_file(file)
    if change == "missing":
        del tensors[f"{prefix}lora_A.weight"]
        message = r"layers\.0\.feed_forward\.up_proj\.lora_A is None, not \(3, 64\)"
    elif change == "superfluous":
        tensors |= {n.replace("layers.0", "layers.2"): t.clone() for n, t in tensors.items() if "layers.0.mlp.up" in n}
        message = "layers.2.mlp.up_proj, which is not there"
    elif change == "misshapen":
        tensors[f"{prefix}lora_A.weight"] = torch.zeros(3, 65)
        message = r"up_proj\.lora_A is \(3, 65\), not \(3, 64\)"
    elif change == "foreign":
        tensors["transformer.h.0.weight"] = torch.zeros(2)
        message = "holds transformer.h.0.weight; expected are weights named base_model.model"
    elif change == "integers":
        tensors[f"{prefix}lora_A.weight"] = torch.zeros(3, 64, dtype=torch.int32)
        message = "up_proj.lora_A.weight; expected are weights"
    elif change == "dora":
        tensors[f"{prefix}lora_magnitude_vector"] = torch.zeros(96)
        message = "holds model.layers.0.mlp.up_proj.lora_magnitude_vector; expected are lora_A and lora_B"
    else:
        tensors, message = {}, "holds nothing; expected are lora_A and lora_B"
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=message):
        lamoid.load(directory)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("adapter_config.json", b"{", "is not JSON"),
        ("adapter_config.json", b"[]", "a JSON object is expected"),
        ("adapter_config.json", b'{"peft_type": "LORA"}', "base_model_name_or_path is None"),
        ("adapter_model.safetensors", b"\xff" * 100, "cannot be read"),
        ("adapter_model.safetensors", b"", "cannot be read"),
        ("lamoid_adapter.json", b"[", "is not JSON"),
        ("lamoid_adapter.json", b'{"quantization": {"type": "nf3"}}', "quantization in lamoid_adapter.json is"),
        ("lamoid_adapter.json", b'{"quantization": 4}', "quantization in lamoid_adapter.json is 4"),
        (
            "lamoid_adapter.json",
            b'{"quantization": {"type": "nf4", "weight_dtype": "float32", "offsets": {"a": "b"}}}',
            "offsets of the quantization in lamoid_adapter.json are no numbers",
        ),
        (
            "lamoid_adapter.json",
            b'{"quantization": {"type": "nf4", "weight_dtype": "float32", "compute_dtype": "int4", "offsets": {}}}',
            "compute_dtype is 'int4'",
        ),
    ],
)
def test_damaged_files(name: str, content: bytes, message: str, base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    (directory / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        lamoid.load(directory)


def test_pickled_adapters_are_not_read(base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(CheckpointError, match="adapter_model.safetensors does not exist; adapters are read from"):
        lamoid.load(directory)


def test_a_base_that_is_not_there(base: Path) -> None:
    directory = written(add_lora(read_model(base), LoraConfig(3)), base)
    edit(directory, base_model_name_or_path="/nowhere/at/all")
    with pytest.raises(DataError, match="/nowhere/at/all, the base of .*adapter, is not there; put it back"):
        lamoid.load(directory)
    edit(directory, base_model_name_or_path="org/some-model")
    with pytest.raises(DataError, match="get it with: lamoid get hf:org/some-model"):
        lamoid.load(directory)
    edit(directory, base_model_name_or_path=str(directory))
    (directory / "lamoid_adapter.json").unlink()
    with pytest.raises(CheckpointError, match="is an adapter; merge it into its base first"):
        lamoid.load(directory)


def test_what_cannot_be_written(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no LoRA and no adapters; write it whole"):
        write_adapter(tmp_path, read_model(base), None, base)
    with pytest.raises(UsageError, match=r"model\.gguf is no Hugging Face directory; make one with: lamoid convert"):
        write_adapter(tmp_path, add_lora(read_model(base), LoraConfig(3)), None, tmp_path / "model.gguf")
