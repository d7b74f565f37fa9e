"""Pre-LN and Post-LN before the first step: the gradient of each layer.

Claim: Xiong et al. 2020, "On Layer Normalization in the Transformer Architecture", section 3.3 and figure 3: at initialisation
the gradients of Post-LN's last layers are large, O(d √(ln d)) whatever the depth L, and grow from the first layer to the last;
those of Pre-LN's are smaller with depth, O(d √(ln d / L)), and even across layers. Hence Post-LN's need of a warm-up.

As in the paper: LayerNorm, ReLU, matrices drawn as Xavier's, and the norm of the gradient of W₂ of each feed-forward network;
the model is a decoder and its text is random, as at the start no text is known to it.
"""

import math
import statistics

import torch

from lamoid.data.packed import Batch
from lamoid.inspect.charts import Point, line_chart
from lamoid.models.initialise import draw as draw_weights
from lamoid.models.variant import Variant, VariantConfig
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide, in_units
from lamoid.recipes.lab.paired import Effect, differences, effect, slope
from lamoid.training.objectives import next_token

PLACES = {"pre": "Pre-LN", "post": "Post-LN"}
FALLS, GROWS = 0.25, math.log(1.5)


def measure(s: Settings, keep: Keep) -> Facts:
    """For each place and depth: the norms of the gradients, layer by layer, one list a seed."""
    norms = {
        place: [[_norms(place, depth, seed, s) for seed in range(s["seeds"])] for depth in s["depths"]]
        for place in PLACES
    }
    return {"depths": list(s["depths"]), "norms": norms}


def _norms(place: str, depth: int, seed: int, s: Settings) -> list[float]:
    width, length = s["width"], s["tokens"]
    shape = (s["vocabulary"], width, depth, 4, 4, width // 4, 4 * width, length, "layernorm", place, "sinusoidal")
    model = Variant(VariantConfig(*shape, feed_forward="relu"))
    draw_weights(model, lambda _, matrix: math.sqrt(2 / sum(matrix.shape)), seed)
    ids = torch.randint(s["vocabulary"], (4, length + 1), generator=torch.Generator().manual_seed(seed))
    loss, n_tokens = next_token(model, Batch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous()))
    (loss / n_tokens).backward()
    named = dict(model.named_parameters())
    gradients = (named[f"layers.{i}.feed_forward.down_proj.weight"].grad for i in range(depth))
    return [float(gradient.norm()) for gradient in gradients if gradient is not None]


def _rise(facts: Facts, place: str) -> list[float]:
    """ln(last layer / first layer) of the deepest models, one value a seed."""
    return [math.log(norms[-1] / norms[0]) for norms in facts["norms"][place][-1]]


def _power(facts: Facts, place: str) -> Effect:
    """The exponent of the last layer's norm over the depth."""
    by_seed = zip(*([norms[-1] for norms in of_depth] for of_depth in facts["norms"][place]), strict=True)
    return effect([slope(facts["depths"], norms) for norms in by_seed])


def judge(facts: Facts) -> list[Check]:
    """Intervals over the seeds."""
    post, pre = _rise(facts, "post"), _rise(facts, "pre")
    rises, more = effect(post), differences(post, pre)
    powers = {place: _power(facts, place) for place in PLACES}
    falls = Effect(-powers["pre"].mean, -powers["pre"].high, -powers["pre"].low, powers["pre"].smallest, len(pre))
    unit, exponent = "in ln(last / first)", "as exponent of the depth"
    return [
        Check("Post-LN's gradients grow from the first layer to the last", decide(rises, GROWS), in_units(rises, unit)),
        Check("more than Pre-LN's", decide(more, 0.0), in_units(more, unit)),
        Check("Pre-LN's last layer has less with depth", decide(falls, FALLS), in_units(powers["pre"], exponent)),
        Check("Post-LN's has not", decide(powers["post"], -FALLS), in_units(powers["post"], exponent)),
    ]


def tabulate(facts: Facts) -> Table:
    """Medians over the seeds of the first and the last layer's norm, for each depth."""
    rows = []
    for i, depth in enumerate(facts["depths"]):
        ends = [statistics.median(n[end] for n in facts["norms"][place][i]) for place in PLACES for end in (0, -1)]
        rows.append([depth, *(f"{value:.4f}" for value in ends)])
    return Table(["layers", *(f"{name}, {end}" for name in PLACES.values() for end in ("first", "last"))], rows)


def draw(facts: Facts) -> list[str]:
    """The deepest models, layer by layer; and the last layer over the depth."""
    layers, depths = dict[str, list[Point]](), dict[str, list[Point]]()
    for place, name in PLACES.items():
        by_layer = zip(*facts["norms"][place][-1], strict=True)
        layers[name] = [(i + 1, statistics.median(v), min(v), max(v)) for i, v in enumerate(by_layer)]
        last = [[norms[-1] for norms in of_depth] for of_depth in facts["norms"][place]]
        depths[name] = [(d, statistics.median(v), min(v), max(v)) for d, v in zip(facts["depths"], last, strict=True)]
    norm, deepest = "norm of the gradient of W₂", facts["depths"][-1]
    return [
        line_chart(f"Gradients at the start, {deepest} layers", "layer", norm, layers, log_y=True),
        line_chart("The last layer's gradient", "layers of the model", norm, depths, log_x=True, log_y=True),
    ]


EXPERIMENT = Experiment(
    name="norm-gradients",
    claim="At the start Post-LN's gradients grow towards the last layer; Pre-LN's are even, and smaller with depth.",
    question="How large is each layer's gradient before the first step, with the norm before and behind the sublayer?",
    budget="half a minute",
    rule="Over seeds: ln(last / first layer) of the deepest Post-LN lies above ln 1.5, and above Pre-LN's; the last layer's norm "
    f"falls with depth by an exponent of at least {FALLS} in Pre-LN (theory: 0.5), and by less in Post-LN (theory: 0).",
    settings={"depths": (2, 4, 8, 16), "width": 128, "tokens": 64, "vocabulary": 512, "seeds": 24},
    trial={"depths": (1, 2), "width": 16, "tokens": 4, "vocabulary": 8, "seeds": 2},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
