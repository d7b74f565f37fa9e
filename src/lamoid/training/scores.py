"""How good answers are: accuracy and macro F1 of classes, exact match and F1 of answers in words, chrF of translations."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from lamoid.errors import MissingExtra

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_CJK = "\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # kana, Chinese characters
_WORDS = re.compile(rf"[{_CJK}]|[^\s{_CJK}]+")


def accuracy(predicted: np.ndarray, true: np.ndarray) -> float:
    """The share of equal entries."""
    return float(np.mean(predicted == true))


def macro_f1(predicted: np.ndarray, true: np.ndarray) -> float:
    """The mean over the classes that occur in either of F1 = 2 · both / (predicted + true); rare classes count as much."""
    scores = []
    for label in np.union1d(predicted, true):
        both = np.sum((predicted == label) & (true == label))
        scores.append(2 * both / (np.sum(predicted == label) + np.sum(true == label)))
    return float(np.mean(scores))


def exact_match(predicted: str, answers: Sequence[str]) -> float:
    """1 where the prediction is one of the answers, but for case, punctuation of ASCII, English articles and white space.

    So SQuAD's official script has it (Rajpurkar et al. 2016 and 2018); no answers, or only empty ones, mean "".
    """
    return _best(lambda answer: float(_normalise(answer) == _normalise(predicted)), answers)


def answer_f1(predicted: str, answers: Sequence[str]) -> float:
    """The best F1 between the prediction's words and an answer's, each as often as it occurs, normalised as above.

    SQuAD's official script again, with one addition: it knows words between spaces alone, so a Chinese answer would be
    right or wrong as a whole. Here every Chinese character and Japanese kana is a word, and a sign of their
    punctuation is none. Korean and Vietnamese have spaces and need nothing.
    """
    words = _words(predicted)
    return _best(lambda answer: _overlap(words, _words(answer)), answers)


def _best(score: Callable[[str], float], answers: Sequence[str]) -> float:
    return max(score(answer) for answer in [a for a in answers if _normalise(a)] or [""])


def _normalise(text: str) -> str:
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def _words(text: str) -> list[str]:
    return _WORDS.findall("".join(" " if _is_cjk_punctuation(c) else c for c in _normalise(text)))


def _is_cjk_punctuation(character: str) -> bool:
    is_wide = "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef"
    return is_wide and unicodedata.category(character)[0] == "P"


def _overlap(predicted: list[str], true: list[str]) -> float:
    if not predicted or not true:
        return float(predicted == true)
    both = sum((Counter(predicted) & Counter(true)).values())
    return 2 * both / (len(predicted) + len(true))


def chrf(translations: Sequence[str], references: Sequence[str]) -> float:
    """chrF of a corpus, 0 to 100, as sacrebleu computes it: F2 over the n-grams of 1 to 6 characters, white space left out.

    Source: Popović 2015. Raises MissingExtra where sacrebleu is not installed.
    """
    try:
        from sacrebleu.metrics.chrf import CHRF
    except ImportError:
        raise MissingExtra("sacrebleu", "translation") from None
    return float(CHRF().corpus_score(list(translations), [list(references)]).score)
