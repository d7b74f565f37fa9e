"""Without positions "the dog chases the pig ." and "the pig chases the dog ." are one bag of words.

Claim: Vaswani et al. 2017, section 3.5: without recurrence and convolution, positions are what lets a model "make use of the
order of the sequence". True of attention in both directions, whose outputs follow any permutation of their inputs. A causal
mask is itself a hint of the order: one causal layer without positions sees a bag at its last token, but from the second layer
on tokens carry which others they saw (Haviv et al. 2022; Kazemnejad et al. 2023).

Both sentences go through decoders with random weights, with the causal mask and with a mask that hides nothing. Compared are,
without a mask, the mean over the tokens, and with it the last token's state, in shares of their length.
"""

import torch
from torch import Tensor

from lamoid.inspect.charts import bar_chart
from lamoid.models.variant import Variant, VariantConfig
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide_exactly

WORDS = {"the": 0, "dog": 1, "chases": 2, "pig": 3, ".": 4}
SENTENCES = "the dog chases the pig .", "the pig chases the dog ."
SAME, APART = 1e-5, 1e-3
BAG, ONE_CAUSAL, TWO_CAUSAL = "both directions", "causal, 1 layer", "causal, 2 layers"


def measure(s: Settings, keep: Keep) -> Facts:
    """|h₁ − h₂| / |h₁| for each kind of positions and each model, over the seeds."""
    return {
        kind: {
            case: [_difference(kind, case, seed, s["width"]) for seed in range(s["seeds"])]
            for case in (BAG, ONE_CAUSAL, TWO_CAUSAL)
        }
        for kind in s["positions"]
    }


@torch.inference_mode()
def _difference(kind: str, case: str, seed: int, width: int) -> float:
    layers, heads = 1 if case == ONE_CAUSAL else 2, 4
    config = VariantConfig(
        len(WORDS), width, layers, heads, heads, width // heads, 2 * width, 16, positions=kind, init_std=0.1
    )
    model = Variant(config, attention_path="explicit").initialise(seed)
    one, other = (_state(model, torch.tensor([[WORDS[w] for w in text.split()]]), case) for text in SENTENCES)
    return float((one - other).norm() / one.norm())


def _state(model: Variant, ids: Tensor, case: str) -> Tensor:
    if case != BAG:
        return model.hidden_states(ids)[0, -1]
    positions = torch.arange(ids.shape[1])[None]
    x = model.embedding(ids)
    if model.position_embedding is not None:
        x = x + model.position_embedding(positions)
    rope = None if model.rope is None else model.rope(positions)
    sees_all = torch.ones(1, 1, ids.shape[1], ids.shape[1], dtype=torch.bool)
    for layer, block in enumerate(model.layers):
        x = block(x, rope, model.score_bias, sees_all, None, layer)
    return model.norm(x)[0].mean(0)


def judge(facts: Facts) -> list[Check]:
    """Largest difference where the sentences should be one, smallest where they should be two."""
    none, others = facts["none"], {kind: cases for kind, cases in facts.items() if kind != "none"}
    checks = []
    for case in (BAG, ONE_CAUSAL):
        most = max(none[case])
        part = f"without positions one bag, {case}"
        checks.append(Check(part, decide_exactly(most <= SAME), f"apart by {most:.1e} at most"))
    least = min(none[TWO_CAUSAL])
    part = f"without positions told apart, {TWO_CAUSAL}"
    checks.append(Check(part, decide_exactly(least >= APART), f"apart by {least:.4f} at least"))
    kind, least = min(((k, min(map(min, cases.values()))) for k, cases in others.items()), key=lambda pair: pair[1])
    numbers = f"apart by {least:.4f} at least ({kind})"
    return [*checks, Check("with positions of any kind told apart", decide_exactly(least >= APART), numbers)]


def tabulate(facts: Facts) -> Table:
    """Means over the seeds."""
    rows = [[kind, *(f"{sum(v) / len(v):.1e}" for v in cases.values())] for kind, cases in facts.items()]
    return Table(["positions", *(f"{case}, |h₁ − h₂| / |h₁|" for case in facts["none"])], rows)


def draw(facts: Facts) -> list[str]:
    """The same with their extremes."""
    groups = {
        kind: {case: (sum(v) / len(v), min(v), max(v)) for case, v in cases.items()} for kind, cases in facts.items()
    }
    return [bar_chart("The dog and the pig, exchanged", "|h₁ − h₂| / |h₁|, mean, least and most of the seeds", groups)]


EXPERIMENT = Experiment(
    name="order-matters",
    claim="Without positions, a sentence is a bag of words; a causal mask alone already tells more.",
    question="Can a model tell “the dog chases the pig” from “the pig chases the dog”, with and without positions?",
    budget="seconds",
    rule=f"One bag: states differ by at most {SAME:g} of their length for every seed. Told apart: by at least {APART:g} for "
    "every seed. Expected to be one bag: no positions, in both directions and with one causal layer; all else told apart.",
    settings={"positions": ("none", "learned", "sinusoidal", "shaw", "t5", "alibi", "rope"), "seeds": 20, "width": 64},
    trial={"seeds": 2, "width": 16},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
