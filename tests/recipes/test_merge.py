"""`lamoid merge`, and adapters as models: what they give before and after, and what is refused."""

import copy
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import bitsandbytes.functional as reference
import numpy as np
import pytest
import torch
import transformers
from gguf import GGUFReader, dequantize
from safetensors.torch import load_file
from tests.checkpoints.llamas import SHAPES, TEMPLATE, random_llama
from torch import Tensor

import lamoid
from lamoid.adapt.adapters import AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, LoraLinear, add_lora
from lamoid.adapt.nf4 import Nf4Config, quantize_base
from lamoid.checkpoints import merged
from lamoid.checkpoints.hf import write_model
from lamoid.checkpoints.peft import write_adapter
from lamoid.checkpoints.store import verify
from lamoid.cli import main
from lamoid.errors import EngineUnavailable
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.recipes.prepare import encode_documents
from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.gguf_vocabulary import PROBE

ODD = replace(SHAPES["one kv head, odd head size"], attention_bias=True, feed_forward_bias=True)
Adapt = Callable[[Llama], Llama]


def lora(*targets: str) -> Adapt:
    return lambda model: add_lora(model, LoraConfig(3, 5.0, rslora=True, targets=targets or ("all-linear",)))


def qlora(model: Llama) -> Llama:
    return add_lora(quantize_base(model, Nf4Config()), LoraConfig(3))


def qlora_in_bfloat16(model: Llama) -> Llama:
    return add_lora(quantize_base(model.bfloat16(), Nf4Config(compute_dtype="bfloat16")), LoraConfig(3))


def houlsby(model: Llama) -> Llama:
    return add_adapters(model, AdapterConfig(5))


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """adapter(adapt, config): a base in tmp_path/base, and beside it an adapter that changes what it says."""

    def make(adapt: Adapt, config: LlamaConfig = SHAPES["tied"], dtype: torch.dtype = torch.float32) -> Path:
        base, directory, tokenizer = tmp_path / "base", tmp_path / "adapter", train_bpe([PROBE] * 3, 400)
        tokenizer.chat_template = TEMPLATE
        base.mkdir()
        directory.mkdir()
        write_model(base, random_llama(config).to(dtype), tokenizer)
        settings = json.loads((base / "generation_config.json").read_text())
        settings["eos_token_id"] = [settings["eos_token_id"], 399]
        (base / "generation_config.json").write_text(json.dumps(settings))
        model = adapt(lamoid.load(base)[0])
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
        write_adapter(directory, model, tokenizer, base)
        return directory

    return make


def merge(adapter: Path, name: str = "merged", *flags: str) -> tuple[Path, dict[str, Any]]:
    """The certificate is read from its file."""
    out = adapter.parent / name
    assert main(["merge", str(adapter), "--out", str(out), *flags]) == 0
    gguf = out if out.suffix == ".gguf" else out.with_name(f"{out.name}.gguf")
    file = gguf.with_suffix(".certificate.json") if gguf.is_file() else out / "certificate.json"
    return gguf if gguf.is_file() else out, json.loads(file.read_text())


