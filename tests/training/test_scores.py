"""Accuracy and macro F1 against scikit-learn; exact match and F1 against figures of SQuAD's official script."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu import corpus_chrf
from sklearn.metrics import accuracy_score, f1_score

from lamoid.training.scores import accuracy, answer_f1, chrf, exact_match, macro_f1

# (prediction, answers, exact match, F1) as evaluate-v2.0.py of SQuAD computes them
OFFICIAL = [
    ("the Normans", ["Normans", "The normans!"], 1, 1.0),
    ("in the 10th and 11th centuries", ["10th and 11th centuries", "in the 10th and 11th centuries"], 1, 1.0),
    ("Rollo of Norway", ["Rollo"], 0, 0.5),
    ("", [], 1, 1),
    ("something", [], 0, 0),
    ("", ["...", "x"], 0, 0),
    ("", ["x"], 0, 0),
    ("the", ["a"], 1, 1),
    ("the", ["..."], 1, 1),
    ("A.B.C. corp", ["abc Corp."], 1, 1.0),
    ("don't know", ["dont know at all"], 0, 0.6666666666666666),
    ("Tiếng Việt và tiếng Anh", ["tiếng Việt"], 0, 0.5714285714285715),
    ("한국어 형태소 분석", ["형태소 분석은", "한국어 분석"], 0, 0.8),
    ("to to be", ["to be to be"], 0, 0.8571428571428571),
    ("3.14", ["314"], 1, 1.0),
    ("“quoted”", ["quoted"], 0, 0),
    ("an  apple\ta day", ["apple day"], 1, 1.0),
    ("thé vert", ["the vert"], 0, 0.6666666666666666),
    ("naïve an", ["naïve"], 1, 1.0),
    ("x-ray", ["x ray"], 0, 0),
    ("Überall", ["überall"], 1, 1.0),
    ("ǅ", ["ǆ"], 1, 1.0),
    ("a", ["an apple"], 0, 0),
    ("b c d e", ["e d c b a"], 0, 1.0),
]


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=1, max_size=60))
def test_classes_are_scored_as_scikit_learn_scores_them(pairs):
    predicted, true = np.array(pairs).T
    assert accuracy(predicted, true) == pytest.approx(accuracy_score(true, predicted), abs=1e-12)
    expected = f1_score(true, predicted, average="macro", zero_division=0)
    assert macro_f1(predicted, true) == pytest.approx(expected, abs=1e-12)


def test_rare_classes_count_as_much_as_frequent_ones():
    true = np.array([0] * 99 + [1])
    predicted = np.zeros(100, dtype=int)
    assert accuracy(predicted, true) == 0.99
    assert macro_f1(predicted, true) == pytest.approx((198 / 199 + 0) / 2)


@pytest.mark.parametrize(("prediction", "answers", "exact", "f1"), OFFICIAL)
def test_answers_are_scored_as_the_official_script_scores_them(prediction, answers, exact, f1):
    assert exact_match(prediction, answers) == exact
    assert answer_f1(prediction, answers) == pytest.approx(f1, abs=1e-12)


@pytest.mark.parametrize(
    ("prediction", "answer", "f1"),
    [
        ("北京市", "北京", 0.8),  # 2 characters of 3 and of 2; the official script says 0
        ("北京，中国。", "中国北京", 1.0),
        ("東京タワー", "東京", 2 * 2 / (5 + 2)),
        ("GPT模型", "GPT 模型", 1.0),
        ("𠮷野家", "吉野家", 2 / 3),
        ("上海", "北京", 0.0),
        ("한국어", "한국", 0.0),
    ],
)
def test_chinese_and_kana_are_scored_by_characters(prediction, answer, f1):
    assert answer_f1(prediction, [answer]) == pytest.approx(f1)
    assert exact_match(prediction, [answer]) == 0


def test_chrf_is_sacrebleus():
    made = ["the cat sat", "con mèo ngồi", "猫坐在垫子", ""]
    right = ["the cat sat on a mat", "con mèo đã ngồi", "猫坐在垫子上", "고양이"]
    assert chrf(made, right) == corpus_chrf(made, [right]).score
    assert chrf(right, right) == pytest.approx(100) and chrf(["ab"], ["cd"]) == 0
