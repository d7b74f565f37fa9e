"""The kinds of files that are damaged, and how each is used afterwards."""

import os
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from tests.fuzz import texts, weights
from tests.fuzz.mutate import damaged_bytes, damaged_json
from tests.fuzz.watch import Make

from lamoid.checkpoints.conversion import open_model
from lamoid.checkpoints.gguf import dequantize, read_gguf
from lamoid.checkpoints.gguf_llama import read_gguf_model
from lamoid.checkpoints.source import load as load_source
from lamoid.models.llama import Llama
from lamoid.recipes.load import load
from lamoid.tokenizers.chat import ChatEncoder, TemplateFormat, read_end_ids
from lamoid.tokenizers.load import load_tokenizer
from lamoid.tokenizers.templates import TemplateRenderer
from lamoid.tokenizers.tokenizer import Tokenizer

TEXTS = [
    "The quick brown fox can't jump 12345 times; naïve café №9!  Two  spaces\n\n\tand a tab.\r\n",
    "Tiếng Việt có dấu: phở bò. Tie\u0302\u0301ng Vie\u0323\u0302t. 中文没有空格。한국어 문장입니다.",
    "العربية हिन्दी ไทย 👩‍👩‍👧‍👦 <s> <|eot_id|>",
    "",
    "a" * 60,
    " " * 60 + "!",
    ("a" * 21 + "c") * 20,
    "((((((((((a))))))))))" * 3 + "(" * 40,
    "\0\ufffd\ufeff\U0010ffff",
]
LONGEST_ENCODED = 2**17  # what is longer takes as long as any text of its length; a template writes at most 2^20
MESSAGES = [{"role": "system", "content": "Ngắn gọn!"}, {"role": "user", "content": "Thủ đô? 수도?"}]


@dataclass(frozen=True)
class Original:
    """A directory (or a GGUF file in one), which of its files is damaged, how, and how the result is used."""

    folder: str
    file: str
    damage: Callable[[bytes, random.Random], bytes]
    use: str


KINDS: dict[str, list[Original]] = {
    "safetensors": [
        Original("plain", "model.safetensors", weights.damaged_safetensors, "model"),
        Original("half", "model.safetensors", weights.damaged_safetensors, "model"),
        Original("sharded", "model-00002-of-00002.safetensors", weights.damaged_safetensors, "model"),
        Original("sharded", "model.safetensors.index.json", weights.damaged_index, "model"),
        *(Original(name, "model.safetensors", weights.damaged_safetensors, "load") for name in ("gpt2", "bert")),
        Original("lora", "adapter_model.safetensors", weights.damaged_safetensors, "load"),
    ],
    "gguf": [
        Original("plain", "plain.gguf", weights.damaged_gguf, "gguf"),
        Original("pieces", "pieces.gguf", weights.damaged_gguf, "gguf"),
        Original("scaled", "scaled.gguf", weights.damaged_gguf, "gguf"),
        Original("yarn", "yarn.gguf", weights.damaged_gguf, "gguf"),
        Original("formats", "peer.gguf", weights.damaged_gguf, "container"),
    ],
    "pth": [Original("meta", "consolidated.00.pth", damaged_bytes, "meta")],
    "config": [
        *(Original(name, "config.json", damaged_json, "model") for name in ("plain", "scaled", "linear", "yarn", "old")),
        *(Original(name, "config.json", damaged_json, "load") for name in ("gpt2", "bert", "roberta", "seq2seq", "variant")),
        *(Original("lora", name, damaged_json, "load") for name in ("adapter_config.json", "lamoid_adapter.json")),
        Original("plain", "generation_config.json", damaged_json, "model"),
        *(Original("meta", name, damaged_json, "meta") for name in ("params.json", "params.json", "lamoid.json")),
    ],
    "tokenizer": [
        *(
            Original(name, "tokenizer.json", texts.damaged_tokenizer_json, "tokenizer")
            for name in ("bpe", "bpe", "char", "pieces-json", "unigram", "wordpiece", "wordlevel")
        ),
        *(Original(f"pieces{i}", "tokenizer.model", texts.damaged_sentencepiece, "tokenizer") for i in (0, 0, 1)),
        *[Original("tiktoken", "tokenizer.model", texts.damaged_tiktoken, "tokenizer")] * 3,
        Original("bert", "vocab.txt", texts.damaged_lines, "tokenizer"),
        Original("gpt2", "vocab.json", damaged_json, "tokenizer"),
        Original("roberta", "merges.txt", texts.damaged_lines, "tokenizer"),
        Original("bpe", "tokenizer_config.json", texts.damaged_tokenizer_config, "tokenizer"),
        Original("tiktoken", "tokenizer_config.json", texts.damaged_tokenizer_config, "tokenizer"),
        *(Original(f"chat-{name}", "chat_template.jinja", texts.damaged_template, "chat") for name in ("llama", "tools")),
    ],
}  # fmt: skip