def some_ids(n: int = 40) -> Tensor:
    return torch.randint(0, 400, (2, n), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def relative_difference(found: Any, expected: Any, ids: Tensor) -> float:
    ours, theirs = (out if isinstance(out, Tensor) else out.logits for out in (found(ids), expected(ids)))
    return float((ours.float() - theirs.float()).abs().max() / theirs.float().abs().max())


@pytest.mark.parametrize("config", [SHAPES["tied"], SHAPES["grouped"], ODD], ids=["tied", "grouped", "biases"])
@pytest.mark.parametrize("adapt", [lora(), lora("q_proj", "down_proj"), qlora], ids=["LoRA", "LoRA on some", "QLoRA"])
def test_a_merged_model_computes_what_its_adapter_did(
    adapt: Adapt, config: LlamaConfig, adapter: Callable[..., Path]
) -> None:
    directory, ids = adapter(adapt, config), some_ids()
    unmerged, tokenizer = lamoid.load(directory)
    out, proof = merge(directory)
    model, again = lamoid.load(out)
    assert relative_difference(model, unmerged, ids) <= 1e-5
    assert relative_difference(lamoid.load(directory.parent / "base")[0], unmerged, ids) > 1e-2  # it matters
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert relative_difference(theirs, unmerged, ids) <= 1e-4
    assert tokenizer is not None and again is not None and again.encode(PROBE) == tokenizer.encode(PROBE)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    assert their_tokenizer.chat_template == again.chat_template == TEMPLATE
    assert json.loads((out / "generation_config.json").read_text())["eos_token_id"] == [again.special_id("eos"), 399]
    assert model.config == config and proof["exact"] and proof["dtype"] == "F32"
    assert proof["source"]["name"] == "adapter" and "adapter_model.safetensors" in proof["source"]["sha256"]
    found = proof["drift"]
    assert 0 < found["relative"] <= 1e-5 and abs(found["mean_kl_nats"]) < 1e-6
    assert found["perplexity"]["merged"] == pytest.approx(found["perplexity"]["adapter"], rel=1e-4)
    verify(out)


def test_the_weights_are_w_plus_s_b_a(adapter: Callable[..., Path]) -> None:
    directory = adapter(lora("v_proj"), SHAPES["grouped"])
    before, after = (
        load_file(directory.parent / "base" / "model.safetensors"),
        load_file(merge(directory)[0] / "model.safetensors"),
    )
    parts = load_file(directory / "adapter_model.safetensors")
    for name, weight in before.items():
        if "v_proj" in name:
            a, b = (parts[f"base_model.model.{name}".replace(".weight", f".lora_{x}.weight")] for x in "AB")
            torch.testing.assert_close(after[name], weight + 5 / 3**0.5 * b @ a)
        else:
            assert torch.equal(after[name], weight), name


@torch.no_grad()
def test_a_merge_is_exact_but_for_the_rounding_of_float32(adapter: Callable[..., Path]) -> None:
    """In float64 the formula is the same function, and what was written is each of its weights rounded, and no more.

    A weight has r + 2 roundings of 2⁻²⁴ on its way: s · B, the products and sums of r terms, and the sum with W.
    """
    directory, ids = adapter(lora(), SHAPES["grouped"]), some_ids()
    written = lamoid.load(merge(directory)[0])[0].double()
    adapted = lamoid.load(directory)[0].double()
    formula, n_merged = copy.deepcopy(written), 0
    for path, layer in adapted.named_modules():
        if isinstance(layer, LoraLinear):
            update = layer.config.scale * layer.lora_B @ layer.lora_A
            whole, found = layer.linear.weight + update, written.get_submodule(path).weight
            terms = layer.linear.weight.abs() + layer.config.scale * layer.lora_B.abs() @ layer.lora_A.abs()
            assert ((found - whole).abs() <= (layer.config.rank + 3) * 2**-24 * terms).all(), path
            formula.get_submodule(path).weight.copy_(whole)
            n_merged += 1
    assert n_merged == 7 * adapted.config.n_layers
    expected = adapted(ids)
    assert (formula(ids) - expected).abs().max() <= 1e-13 * expected.abs().max()
    assert (written(ids) - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_qlora_is_merged_into_the_dequantized_base(adapter: Callable[..., Path]) -> None:
    """As bitsandbytes dequantizes it, and not into the weights that it was quantized from."""
    directory = adapter(qlora)
    before, after = (
        load_file(directory.parent / "base" / "model.safetensors"),
        load_file(merge(directory)[0] / "model.safetensors"),
    )
    parts, scale = load_file(directory / "adapter_model.safetensors"), 16 / 3
    for name, weight in before.items():
        if name.endswith("_proj.weight"):
            codes, state = reference.quantize_4bit(weight.view(1, -1), quant_type="nf4", compress_statistics=True)
            base = reference.dequantize_4bit(codes, state).view(weight.shape)
            a, b = (parts[f"base_model.model.{name}".replace(".weight", f".lora_{x}.weight")] for x in "AB")
            torch.testing.assert_close(after[name], base + scale * b @ a)
            assert not torch.allclose(after[name], weight + scale * b @ a, atol=1e-3)


def test_bfloat16_rounds_and_says_how_far(adapter: Callable[..., Path]) -> None:
    directory = adapter(qlora)
    out, proof = merge(directory, "merged", "--dtype", "bfloat16")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}
    measured = relative_difference(lamoid.load(out, dtype=torch.float32)[0], lamoid.load(directory)[0], some_ids())
    assert 1e-4 < measured < 0.1 and 1e-4 < proof["drift"]["relative"] < 0.1
    assert 0 < proof["drift"]["mean_kl_nats"] < 0.05 and proof["dtype"] == "BF16" and not proof["exact"]
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_products_in_bfloat16_are_a_drift_of_their_own(adapter: Callable[..., Path]) -> None:
    """The adapter computes in bfloat16, the merged model in float32 with the weights that it computed with."""
    directory = adapter(qlora_in_bfloat16)
    out, proof = merge(directory)
    assert proof["exact"] and 1e-4 < proof["drift"]["relative"] < 0.1
    unmerged, _ = lamoid.load(directory)
    assert relative_difference(lamoid.load(out)[0], unmerged, some_ids()) < 0.1


@pytest.mark.parametrize(("kind", "bits"), [("q8_0", 8.5), ("q4_0", 4.5), ("q4_1", 5.0)])
def test_quantized_again_on_request_with_its_own_drift(
    kind: str, bits: float, adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = adapter(qlora)
    exact = merge(directory, "exact")[0]
    file, proof = merge(directory, "merged", "--quantize", kind)
    assert file.name == "merged.gguf" and str(file) in capsys.readouterr().out
    assert proof["dtype"] == kind.upper() and proof["drift"]["relative"] > 1e-4
    weights = load_file(exact / "model.safetensors")["model.layers.0.mlp.up_proj.weight"]
    tensor = next(t for t in GGUFReader(file).tensors if t.name == "blk.0.ffn_up.weight")
    found = torch.from_numpy(np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type)))
    assert 8 * tensor.n_bytes / weights.numel() == bits
    assert 0 < (found - weights).abs().max() < (0.01 if kind == "q8_0" else 0.2) * weights.abs().max()


