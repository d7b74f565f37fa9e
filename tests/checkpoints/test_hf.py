"""Directories that transformers wrote, and directories that nobody should have written."""

import dataclasses
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor

from lamoid.checkpoints.hf import config_from_hf, config_to_hf, read_config, read_model, write_model
from lamoid.checkpoints.hf_stream import open_hf
from lamoid.checkpoints.store import MAX_JSON_BYTES, atomic_directory
from lamoid.errors import CheckpointError, UsageError
from lamoid.inference.weights import weights_of_directory
from lamoid.models.llama import Llama, LlamaConfig
from lamoid.nn.rope_scaling import DynamicNTKScaling, LinearScaling, Llama3Scaling, RopeScaling, YarnScaling

CONFIG = LlamaConfig(97, 12, 2, 6, 3, 4, 15, 64)
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


def hf_config(**changes: Any) -> dict[str, Any]:
    """A config.json as transformers 4 wrote it; a value of None takes the field away."""
    fields = dict(
        architectures=["LlamaForCausalLM"], model_type="llama", hidden_act="silu", vocab_size=97, hidden_size=12,
        num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3, head_dim=4, intermediate_size=15,
        max_position_embeddings=64, rms_norm_eps=1e-5, tie_word_embeddings=False, rope_theta=10_000.0,
        initializer_range=0.02, attention_bias=False, mlp_bias=False, use_cache=True, torch_dtype="float32",
    )  # fmt: skip
    return {key: value for key, value in (fields | changes).items() if value is not None}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A model directory in order, for a test to damage."""
    path = tmp_path / "model"
    path.mkdir()
    write_model(path, Llama(CONFIG).initialise(0), None)
    return path


def change_config(directory: Path, **changes: Any) -> None:
    raw = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(raw | changes))


def change_tensors(directory: Path, **changes: Tensor | None) -> None:
    tensors: dict[str, Any] = load_file(directory / WEIGHTS) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, directory / WEIGHTS)


def error_of(directory: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_model(directory)
    message = str(caught.value)
    assert "\n" not in message and str(directory) in message
    return message


# --- what config.json may say


def test_the_plain_configuration() -> None:
    assert config_from_hf(hf_config()) == CONFIG


SPELLINGS: list[tuple[dict[str, Any], RopeScaling | None]] = [
    ({"rope_scaling": None}, None),
    ({"rope_scaling": {"type": "linear", "factor": 2}}, LinearScaling(2.0)),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, LinearScaling(2.0)),
    ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, DynamicNTKScaling(4.0, 64)),
    (
        {"rope_scaling": {"rope_type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 9}},
        DynamicNTKScaling(4.0, 64),
    ),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, Llama3Scaling(8.0, 1.0, 4.0, 8192)),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "factor": 32}}, Llama3Scaling(32.0, 1.0, 4.0, 8192)),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, YarnScaling(4.0, 64)),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4, "original_max_position_embeddings": 16, "beta_fast": 20}},
        YarnScaling(4.0, 16, 20.0),
    ),
    (
        {
            "rope_scaling": {
                "rope_type": "yarn",
                "factor": 4,
                "truncate": False,
                "mscale": None,
                "attention_factor": 1.5,
            }
        },
        YarnScaling(4.0, 64, attention_factor=1.5, truncate=False),
    ),
]


@pytest.mark.parametrize(("spelling", "scaling"), SPELLINGS, ids=str)
def test_both_spellings_of_rope_mean_the_same(spelling: dict[str, Any], scaling: RopeScaling | None) -> None:
    expected = dataclasses.replace(CONFIG, rope_base=500_000.0, rope_scaling=scaling)
    old = hf_config(rope_theta=500_000.0, **spelling)
    assert config_from_hf(old) == expected
    new = hf_config(rope_theta=None)
    new["rope_parameters"] = {"rope_theta": 500_000.0, "rope_type": "default", **(spelling["rope_scaling"] or {})}
    if "type" in new["rope_parameters"]:
        new["rope_parameters"]["rope_type"] = new["rope_parameters"].pop("type")
    assert config_from_hf(new) == expected
    both = config_to_hf(expected)
    assert config_from_hf(both) == expected
    assert config_from_hf({k: v for k, v in both.items() if k not in ("rope_theta", "rope_scaling")}) == expected
    assert config_from_hf({k: v for k, v in both.items() if k != "rope_parameters"}) == expected


@pytest.mark.parametrize(("spelling", "scaling"), SPELLINGS, ids=str)
def test_transformers_understands_our_spelling_in_either_part(
    spelling: dict[str, Any], scaling: RopeScaling | None
) -> None:
    written = config_to_hf(dataclasses.replace(CONFIG, rope_base=500_000.0, rope_scaling=scaling))
    for left_out in ((), ("rope_theta", "rope_scaling"), ("rope_parameters",)):
        theirs = transformers.LlamaConfig(**{k: v for k, v in written.items() if k not in left_out})
        expected = {"rope_theta": 500_000.0, "rope_type": "default"} | (written["rope_scaling"] or {})
        assert theirs.rope_parameters == expected


def test_defaults_of_old_files() -> None:
    """What Llama 1's files leave out."""
    raw = hf_config(
        num_key_value_heads=None, head_dim=None, rope_theta=None, attention_bias=None, mlp_bias=None,
        rms_norm_eps=None, tie_word_embeddings=None, initializer_range=None, hidden_act=None, model_type=None,
    )  # fmt: skip
    assert config_from_hf(raw) == dataclasses.replace(CONFIG, n_kv_heads=6, head_dim=2, norm_eps=1e-6)