def mutant(root: Path, kind: str, index: int) -> tuple[Original, bytes]:
    """The damaged file with this number, always the same: which original it is of, and its bytes."""
    originals = KINDS[kind]
    original = originals[index % len(originals)]
    content = (root / original.folder / original.file).read_bytes()
    return original, original.damage(content, random.Random(f"{kind} {index}"))


# ---- what is done with a file that is read


def use(original: Original, folder: Path) -> None:
    """Read what lies in a folder and do with it what a user would. Raises what that raises."""
    match original.use:
        case "model":
            model, _ = load(folder, dtype=torch.float32)  # as all verbs do
            _run(model)
            _run(load_source(open_model(folder), torch.float32))
            read_end_ids(folder)
        case "load":
            load(folder)
        case "meta":
            _run(load_source(open_model(folder), torch.float32))
        case "gguf":
            model, tokenizer = read_gguf_model(folder / original.file)
            _run(model)
            if tokenizer is not None:
                _use_tokenizer(tokenizer)
        case "container":
            for tensor in read_gguf(folder / original.file).tensors.values():
                assert dequantize(tensor).shape == tensor.shape
        case "tokenizer":
            _use_tokenizer(load_tokenizer(folder))
        case "chat":
            _chat(load_tokenizer(folder))


def _run(model: Llama) -> None:
    with torch.inference_mode():
        assert model(torch.tensor([[0, 1, 2]])).shape == (1, 3, model.config.vocab_size)


def _use_tokenizer(tokenizer: Tokenizer) -> None:
    for text in TEXTS:
        ids = tokenizer.encode(text)
        tokenizer.decode(ids)
        step = tokenizer.decode_stream(ids[:2])
        for index in ids[2:9]:
            step(index)
    tokenizer.encode(TEXTS[0], pair=TEXTS[1])
    tokenizer.encode_batch(TEXTS[:3])
    tokenizer.encode_many(TEXTS[:3])
    tokenizer.decode([0, tokenizer.vocab_size - 1], skip_special_tokens=False)
    tokenizer.files()
    tokenizer.fingerprint()


_RENDERER: list[TemplateRenderer] = []


def _chat(tokenizer: Tokenizer) -> None:
    """Render with a process that stays, as a chat's does; a new one takes a tenth of a second."""
    if tokenizer.chat_template is None:
        return
    if not _RENDERER:
        _RENDERER.append(TemplateRenderer(""))
    _RENDERER[0].template = tokenizer.chat_template
    form = TemplateFormat(_RENDERER[0], tokenizer)
    if len(form(MESSAGES, True)) < LONGEST_ENCODED:
        encoder = ChatEncoder(form, tokenizer)
        tokenizer.decode(encoder.encode(MESSAGES))
        encoder.end_of_answer()


# ---- for the process that is watched


def prepare(root: Path, kind: str, scratch: Path) -> Make:
    """Use every original once, as it is; after that the mutants of a kind are at hand by their numbers."""
    shutil.copytree(root, scratch, dirs_exist_ok=True)
    os.mkfifo(scratch / "sharded" / "pipe")  # what an index may name, and nobody should wait for
    for original in KINDS[kind]:
        for _ in range(2):
            use(original, scratch / original.folder)

    def make(index: int) -> tuple[int, Callable[[], object]]:
        original, content = mutant(root, kind, index)
        file = scratch / original.folder / original.file

        def damage_and_use() -> None:
            file.write_bytes(content)
            try:
                use(original, file.parent)
            finally:
                shutil.copy(root / original.folder / original.file, file)

        return len(content), damage_and_use

    return make