def test_lora_on_the_output_layer_unties_the_embedding(
    adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = adapter(lora("lm_head", "q_proj"))
    out, _ = merge(directory)
    assert "unties it from the embedding" in capsys.readouterr().err
    model, ids = lamoid.load(out)[0], some_ids()
    assert not model.config.tied_embeddings and not json.loads((out / "config.json").read_text())["tie_word_embeddings"]
    base = lamoid.load(directory.parent / "base")[0]
    assert torch.equal(model.embedding.weight, base.embedding.weight)
    assert not torch.equal(model.lm_head.weight, model.embedding.weight)
    assert relative_difference(model, lamoid.load(directory)[0], ids) <= 1e-5
    theirs = transformers.AutoModelForCausalLM.from_pretrained(out)
    assert relative_difference(theirs, model, ids) <= 1e-4


def test_a_tied_model_stays_tied_and_is_written_once(adapter: Callable[..., Path]) -> None:
    out, _ = merge(adapter(lora()))
    assert "lm_head.weight" not in load_file(out / "model.safetensors")
    assert json.loads((out / "config.json").read_text())["tie_word_embeddings"]


def test_a_base_in_bfloat16_is_merged_in_float32(adapter: Callable[..., Path]) -> None:
    directory = adapter(lora(), SHAPES["tied"], torch.bfloat16)
    out, _ = merge(directory)
    unmerged, _ = lamoid.load(directory, dtype=torch.float32)
    assert relative_difference(lamoid.load(out)[0], unmerged, some_ids()) <= 1e-5


@pytest.mark.parametrize("adapt", [lora(), qlora, houlsby], ids=["LoRA", "QLoRA", "Houlsby"])
def test_an_adapter_generates_and_is_measured_as_it_is(
    adapt: Adapt, adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    directory = adapter(adapt)
    model, tokenizer = lamoid.load(directory)
    ids = tokenizer.encode("một con")
    expected = []
    with torch.no_grad():
        for _ in range(6):
            expected.append(int(model(torch.tensor([ids + expected]))[0, -1, : tokenizer.vocab_size].argmax()))
            if expected[-1] == tokenizer.special_id("eos"):
                break
    flags = ["--temperature", "0", "--max-new-tokens", "6", "--json"]
    assert main(["generate", str(directory), "một con", *flags]) == 0
    assert json.loads(capsys.readouterr().out)["ids"] == expected
    text, losses = "một con mèo, 고양이 한 마리, 一只猫 and a cat", []
    (tmp_path / "text.txt").write_text(text, encoding="utf-8")
    for place in (directory, directory.parent / "base"):
        assert main(["eval", str(place), "--text", str(tmp_path / "text.txt"), "--json"]) == 0
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    (read,) = encode_documents([text], tokenizer)
    with torch.no_grad():
        logits = model(torch.tensor([read]))[0, :-1]
    assert losses[0] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, torch.tensor(read[1:])).item(), rel=1e-5
    )
    assert abs(losses[0] - losses[1]) > 1e-2