def test_values_that_are_null_count_as_left_out() -> None:
    raw = hf_config() | {"head_dim": None, "num_key_value_heads": None, "sliding_window": None, "rope_scaling": None}
    assert config_from_hf(raw) == dataclasses.replace(CONFIG, n_kv_heads=6, head_dim=2)


def test_dynamic_ntk_that_transformers_would_read_differently_is_not_written() -> None:
    with pytest.raises(UsageError, match="original_max_seq_len of DynamicNTKScaling is 32"):
        config_to_hf(dataclasses.replace(CONFIG, rope_scaling=DynamicNTKScaling(2.0, 32)))


NAN, INF = float("nan"), float("inf")
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"model_type": "mistral"}, "model_type is 'mistral'"),
    ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ({"sliding_window": 4096}, "sliding_window is 4096"),
    ({"use_sliding_window": True}, "use_sliding_window is True"),
    ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
    ({"quantization_config": {"bits": 4}}, "quantization_config is {'bits': 4}"),
    ({"num_attention_heads": 5, "num_key_value_heads": None, "head_dim": None}, "num_attention_heads is 5"),
    ({"num_key_value_heads": 4}, "num_key_value_heads is 4; it must divide num_attention_heads, which is 6"),
    ({"num_key_value_heads": 12}, "num_key_value_heads is 12"),
    ({"num_key_value_heads": 0}, "num_key_value_heads is 0"),
    ({"num_key_value_heads": "3"}, "num_key_value_heads is '3'"),
    ({"head_dim": 5}, "head_dim is 5"),
    ({"head_dim": -4}, "head_dim is -4"),
    ({"head_dim": 2**31}, "head_dim is 2147483648"),
    ({"vocab_size": -1}, "vocab_size is -1"),
    ({"vocab_size": 2**31}, "vocab_size is 2147483648"),
    ({"vocab_size": 97.0}, "vocab_size is 97.0"),
    ({"vocab_size": "97"}, "vocab_size is '97'"),
    ({"vocab_size": True}, "vocab_size is True"),
    ({"vocab_size": [97]}, r"vocab_size is \[97\]"),
    ({"hidden_size": 0}, "hidden_size is 0"),
    ({"hidden_size": 10**30}, "hidden_size is 1000000000000000000000000000000"),
    ({"intermediate_size": -15}, "intermediate_size is -15"),
    ({"intermediate_size": 2**40}, "intermediate_size is 1099511627776"),
    ({"num_hidden_layers": 0}, "num_hidden_layers is 0"),
    ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000"),
    ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000"),
    ({"num_attention_heads": 10**9, "num_key_value_heads": 1}, "num_attention_heads is 1000000000"),
    ({"max_position_embeddings": 0}, "max_position_embeddings is 0"),
    ({"max_position_embeddings": 2**50}, "max_position_embeddings is 1125899906842624"),
    ({"rms_norm_eps": NAN}, "rms_norm_eps is nan"),
    ({"rms_norm_eps": 0}, "rms_norm_eps is 0"),
    ({"rms_norm_eps": -1e-5}, "rms_norm_eps is -1e-05"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps is '1e-5'"),
    ({"initializer_range": INF}, "initializer_range is inf"),
    ({"tie_word_embeddings": "false"}, "tie_word_embeddings is 'false'"),
    ({"attention_bias": 0}, "attention_bias is 0"),
    ({"mlp_bias": "no"}, "mlp_bias is 'no'"),
    ({"rope_theta": "10000"}, "rope_theta is '10000'"),
    ({"rope_theta": NAN}, "rope_theta is nan"),
    ({"rope_theta": True}, "rope_theta is True"),
    ({"rope_theta": 10**400}, "rope_theta is 1000"),
    ({"rope_scaling": {"rope_type": "longrope"}}, "rope_type is 'longrope'"),
    ({"rope_scaling": {"type": "su"}}, "rope_type is 'su'"),
    ({"rope_scaling": {"rope_type": ["linear"]}}, r"rope_type is \['linear'\]"),
    ({"rope_scaling": "linear"}, "rope_scaling is 'linear'"),
    ({"rope_parameters": [1]}, r"rope_parameters is \[1\]"),
    ({"rope_scaling": {"rope_type": "linear"}}, "factor of rope_type linear is missing"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 0}}, "factor of rope_type linear is 0"),
    ({"rope_scaling": {"rope_type": "linear", "factor": NAN}}, "factor of rope_type linear is nan"),
    ({"rope_scaling": {"rope_type": "dynamic", "factor": "2"}}, "factor of rope_type dynamic is '2'"),
    ({"rope_scaling": {"rope_type": "yarn", "factor": 4, "truncate": 1}}, "truncate of rope_type yarn is 1"),
    (
        {"rope_scaling": {"rope_type": "yarn", "factor": 4, "original_max_position_embeddings": 16.5}},
        "original_max_position_embeddings of rope_type yarn is 16.5",
    ),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor of rope_type llama3 is missing"),
    ({"rope_scaling": {"rope_type": "llama3", **LLAMA3, "high_freq_factor": 1.0}}, "high_freq_factor is 1.0"),
    ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor is 0.5"),
    ({"rope_scaling": {"rope_type": "linear", "factor": 2, "partial_rotary_factor": 0.5}}, "partial_rotary_factor is"),
    ({"rope_parameters": {"rope_theta": 5e5}}, "rope_theta is both 10000.0 and 500000.0"),
    (
        {"rope_parameters": {"rope_type": "default"}, "rope_scaling": {"rope_type": "linear", "factor": 2}},
        "rope_parameters and rope_scaling disagree",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:60])
