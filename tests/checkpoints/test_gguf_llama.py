"""Llamas in GGUF files against `transformers`, which opens the same files."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from tests.checkpoints.llamas import SCALED, SHAPES, TEMPLATE

import lamoid
from lamoid.checkpoints.conversion import convert, open_model
from lamoid.checkpoints.gguf import read_gguf
from lamoid.checkpoints.gguf_llama import config_from_gguf, read_gguf_model
from lamoid.checkpoints.gguf_write import metadata
from lamoid.errors import CheckpointError, DataError
from lamoid.inference.sampling import Sampling
from lamoid.models.llama import LlamaConfig
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, YarnScaling
from lamoid.tokenizers.gguf_vocabulary import PROBE, tokenizer_from_gguf, tokenizer_to_gguf

GREEDY = Sampling(temperature=0)
PROMPTS = ["The capital of France is", "Thủ đô của Việt Nam là thành phố"]


def peer(file: Path) -> transformers.PreTrainedModel:
    return transformers.AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32
    ).eval()


def assert_same_logits(ours: torch.nn.Module, theirs: torch.nn.Module, ids: torch.Tensor) -> None:
    with torch.no_grad():
        got, expected = ours(ids), theirs(ids).logits
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("dtype", ["F32", "F16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("shape", SHAPES)
def test_transformers_opens_what_we_write(shape: str, dtype: str, model_directory, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    convert(open_model(model_directory(SHAPES[shape])), file, dtype=dtype)
    ours, tokenizer = lamoid.load(file, dtype=torch.float32)
    ids = torch.tensor([tokenizer.encode(PROBE)[:60]])
    theirs = peer(file)
    assert_same_logits(ours, theirs, ids)
    text = lamoid.generate(ours, tokenizer, "The quick", sampling=GREEDY, max_new_tokens=12)
    prompt = torch.tensor([tokenizer.encode("The quick")])
    told = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False)
    assert told[0, prompt.shape[1] :].tolist()[: len(text.ids)] == text.ids


def test_smollm2_gives_the_logits_and_the_text_of_transformers(smollm2: Path) -> None:
    ours, tokenizer = lamoid.load(smollm2)
    theirs = peer(smollm2)
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(smollm2.parent, gguf_file=smollm2.name)
    text = PROBE.replace("½ ² ", "")  # transformers leaves out the split at digits, which only these show
    assert tokenizer.encode(text) == their_tokenizer(text, split_special_tokens=True)["input_ids"]
    for prompt in PROMPTS:
        ids = tokenizer.encode(prompt)
        assert ids == their_tokenizer(prompt)["input_ids"]
        assert_same_logits(ours, theirs, torch.tensor([ids]))
        inputs = torch.tensor([ids])
        told = theirs.generate(inputs, attention_mask=torch.ones_like(inputs), max_new_tokens=16, do_sample=False)
        text = lamoid.generate(ours, tokenizer, prompt, sampling=GREEDY, max_new_tokens=16)
        assert told[0, len(ids) :].tolist()[: len(text.ids)] == text.ids
        assert len(text.ids) == 16 or text.finish_reason == "end"


def test_reading_smollm2_says_what_the_file_says(smollm2: Path) -> None:
    source = open_model(smollm2)
    assert source.config == LlamaConfig(49152, 576, 30, 9, 3, 64, 1536, 8192, 1e-5, 100_000.0, None, True)
    assert source.tokenizer is not None and source.tokenizer.specials["eos"] == "<|im_end|>"
    assert "<|im_start|>" in (source.tokenizer.chat_template or "")


@pytest.mark.parametrize(
    "scaling",
    [LinearScaling(4.0), YarnScaling(4.0, 64), YarnScaling(8.0, 64, attention_factor=1.3)]
    + [Llama3Scaling(f, 1.0, 4.0, s) for f in (8.0, 32.0) for s in (64, 8192)]
    + [Llama3Scaling(3.0, 1.5, 2.5, 100)],
    ids=str,
)
def test_every_scaling_comes_back(scaling, model_directory, tmp_path: Path) -> None:
    config = replace(SHAPES["tied"], rope_scaling=scaling, head_dim=64)
    convert(open_model(model_directory(config)), tmp_path / "x.gguf")
    assert config_from_gguf(read_gguf(tmp_path / "x.gguf")) == config


def test_factors_of_llama_3_need_no_key_of_ours_and_odd_ones_are_refused(model_directory, tmp_path: Path) -> None:
    """As llama.cpp's converter writes them: the tensor alone."""
    file = tmp_path / "x.gguf"
    config = replace(SCALED, head_dim=64)
    convert(open_model(model_directory(config)), file)
    read = read_gguf(file)
    del read.metadata["lamoid.rope.llama3"]
    assert config_from_gguf(read).rope_scaling == SCALED.rope_scaling
    factors = read.tensors["rope_freqs.weight"]
    bent = np.frombuffer(factors.data.tobytes(), "<f4").copy()
    bent[3] *= 1.01
    read.tensors["rope_freqs.weight"] = replace(factors, data=bent.view(np.uint8))
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight"):
        config_from_gguf(read)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", "qwen2"),
        ("general.architecture", ["llama", "llama"]),
        ("general.type", "adapter"),
        ("general.type", np.array([], np.int32)),
        ("split.count", 3),
        ("split.count", np.array([1, 1], np.int32)),
        ("llama.expert_count", 8),
        ("llama.attention.sliding_window", 4096),
        ("llama.attention.value_length", 8),
        ("llama.rope.dimension_count", 8),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.scaling.type", np.array([1.0, 2.0], np.float32)),
        ("llama.logit_scale", 0.5),
        ("llama.something_new", 1),
        ("llama.block_count", 2**31),
        ("llama.block_count", 0),
        ("llama.attention.head_count", np.array([4, 2], np.int32)),
        ("llama.attention.head_count_kv", 3),
        ("llama.attention.layer_norm_rms_epsilon", float("nan")),
        ("llama.rope.freq_base", -1.0),
    ],
)
def test_what_a_llama_cannot_be_is_refused_by_name(key: str, value: object, model_directory, tmp_path: Path) -> None:
    convert(open_model(model_directory(SHAPES["grouped"])), tmp_path / "x.gguf")
    read = read_gguf(tmp_path / "x.gguf")
    read.metadata[key] = value
    ours = {"llama.attention.head_count_kv": "n_kv_heads"}
    with pytest.raises(CheckpointError, match=ours.get(key, key).replace(".", r"\.")):
        config_from_gguf(read)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model", ["llama"], "only 'llama'"),
        ("model", np.array([1, 2]), "only 'llama'"),
        ("precompiled_charsmap", 7, "rewrites texts"),
        ("token_type", np.array([1.0, np.nan], np.float32), "it must be an array of whole numbers"),
        ("token_type", np.array([np.inf], np.float32), "it must be an array of whole numbers"),
        ("merges", np.array([1, 2]), "no list of texts"),
    ],
)
def test_a_vocabulary_of_other_types_is_refused(key: str, value: object, message: str, tokenizer) -> None:
    metadata = tokenizer_to_gguf(tokenizer, tokenizer.vocab_size)
    with pytest.raises(DataError, match=message):
        tokenizer_from_gguf(metadata | {f"tokenizer.ggml.{key}": value})


