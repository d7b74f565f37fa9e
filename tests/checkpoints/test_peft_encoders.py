"""PEFT directories of encoders with a head: ours open in peft, peft's open here, with equal logits; and what is refused."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tests.adapt.peft_twin import open_in_peft, save
from tests.checkpoints.llamas import SHAPES
from torch import Tensor, nn

import lamoid
from lamoid.adapt.adapters import AdapterConfig, add_adapters
from lamoid.adapt.lora import LoraConfig, add_lora
from lamoid.adapt.nf4 import Nf4Config, Nf4Linear, quantize_base
from lamoid.checkpoints.hf import read_model, spelling_of
from lamoid.checkpoints.peft import write_adapter
from lamoid.errors import CheckpointError
from lamoid.models.heads import HeadedEncoder, HeadKind, attach_head

LABELS = ("tốt", "差", "보통")
SIZES = dict(vocab_size=61, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40)
FAMILIES = {
    "bert": (transformers.BertModel, transformers.BertConfig(**SIZES, max_position_embeddings=20)),
    "roberta": (transformers.RobertaModel, transformers.RobertaConfig(**SIZES, max_position_embeddings=22)),
}
TASKS: dict[HeadKind, Any] = {
    "sequence": (transformers.AutoModelForSequenceClassification, "SEQ_CLS", 3),
    "token": (transformers.AutoModelForTokenClassification, "TOKEN_CLS", 3),
    "span": (transformers.AutoModelForQuestionAnswering, "QUESTION_ANS", 2),
}
METHODS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "LoRA": lambda encoder: add_lora(encoder, LoraConfig(3, 5.0)),
    "rsLoRA on some": lambda encoder: add_lora(
        encoder, LoraConfig(2, 2.5, rslora=True, targets=("layers.1.attention.o_proj", "up_proj", "q_proj"))
    ),
    "QLoRA": lambda encoder: add_lora(quantize_base(encoder, Nf4Config()), LoraConfig(3)),
    "Houlsby": lambda encoder: add_adapters(encoder, AdapterConfig(5)),
}
IDS = torch.randint(5, 61, (3, 11), generator=torch.Generator().manual_seed(0))
MASK = (torch.arange(11) < torch.tensor([[11], [7], [4]])).long()


@pytest.fixture(params=FAMILIES)
def base(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A random encoder of transformers with a pooler, where BERT's has one."""
    kind, config = FAMILIES[request.param]
    torch.manual_seed(0)
    kind(config, add_pooling_layer=request.param == "bert").save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(base: Path, task: HeadKind, method: str) -> HeadedEncoder:
    """With a new head, and as if it had been trained: nothing is zero any more."""
    model = attach_head(read_model(base), task, 1, LABELS if task != "span" else ())
    METHODS[method](model.encoder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def written(model: nn.Module, base: Path) -> Path:
    directory = base.parent / "adapter"
    directory.mkdir()
    write_adapter(directory, model, None, base)
    return directory


def theirs(base: Path, task: HeadKind) -> Any:
    kind, _, n_labels = TASKS[task]
    return kind.from_pretrained(base, num_labels=n_labels)


@torch.no_grad()
def logits(model: Any) -> Tensor:
    """At tokens, not at padding."""
    out = model(IDS, MASK)
    if not isinstance(out, Tensor):
        out = torch.stack([out.start_logits, out.end_logits], -1) if "start_logits" in out else out.logits
    return out if out.dim() == 2 else out[MASK.bool()]


@pytest.mark.parametrize("method", ["LoRA", "rsLoRA on some", "QLoRA"])
@pytest.mark.parametrize("task", TASKS)
def test_peft_opens_ours(task: HeadKind, method: str, base: Path) -> None:
    model = adapted(base, task, method)
    plain = theirs(base, task)
    for path, layer in model.named_modules():
        if isinstance(layer, Nf4Linear):  # peft has no word for it: its base gets the values
            name = spelling_of(model.config).rename(model, f"{path.removesuffix('.linear')}.weight")
            plain.get_submodule(name.removesuffix(".weight")).weight.data.copy_(layer.weight)
    found = open_in_peft(plain, written(model, base))
    assert type(found).__name__.startswith("PeftModelFor")
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("task", TASKS)
def test_there_and_back_changes_no_bit(task: HeadKind, method: str, base: Path) -> None:
    model = adapted(base, task, method)
    again, _ = lamoid.load(written(model, base))
    assert torch.equal(logits(again), logits(model))
    assert getattr(again.head, "labels", LABELS) == LABELS
    trained = [{n for n, p in m.named_parameters() if p.requires_grad} for m in (model, again)]
    assert trained[0] == trained[1] and any(name.startswith("head.") for name in trained[0])


@pytest.mark.parametrize("targets", [["query", "output.dense"], ["value"]], ids=str)
@pytest.mark.parametrize("task", TASKS)
def test_ours_opens_pefts(task: HeadKind, targets: list[str], base: Path, tmp_path: Path) -> None:
    """Whose pooler is the base's, frozen."""
    settings = peft.LoraConfig(task_type=TASKS[task][1], r=3, target_modules=targets, init_lora_weights=False)
    torch.manual_seed(2)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(theirs(base, task), settings).eval()
    directory = save(model, tmp_path / "adapter", base)
    found, _ = lamoid.load(directory)
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-4, atol=1e-5)
    if task != "span":
        assert found.head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    trained = [name for name, p in found.named_parameters() if p.requires_grad]
    assert any(name.startswith("head.linear.") for name in trained)
    assert any(".pooler." in name for name in trained) == (task == "sequence" and "Roberta" in str(type(found.encoder)))