def test_a_configuration_is_refused_by_the_name_of_its_field(
    changes: dict[str, Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build_nothing(*arguments: Any, **named: Any) -> None:
        raise AssertionError("a model was built from a configuration that is wrong")

    monkeypatch.setattr(Llama, "__init__", build_nothing)
    (tmp_path / "config.json").write_text(json.dumps(hf_config(**changes)))
    began = time.process_time()
    with pytest.raises(CheckpointError, match=rf"config\.json: {message}") as caught:
        read_model(tmp_path)
    assert time.process_time() - began < 1
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "field",
    ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
     "max_position_embeddings"],
)  # fmt: skip
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(CheckpointError, match=rf"fields \['{field}'\] are missing"):
        config_from_hf(hf_config(**{field: None}))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "config.json is not JSON"),
        (b"\xff\xfe", "config.json is not JSON"),
        (b'["a"]', "config.json holds list; a JSON object is expected"),
        (b"null", "config.json holds NoneType"),
        (b"[" * 100_000, "config.json is not JSON"),
        (b'{"a": ' * 100_000, "config.json is not JSON"),
        (b'{"vocab_size": ' + b"9" * 10_000 + b"}", "config.json is not JSON"),
        (b" " * (MAX_JSON_BYTES + 1), "at most"),
    ],
)
def test_a_damaged_configuration_file(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    began = time.process_time()
    with pytest.raises(CheckpointError, match=message):
        read_config(tmp_path)
    assert time.process_time() - began < 1


def test_a_directory_without_configuration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"config\.json does not exist"):
        read_model(tmp_path)