@pytest.mark.parametrize(
    "own", [[np.nan, 1, 4, 8192], [32, 1, 4, np.inf], [1e300, 1, 4, 1e300], [32, 4, 4, 8192], [32, 1, 4, 0]]
)
def test_factors_of_llama_3_beside_a_key_that_makes_no_sense(own: list[float], model_directory, tmp_path: Path) -> None:
    config = replace(SCALED, head_dim=64)
    convert(open_model(model_directory(config)), tmp_path / "x.gguf")
    read = read_gguf(tmp_path / "x.gguf")
    read.metadata["lamoid.rope.llama3"] = np.array(own)
    assert config_from_gguf(read).rope_scaling == SCALED.rope_scaling


def test_missing_superfluous_and_misshapen_tensors_are_listed_together(model_directory, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    convert(open_model(model_directory(SHAPES["grouped"])), file)
    raw = file.read_bytes()
    file.write_bytes(raw.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_ap.weight"))
    with pytest.raises(
        CheckpointError, match=r"blk\.1\.ffn_up\.weight is missing; blk\.1\.ffn_ap\.weight is superfluous"
    ):
        read_gguf_model(file)


def test_what_llama_cpp_needs_is_in_the_file(model_directory, tmp_path: Path) -> None:
    """Read with the `gguf` package; keys and types as convert_hf_to_gguf writes them."""
    source = open_model(model_directory(replace(SCALED, vocab_size=500)))
    convert(source, tmp_path / "x.gguf", dtype="Q8_0", notify=lambda text: None)
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    got = {name: field.contents() for name, field in reader.fields.items()}
    expected = {
        "general.architecture": "llama",
        "general.file_type": 7,
        "general.quantization_version": 2,
        "llama.block_count": 2,
        "llama.attention.head_count_kv": 2,
        "llama.rope.dimension_count": 16,
        "llama.rope.freq_base": 500_000.0,
        "llama.vocab_size": 500,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.bos_token_id": 394,
        "tokenizer.ggml.eos_token_id": 395,
        "tokenizer.ggml.padding_token_id": 396,
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.add_eos_token": False,
        "tokenizer.chat_template": TEMPLATE,
    }
    assert {key: got[key] for key in expected} == expected
    assert len(got["tokenizer.ggml.tokens"]) == len(got["tokenizer.ggml.token_type"]) == 500
    assert got["tokenizer.ggml.tokens"][400] == "[PAD400]" and got["tokenizer.ggml.token_type"][400] == 5
    kinds = {tensor.name: tensor.tensor_type.name for tensor in reader.tensors}
    assert "output.weight" not in kinds and kinds["rope_freqs.weight"] == "F32" and kinds["output_norm.weight"] == "F32"
    assert kinds["token_embd.weight"] == "Q8_0"


def test_rows_that_are_no_whole_blocks_stay_f16_and_it_says_so(model_directory, tmp_path: Path) -> None:
    told: list[str] = []
    config = replace(SHAPES["grouped"], d_ff=100)
    convert(open_model(model_directory(config)), tmp_path / "x.gguf", dtype="Q4_0", notify=told.append)
    formats = open_model(tmp_path / "x.gguf").formats
    assert formats["layers.0.feed_forward.down_proj.weight"] == "F16"
    assert formats["layers.0.feed_forward.up_proj.weight"] == "Q4_0" and formats["lm_head.weight"] == "Q8_0"
    assert len(told) == 1 and "2 tensors stay F16" in told[0]


@pytest.mark.parametrize(
    ("scaling", "reason"),
    [
        (DynamicNTKScaling(2.0, 128), "rope_type is dynamic"),
        (YarnScaling(4.0, 64, truncate=False), "truncate of rope_type yarn is False"),
        (
            YarnScaling(4.0, 64, beta_fast=16.0),
            "beta_fast and beta_slow of rope_type yarn are 16 and 1, which llama.cpp",
        ),
        (YarnScaling(4.0, 64, beta_slow=2.5), r"are 32 and 2\.5, which llama\.cpp does not read from a file"),
    ],
)
def test_a_scaling_that_gguf_cannot_say_is_refused(scaling, reason, model_directory) -> None:
    source = open_model(model_directory(replace(SHAPES["grouped"], rope_scaling=scaling)))
    with pytest.raises(CheckpointError, match=reason):
        metadata(source, "F32")


def test_betas_that_another_converter_wrote_are_read(model_directory, tmp_path: Path) -> None:
    config = replace(SHAPES["grouped"], rope_scaling=YarnScaling(4.0, 64))
    convert(open_model(model_directory(config)), tmp_path / "x.gguf")
    read = read_gguf(tmp_path / "x.gguf")
    read.metadata.update({"llama.rope.scaling.yarn_beta_fast": 16.0, "llama.rope.scaling.yarn_beta_slow": 2.0})
    assert config_from_gguf(read).rope_scaling == YarnScaling(4.0, 64, 16.0, 2.0)


def test_the_tokenizer_is_read_without_torch(model_directory, tmp_path: Path) -> None:
    file = tmp_path / "x.gguf"
    convert(open_model(model_directory(SHAPES["grouped"])), file)
    program = (
        "import sys, json; from lamoid.checkpoints.gguf import read_gguf\n"
        "from lamoid.tokenizers.gguf_vocabulary import tokenizer_from_gguf\n"
        f"t = tokenizer_from_gguf(read_gguf({str(file)!r}).metadata)\n"
        "print(json.dumps([t.encode('The quick'), 'torch' in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == [open_model(file).tokenizer.encode("The quick"), False]
