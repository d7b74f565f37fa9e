"""Characters, BPE, SentencePiece and WordPiece on English, Vietnamese, Chinese and Korean.

Claims: subwords put more text into a context than characters do (Sennrich et al. 2016); and a tokenizer that was trained on
English asks for a multiple of the tokens for the same content in another language (Petrov et al. 2023, "Language Model
Tokenizers Introduce Unfairness Between Languages").

The text is the same in all four: the messages of this machine's programs and their translations (`messages.py`). Of ten
messages nine train a tokenizer of each kind for each language, and each tenth is measured, in groups: these are the pairs.
BERT's WordPiece splits Chinese into single characters by design, and makes [UNK] of what it does not know.
"""

from functools import partial
from typing import Any

from lamoid.inspect.charts import bar_chart
from lamoid.recipes.lab.experiment import Check, Experiment, Facts, Keep, Settings, Table, decide, in_percent, percent
from lamoid.recipes.lab.messages import messages
from lamoid.recipes.lab.paired import ratios
from lamoid.recipes.tokenizer_kinds import train

KINDS = {"char": "characters", "bpe": "BPE", "sentencepiece": "SentencePiece", "wordpiece": "WordPiece"}
FOREIGN, CONTEXT, TWICE = "English BPE", 2048, 0.6931471805599453


def measure(s: Settings, keep: Keep) -> Facts:
    """For each language, characters and tokens of each group of held-out messages."""
    texts = messages()
    n = len(texts["English"])
    if n < s["fewest"]:
        return {"missing": f"this machine has {n} messages in all four languages, and {s['fewest']} are needed; "
                "install language packs or programs with translations"}  # fmt: skip
    key = {**s, "messages": n}
    texts = {language: found[: s["most"]] for language, found in texts.items()}
    english = [text for i, text in enumerate(texts["English"]) if i % 10]
    languages = {
        language: keep(f"tokenizers of {language}", key, partial(_measure, found, english, s))
        for language, found in texts.items()
    }
    return {"messages": len(texts["English"]), "languages": languages}


def _measure(texts: list[str], english: list[str], s: Settings) -> dict[str, Any]:
    training, heldout = [text for i, text in enumerate(texts) if i % 10], texts[::10]
    made = {kind: train(kind, iter(training), s["vocabulary"], split_digits=False, cased=True) for kind in KINDS}
    made[FOREIGN] = train("bpe", iter(english), s["vocabulary"], split_digits=False, cased=True)
    groups = ["\n".join(heldout[i :: s["groups"]]) for i in range(s["groups"])]
    counts = {
        kind: [len(tokenizer.encode(text, add_special_tokens=False)) for text in groups]
        for kind, tokenizer in made.items()
    }
    return {"characters": [len(text) for text in groups], "tokens": counts}


def judge(facts: Facts) -> list[Check]:
    """Ratios of tokens, group by group."""
    checks = []
    for language, counts in facts["languages"].items():
        tokens, subwords = counts["tokens"], [kind for kind in KINDS if kind != "char"]
        fewer = {kind: ratios(counts["characters"], tokens[kind]) for kind in subwords}
        worst = min(fewer, key=lambda kind: fewer[kind].low)
        numbers = f"{KINDS[worst]}, the least: {in_percent(fewer[worst])} characters a token beside 1"
        checks.append(Check(f"subwords fit more than characters, {language}", decide(fewer[worst], 0.0), numbers))
        if language != "English":
            more = ratios(tokens[FOREIGN], tokens["bpe"])
            part = f"a tokenizer of English needs twice the tokens, {language}"
            checks.append(Check(part, decide(more, TWICE), f"{in_percent(more)} tokens"))
    return checks


def tabulate(facts: Facts) -> Table:
    """Tokens per character, characters that fit into the context, and tokens for the same content beside English."""
    rows = []
    own = sum(facts["languages"]["English"]["tokens"]["bpe"])
    for language, counts in facts["languages"].items():
        characters = sum(counts["characters"])
        for kind, values in counts["tokens"].items():
            n = sum(values)
            name = f"{language}, {KINDS.get(kind, kind)}"
            rows.append([name, f"{n / characters:.3f}", round(CONTEXT * characters / n), f"{n / own:.2f}"])
    return Table(
        ["", "tokens per character", f"characters in {CONTEXT:,} tokens", "tokens, 1 = English with BPE"], rows
    )


def draw(facts: Facts) -> list[str]:
    """Tokens for the same messages, with intervals over the groups."""
    groups = {}
    english = facts["languages"]["English"]["tokens"]["bpe"]
    for language, counts in facts["languages"].items():
        seen = {KINDS.get(kind, kind): ratios(values, english) for kind, values in counts["tokens"].items()}
        groups[language] = {
            name: tuple(1 + value / 100 for value in percent(e.mean, e.low, e.high)) for name, e in seen.items()
        }
    title = "Tokens for the same messages"
    return [bar_chart(title, "tokens, 1 = English with its BPE, 95 % intervals", groups)]


EXPERIMENT = Experiment(
    name="tokenizers",
    claim="Subwords fit more text into a context than characters; a tokenizer of English costs other languages twice the tokens.",
    question="How many tokens does the same content take in four languages, with four kinds of tokenizers?",
    budget="two minutes",
    rule="For each language the kind that gains least has more than one character a token; and for each but English, its tokens "
    "with the BPE trained on English are at least twice those with its own (95 % intervals over groups of messages).",
    settings={"vocabulary": 4096, "most": 20_000, "fewest": 2000, "groups": 20},
    trial={"vocabulary": 1200, "most": 400, "groups": 2},
    measure=measure,
    judge=judge,
    tabulate=tabulate,
    draw=draw,
)