# --- tensors


def test_bits_and_dtype_survive(tmp_path: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.float64):
        path = tmp_path / str(dtype)
        path.mkdir()
        model = Llama(CONFIG).initialise(3).to(dtype)
        write_model(path, model, None)
        again = read_model(path)
        assert all(
            torch.equal(p, q) and p.dtype == dtype for p, q in zip(again.parameters(), model.parameters(), strict=True)
        )
        assert not again.training and all(p.requires_grad for p in again.parameters())
        theirs = transformers.LlamaForCausalLM.from_pretrained(path)
        assert theirs.dtype == dtype
        assert torch.equal(theirs.model.layers[1].mlp.up_proj.weight, model.layers[1].feed_forward.up_proj.weight)
    assert {p.dtype for p in read_model(path, dtype=torch.bfloat16).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("tied", [False, True])
def test_a_sharded_checkpoint(tied: bool, tmp_path: Path) -> None:
    config = transformers.LlamaConfig(**hf_config(tie_word_embeddings=tied, rope_theta=None))
    theirs = transformers.LlamaForCausalLM(config)
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) >= 3 and not (tmp_path / WEIGHTS).exists()
    ours = read_model(tmp_path)
    expected = [theirs.get_input_embeddings(), theirs.model.layers[1].self_attn.v_proj, theirs.lm_head]
    found = [ours.embedding, ours.layers[1].attention.v_proj, ours.lm_head]
    assert all(torch.equal(a.weight, b.weight) for a, b in zip(expected, found, strict=True))
    write_model(tmp_path, Llama(ours.config).initialise(5), None)  # now a single file lies beside the stale index
    again, reference = read_model(tmp_path), transformers.LlamaForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm_head.weight, reference.lm_head.weight)
    assert not torch.equal(again.lm_head.weight, ours.lm_head.weight)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**hf_config(rope_theta=None)))
    theirs.save_pretrained(tmp_path, max_shard_size="4KB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert f"{shard.name!r} cannot be read" in error_of(tmp_path)


def test_every_tensor_that_does_not_fit_is_in_one_message(directory: Path) -> None:
    change_tensors(
        directory,
        **{
            "model.norm.weight": None,
            "model.layers.0.self_attn.q_proj.weight": None,
            "model.layers.1.mlp.up_proj.weight": torch.zeros(15, 13),
            "model.layers.0.mlp.up_proj.weight": torch.zeros(15 * 12),
            "model.layers.0.self_attn.q_proj.bias": torch.zeros(24),
            "model.layers.2.mlp.up_proj.weight": torch.zeros(15, 12),
            "lm_head.weight": torch.zeros(97, 12, dtype=torch.int64),
        },
    )
    message = error_of(directory)
    for problem in (
        "model.norm.weight is missing",
        "model.layers.0.self_attn.q_proj.weight is missing",
        "model.layers.1.mlp.up_proj.weight is (15, 13), not (15, 12)",
        "model.layers.0.mlp.up_proj.weight is (180,), not (15, 12)",
        "model.layers.0.self_attn.q_proj.bias is superfluous",
        "model.layers.2.mlp.up_proj.weight is superfluous",
        "lm_head.weight is int64",
    ):
        assert problem in message
    assert message.count(";") == 6


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn, torch.complex64])
def test_tensors_that_are_no_weights_are_refused(directory: Path, dtype: torch.dtype) -> None:
    change_tensors(directory, **{"model.norm.weight": torch.zeros(12).to(dtype)})
    assert "model.norm.weight is " + str(dtype).removeprefix("torch.") in error_of(directory)


