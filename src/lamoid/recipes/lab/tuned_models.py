"""A Llama tuned by several methods: what each learns and forgets, the bytes that it takes, and the time in which it decodes."""

import time
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from lamoid.adapt.lora import LoraLinear
from lamoid.checkpoints.merged import merge_layers
from lamoid.models.llama import Llama
from lamoid.nn.kv_cache import KVCache
from lamoid.recipes.lab.budget import learn, loss
from lamoid.recipes.lab.experiment import Facts, Settings
from lamoid.recipes.lab.small_models import small_llama
from lamoid.recipes.lab.timing import alternate
from lamoid.recipes.methods import adapt
from lamoid.recipes.settings import FinetuneSettings

LORA: dict[str, Any] = {"method": "lora", "rank": 2, "alpha": 4.0, "rate": 1e-2}
METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full", "rate": 2e-3},
    "Houlsby": {"method": "houlsby", "bottleneck": 8, "rate": 2e-2},
    "LoRA": LORA,
    "QLoRA": LORA | {"method": "qlora", "rate": 2e-2},
    "LoRA, rank 8": LORA | {"rank": 8, "alpha": 16.0},
}
"""About 4 % of the parameters each, but for all of them and for a larger LoRA to compare with.

The rates are those with the lowest loss on the new text: of 1, 2 and 4 · 10⁻³ for all weights; of 1, 2 and 4 · 10⁻² for Houlsby;
of 0.5, 1 and 2 · 10⁻² for LoRA; of 0.5, 1, 2 and 4 · 10⁻² for QLoRA. None is the last of its row. They were tried with seeds that
do not count: 100 and 101, and 102 for all but LoRA and QLoRA of rank 2.
"""
BYTES = ("trained", "optimizer", "frozen", "saved")
LARGER: dict[str, Any] = {"width": 512, "layers": 4, "heads": 8, "context": 128, "rank": 8, "bottleneck": 32}
LARGER |= {"rounds": 100, "least_s": 0.02}
"""The model whose decoding is timed, with about 2 % of its parameters in LoRA or adapters; and how it is timed."""
TINY = LARGER | {"width": 16, "layers": 2, "context": 16, "rank": 2, "bottleneck": 2, "rounds": 2, "least_s": 0.0}
"""The same in small, to see that it works."""


def tune(b: Settings, seed: int) -> Facts:
    """The losses on the new text and on the old one before tuning, and of each method: losses, bytes, seconds of a step.

    `trained` are the bytes of what is trained, `optimizer` those of its state, `frozen` those of all else, `saved` those of
    the safetensors file that holds what is trained.
    """
    steps = round(b["share"] * b["steps"])
    new = {**b, "data": b["task"], "spelled_as": b["data"], "steps": steps, "warmup": steps // 10, "weight_decay": 0.0}
    original = small_llama(b, seed)
    learn(original, b, seed)
    found: Facts = {"before": {"new": loss(original, new), "old": loss(original, b)}}
    for name, method in b["methods"].items():
        model = adapted(original, method, seed)
        run = learn(model, new | {"rate": method["rate"]}, seed + 1000)
        weights = {path: p.detach() for path, p in model.named_parameters() if p.requires_grad}
        trained = sum(p.nbytes for p in weights.values())
        frozen = sum(t.nbytes for t in (*model.parameters(), *model.buffers())) - trained
        sizes = {"trained": trained, "optimizer": run["state_bytes"], "frozen": frozen, "saved": len(save(weights))}
        found[name] = {"new": loss(model, new), "old": loss(model, b), "step_s": run["step_s"], **sizes}
    return found


def adapted(original: Llama, method: Settings, seed: int) -> Llama:
    """A copy that a method can train, as `lamoid finetune` makes it. `method` has settings of fine-tuning, and a rate."""
    model = deepcopy(original)
    adapt(model, FinetuneSettings(seed=seed, **{key: value for key, value in method.items() if key != "rate"}))
    return model


@torch.inference_mode()
def decode(s: Settings) -> dict[str, Any]:
    """Processor seconds of one token behind others, sides in turn; how far merging moves a logit, as a share of the largest."""
    base = small_llama(s, 0)
    houlsby = adapted(base, {"method": "houlsby", "bottleneck": s["bottleneck"]}, 0)
    lora = adapted(base, {"method": "lora", "rank": s["rank"]}, 0)
    for layer in (layer for layer in lora.modules() if isinstance(layer, LoraLinear)):
        torch.nn.init.normal_(layer.lora_B, std=0.01)  # as if it had been trained
    ids = torch.arange(s["context"])[None] % base.config.vocab_size
    models = {"base": base, "LoRA, merged": merge_layers(deepcopy(lora)), "LoRA": lora, "Houlsby": houlsby}
    logits = {name: model.eval()(ids) for name, model in models.items()}
    moved = (logits["LoRA, merged"] - logits["LoRA"]).abs().max() / logits["LoRA"].abs().max()
    steps = {name: _step(model, ids) for name, model in models.items()}
    return {"moved": float(moved), "times": alternate(steps, s["rounds"], s["least_s"], time.process_time)}


def _step(model: Llama, ids: Tensor) -> Callable[[], Tensor]:
    cache = KVCache(model.config.n_layers, capacity=ids.shape[1])
    model.hidden_states(ids[:, :-1], cache=cache)

    def step() -> Tensor:
        cache.length = ids.shape[1] - 1  # the same token again
        return model.hidden_states(ids[:, -1:], cache=cache)

    return step