@pytest.mark.parametrize(
    ("adapt", "config"),
    [(lora(), SHAPES["tied"]), (lora("all-linear", "lm_head"), SHAPES["tied"]), (lora(), ODD), (qlora, SHAPES["tied"])],
    ids=["LoRA", "LoRA on the output layer", "odd sizes", "QLoRA"],
)
def test_the_native_engine_runs_the_merged_model(
    adapt: Adapt, config: LlamaConfig, adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a file of it: logits and greedy text are those of the merged directory in transformers and in torch."""
    directory = adapter(adapt, config)
    out, _ = merge(directory)
    decoder, tokenizer = lamoid.load_engine(directory, threads=1)
    ids = some_ids()[:1]
    with torch.no_grad():
        expected = transformers.AutoModelForCausalLM.from_pretrained(out)(ids).logits[0].numpy()
    assert np.abs(decoder.logits(ids[0].tolist()) - expected).max() <= 1e-4 * np.abs(expected).max()
    assert tokenizer is not None and tokenizer.chat_template == TEMPLATE
    found = []
    for place, engine in ((directory, "native"), (out, "torch")):
        capsys.readouterr()
        flags = ["--engine", engine, "--temperature", "0", "--max-new-tokens", "30", "--threads", "1", "--json"]
        assert main(["generate", str(place), "một con", *flags]) == 0
        found.append(json.loads(capsys.readouterr().out)["ids"])
    assert found[0] == found[1]


def test_houlsby_adapters_are_left_to_torch(adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = adapter(houlsby)
    with pytest.raises(EngineUnavailable, match="peft_type of the adapter is 'LAMOID_HOULSBY'; the engine runs LORA"):
        lamoid.load_engine(directory)
    assert main(["generate", str(directory), "một con", "--max-new-tokens", "2"]) == 0
    assert "note: torch decodes, not the native engine: peft_type" in capsys.readouterr().err


def test_houlsby_adapters_are_refused_with_the_reason(
    adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    directory = adapter(houlsby)
    assert main(["merge", str(directory), "--out", str(directory.parent / "merged")]) == 2
    assert "cannot be merged: each has a GELU between its two matrices" in capsys.readouterr().err
    assert not (directory.parent / "merged").exists()


def test_wrong_calls(adapter: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    directory = adapter(lora())
    base, out = str(directory.parent / "base"), str(directory.parent / "merged")
    for arguments, code, message in (
        ([], 2, "an adapter and --out are needed"),
        ([str(directory)], 2, "an adapter and --out are needed"),
        ([base, "--out", out], 2, "holds no adapter that could be merged"),
        ([str(directory), "--out", base], 2, "exists; choose another name"),
        ([str(directory), "--out", out, "--quantize", "q2_k"], 2, "quantize is 'q2_k'; it must be one of q8_0"),
        (["nowhere", "--out", out], 3, "nowhere is no model"),
    ):
        assert main(["merge", *arguments]) == code
        assert message in capsys.readouterr().err
    assert main(["convert", str(directory), f"{out}.gguf"]) == 3
    assert "is an adapter; merge it into its base first: lamoid merge" in capsys.readouterr().err
    text = directory.parent / "base" / "config.json"
    for verb in (["pretrain", "--init"], ["finetune"], ["gqa"]):
        more = ["--kv-heads", "1"] if verb == ["gqa"] else []
        assert main([*verb, str(directory), "--data", str(text), "--out", out, *more]) == 3
        assert f"{directory} is an adapter; merge it into its base first" in capsys.readouterr().err
    shutil.rmtree(out, ignore_errors=True)
    assert sorted(path.name for path in directory.parent.iterdir()) == ["adapter", "base"]


def test_a_merge_that_is_wrong_leaves_nothing(
    adapter: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The scale forgotten: the weights are written as they were merged, but they are not what the adapter does."""
    directory, right = adapter(lora()), merged.merged_weight

    def wrong(layer: Any) -> Tensor:
        return right(layer) if not hasattr(layer, "lora_A") else right(layer.linear) + layer.lora_B @ layer.lora_A

    monkeypatch.setattr(merged, "merged_weight", wrong)
    assert main(["merge", str(directory), "--out", str(directory.parent / "merged")]) == 4
    assert "what the merged model says differs by" in capsys.readouterr().err
    assert sorted(path.name for path in directory.parent.iterdir()) == ["adapter", "base"]


def test_smollm2_merged(smollm2: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """30 layers of the real model: the merge is as exact as on small ones."""
    model, tokenizer = lamoid.load(smollm2)
    with torch.no_grad():
        for name, parameter in qlora(model).named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(std=0.003)
    (tmp_path / "adapter").mkdir()
    write_adapter(tmp_path / "adapter", model, tokenizer, smollm2)
    out, proof = merge(tmp_path / "adapter")
    assert proof["drift"]["relative"] <= 1e-5 and proof["drift"]["same_most_likely"] == 1
    assert "the same is most likely at 100.0% of the places" in capsys.readouterr().out
    assert lamoid.load(out)[1].chat_template == tokenizer.chat_template