def test_frequencies_in_old_files_are_passed_over(directory: Path) -> None:
    change_tensors(directory, **{"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2)})
    assert read_model(directory).config == CONFIG


def test_an_untied_model_needs_its_output_matrix(directory: Path) -> None:
    change_tensors(directory, **{"lm_head.weight": None})
    assert error_of(directory).endswith("does not fit its config.json: lm_head.weight is missing")
    change_config(directory, tie_word_embeddings=True)
    model = read_model(directory)
    assert model.lm_head.weight is model.embedding.weight


# --- files from a stranger


def shard_index(directory: Path, shard: str) -> None:
    """Move the weights out of the directory and point its index at a shard."""
    names = load_file(directory / WEIGHTS).keys()
    (directory / WEIGHTS).rename(directory.parent / "outside.safetensors")
    (directory / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, shard)}))


@pytest.mark.parametrize(
    "shard",
    ["../outside.safetensors", "sub/../../outside.safetensors", "/etc/passwd", "..", ".", "", "sub/inside.safetensors",
     "a\0b"],
    ids=lambda shard: repr(shard)[:30],
)  # fmt: skip
def test_a_shard_outside_the_directory_is_refused(directory: Path, shard: str) -> None:
    (directory / "sub").mkdir()
    shard_index(directory, shard)
    assert "lies outside the directory" in error_of(directory)


def test_nobody_waits_for_a_pipe(directory: Path) -> None:
    shard_index(directory, "pipe.safetensors")
    os.mkfifo(directory / "pipe.safetensors")
    assert "shard 'pipe.safetensors' cannot be read: it is not there, or no file" in error_of(directory)


@pytest.mark.parametrize("target", ["../outside.safetensors", "{parent}/outside.safetensors", "circle.safetensors"])
def test_a_link_that_leaves_the_directory_is_refused(directory: Path, target: str) -> None:
    shard_index(directory, "linked.safetensors")
    (directory / "linked.safetensors").symlink_to(target.format(parent=directory.parent))
    (directory / "circle.safetensors").symlink_to("linked.safetensors")
    assert "'linked.safetensors' lies outside the directory" in error_of(directory)


def test_a_link_inside_the_directory_is_followed(directory: Path) -> None:
    shard_index(directory, "linked.safetensors")
    (directory.parent / "outside.safetensors").rename(directory / "inside.safetensors")
    (directory / "linked.safetensors").symlink_to("inside.safetensors")
    assert read_model(directory).config == CONFIG


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "weight_map is missing"),
        ({"weight_map": ["x"]}, "weight_map is missing"),
        ({"weight_map": {}}, "model.embed_tokens.weight is missing"),
        ({"weight_map": {"a": {"b": 1}}}, "cannot be read"),
        ({"weight_map": {"a": "sub"}}, "cannot be read"),
        ({"weight_map": {"a": "config.json"}}, "cannot be read"),
        ({"weight_map": {"a": "x" * 5000}}, "cannot be read"),
        ({"weight_map": {"a": "x/" * 50_000}}, "lies outside the directory"),
    ],
)
def test_a_damaged_index(directory: Path, index: dict[str, Any], message: str) -> None:
    (directory / WEIGHTS).unlink()
    (directory / "sub").mkdir()
    (directory / INDEX).write_text(json.dumps(index))
    assert message in error_of(directory) and len(error_of(directory)) < 2000


def test_messages_stay_short_whatever_the_file_says(directory: Path) -> None:
    """A line, not a file: values and names are cut, and of many problems the first are told."""
    tensors = {f"{i} " + "x" * 1000: torch.zeros(1) for i in range(100)}
    change_tensors(directory, **tensors)
    assert "and 80 more" in error_of(directory) and len(error_of(directory)) < 6000
    for field in ("model_type", "hidden_act", "rope_scaling", "vocab_size", "rms_norm_eps", "tie_word_embeddings"):
        (directory / "config.json").write_text(json.dumps(hf_config(**{field: "x" * 100_000})))
        assert field in error_of(directory) and len(error_of(directory)) < 500