def change(directory: Path, name: str, **fields: Any) -> None:
    file = directory / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "b"], r"labels in lamoid_adapter.json are \['a', 'b'\]; 3 names are expected"),
        ("abc", "labels in lamoid_adapter.json are abc; 3 names"),
        ([1, 2, 3], "3 names are expected"),
    ],
)
def test_labels_that_do_not_fit(labels: Any, message: str, base: Path) -> None:
    directory = written(adapted(base, "token", "LoRA"), base)
    change(directory, "lamoid_adapter.json", labels=labels)
    with pytest.raises(CheckpointError, match=message):
        lamoid.load(directory)


def test_a_head_without_its_tensors_is_refused(base: Path) -> None:
    directory = written(adapted(base, "sequence", "LoRA"), base)
    file = directory / "adapter_model.safetensors"
    whole = load_file(file)
    save_file({name: tensor for name, tensor in whole.items() if not name.endswith(".bias")}, file)
    with pytest.raises(CheckpointError, match="head.linear.bias is None"):
        lamoid.load(directory)
    save_file({name: tensor for name, tensor in whole.items() if "classifier" not in name}, file)
    with pytest.raises(CheckpointError, match="adapter_config.json: task_type is one of classes, but .* holds none"):
        lamoid.load(directory)
    save_file(whole | {"base_model.model.score.weight": torch.zeros(3, 24)}, file)
    with pytest.raises(CheckpointError, match=r"score\.weight is superfluous"):
        lamoid.load(directory)


def test_a_pooler_that_nobody_brings_is_missed(tmp_path: Path) -> None:
    base = tmp_path / "base"
    transformers.BertModel(FAMILIES["bert"][1], add_pooling_layer=False).save_pretrained(base)
    directory = written(adapted(base, "sequence", "LoRA"), base)
    lamoid.load(directory)
    file = directory / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "pooler" not in name}, file)
    with pytest.raises(CheckpointError, match=r"head\.pooler\.dense\.weight is None"):
        lamoid.load(directory)


def test_decoders_and_encoders_are_not_mixed_up(base: Path, model_directory: Callable[..., Path]) -> None:
    llama = model_directory(SHAPES["tied"], name="llama")
    directory = written(adapted(base, "token", "LoRA"), base)
    (directory / "lamoid_adapter.json").unlink()
    change(directory, "adapter_config.json", base_model_name_or_path=str(llama))
    with pytest.raises(CheckpointError, match="has a head for an encoder; .*llama is a Llama"):
        lamoid.load(directory)
    change(directory, "adapter_config.json", base_model_name_or_path=str(base), task_type="CAUSAL_LM")
    with pytest.raises(CheckpointError, match=r"modules_to_save is \['classifier'\]"):
        lamoid.load(directory)
    change(directory, "adapter_config.json", modules_to_save=None)
    with pytest.raises(CheckpointError, match="adapter is for a Llama; .*base is a"):
        lamoid.load(directory)


def test_another_encoder_of_the_same_shape_is_refused(base: Path) -> None:
    directory = written(adapted(base, "span", "LoRA"), base)
    file = base / "model.safetensors"
    tensors = load_file(file)
    next(t for n, t in tensors.items() if n.endswith("1.output.dense.weight"))[-1, 3] += 1e-3
    save_file(tensors, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="was trained on another model than the one that is in"):
        lamoid.load(directory)