def test_a_tensor_in_two_shards_is_refused(directory: Path) -> None:
    tensors = load_file(directory / WEIGHTS)
    (directory / WEIGHTS).rename(directory / "one.safetensors")
    save_file({"model.norm.weight": tensors["model.norm.weight"] + 1}, directory / "two.safetensors")
    weight_map = dict.fromkeys(tensors, "one.safetensors") | {"model.norm.weight": "two.safetensors"}
    (directory / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    message = "two.safetensors: model.norm.weight is in another file"
    assert message in error_of(directory)
    for read in (open_hf, weights_of_directory):
        with pytest.raises(CheckpointError, match=message):
            read(directory)


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def entry(begin: int = 0, end: int = 8, *, dtype: str = "F32", shape: Any = (2,)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


MALFORMED = {
    "empty": b"",
    "seven bytes": b"\0" * 7,
    "header beyond the file": safetensors({"a": entry()}, bytes(8), length=10_000),
    "header of 2^63 bytes": safetensors({"a": entry()}, bytes(8), length=2**63),
    "header of 2^64 - 1 bytes": safetensors({"a": entry()}, bytes(8), length=2**64 - 1),
    "header of zero bytes": safetensors(b""),
    "header is no JSON": safetensors(b"{nonsense"),
    "header is no UTF-8": safetensors(b'{"\xff": 1}'),
    "header is a list": safetensors([entry()], bytes(8)),
    "header nested deeply": safetensors(b'{"a":' * 100_000),
    "truncated": safetensors({"a": entry()}, bytes(7)),
    "trailing bytes": safetensors({"a": entry()}, bytes(9)),
    "overlapping": safetensors({"a": entry(), "b": entry(4, 12)}, bytes(12)),
    "a hole": safetensors({"a": entry(), "b": entry(12, 20)}, bytes(20)),
    "beyond the data": safetensors({"a": entry(1000, 1008)}, bytes(8)),
    "offsets reversed": safetensors({"a": entry(8, 0)}, bytes(8)),
    "negative offset": safetensors({"a": entry(-8, 0)}, bytes(8)),
    "size against shape": safetensors({"a": entry(shape=(3,))}, bytes(8)),
    "negative shape": safetensors({"a": entry(shape=(-2,))}, bytes(8)),
    "shape that overflows": safetensors({"a": entry(shape=(2**32, 2**32, 2))}, bytes(8)),
    "shape of 2^40": safetensors({"a": entry(0, 2**42, shape=(2**40,))}, bytes(8)),
    "unknown type": safetensors({"a": entry(dtype="F33")}, bytes(8)),
    "pickle": b"\x80\x02cos\nsystem\n(S'touch owned'\ntR.",
    "duplicate keys": safetensors(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
        bytes(8),
    ),
}


@pytest.mark.parametrize("name", MALFORMED)
@pytest.mark.parametrize("sharded", [False, True])
def test_malformed_safetensors_are_an_error_in_under_a_second(directory: Path, name: str, sharded: bool) -> None:
    (directory / WEIGHTS).write_bytes(MALFORMED[name])
    if sharded:
        (directory / WEIGHTS).rename(directory / "shard.safetensors")
        (directory / INDEX).write_text(json.dumps({"weight_map": {"a": "shard.safetensors"}}))
    began = time.process_time()
    message = error_of(directory)
    assert time.process_time() - began < 1
    if name != "duplicate keys":
        assert f"{'shard' if sharded else 'model'}.safetensors cannot be read" in message


def test_a_good_file_cut_anywhere_is_an_error(directory: Path) -> None:
    content = (directory / WEIGHTS).read_bytes()
    for length in (*range(0, 64, 7), 1000, len(content) // 2, len(content) - 1):
        (directory / WEIGHTS).write_bytes(content[:length])
        assert "model.safetensors cannot be read" in error_of(directory)


def test_a_duplicate_name_never_loads(directory: Path) -> None:
    """Every tensor of the model is there, one of them twice: which one is meant?"""
    content = (directory / WEIGHTS).read_bytes()
    n_header = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + n_header]), content[8 + n_header :]
    extra = json.dumps({"model.norm.weight": entry(len(data), len(data) + 48, shape=(12,))})[1:]
    text = json.dumps(header)[:-1] + ", " + extra
    (directory / WEIGHTS).write_bytes(safetensors(text.encode(), data + bytes(48)))
    error_of(directory)


class Marker:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.00.pth", "model.pt", "training_args.bin"])
def test_pickle_is_never_opened(directory: Path, name: str, tmp_path: Path) -> None:
    torch.save({"model.norm.weight": Marker(tmp_path / "executed")}, directory / name)
    opened: list[str] = []
    watching = [True]  # an audit hook stays for good
    sys.addaudithook(
        lambda event, arguments: opened.append(str(arguments[0])) if watching and event == "open" else None
    )
    assert read_model(directory).config == CONFIG
    (directory / WEIGHTS).unlink()
    assert f"has no {WEIGHTS}" in error_of(directory)
    assert not any(path.endswith(name) for path in opened) and not (tmp_path / "executed").exists()
    assert any(path.endswith("config.json") for path in opened)
    torch.load(directory / name, weights_only=False)
    watching.clear()
    assert any(path.endswith(name) for path in opened) and (tmp_path / "executed").exists()  # the trap works


def test_an_index_that_names_a_pickle_does_not_execute_it(directory: Path, tmp_path: Path) -> None:
    torch.save({"model.norm.weight": Marker(tmp_path / "executed")}, directory / "pytorch_model.bin")
    (directory / WEIGHTS).unlink()
    (directory / INDEX).write_text(json.dumps({"weight_map": {"model.norm.weight": "pytorch_model.bin"}}))
    assert "pytorch_model.bin cannot be read" in error_of(directory)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("field", ["auto_map", "trust_remote_code"])
def test_code_of_a_model_directory_is_never_run(
    directory: Path, field: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for module in ("modeling_evil", "configuration_evil"):
        (directory / f"{module}.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')")
    mapping = {"AutoConfig": "configuration_evil.C", "AutoModelForCausalLM": "modeling_evil.M"}
    change_config(directory, **{field: mapping if field == "auto_map" else True})
    before = set(sys.modules)
    assert read_model(directory).config == CONFIG
    assert not (tmp_path / "executed").exists()
    assert not any("evil" in name for name in set(sys.modules) - before)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert (
        captured.err == f"note: {directory}/config.json: {field} is ignored; no code of a model directory is ever run\n"
    )


def test_a_plain_directory_is_read_without_a_word(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    read_model(directory)
    assert capsys.readouterr() == ("", "")


# --- files of our own


@pytest.fixture
def umask_027() -> Iterator[None]:
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.usefixtures("umask_027")
def test_written_files_have_the_mode_of_the_umask(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "model") as temporary:
        write_model(temporary, Llama(CONFIG), None)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in (tmp_path / "model").iterdir()}
    assert modes == dict.fromkeys(["config.json", "generation_config.json", WEIGHTS, "checksums.json"], "0o640")


def test_memory_stays_near_the_size_of_the_file(tmp_path: Path) -> None:
    """Reading takes the file once, not twice."""
    config = dataclasses.replace(CONFIG, vocab_size=2**16, d_model=256, head_dim=2)
    write_model(tmp_path, Llama(config), None)
    n_bytes = (tmp_path / WEIGHTS).stat().st_size
    assert n_bytes > 100_000_000
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from lamoid.checkpoints.hf import read_model\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024\n"
        "before = peak()\n"
        "model = read_model(Path(sys.argv[1]))\n"
        "total = sum(float(p.sum()) for p in model.parameters())\n"
        "print(peak() - before)\n"
    )
    ended = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, capture_output=True, text=True)
    assert int(ended.stdout) < 1.3 * n_bytes
