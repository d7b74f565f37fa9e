"""What the tokenizer tests share: texts that broke other tokenizers, a training text, and tokenizers trained on it."""

import resource
from collections.abc import Callable
from pydoc_data import topics

import pytest

from lamoid.tokenizers.bpe import train_bpe
from lamoid.tokenizers.char import train_char

STRESS = {
    "one letter": "a",
    "digits": "0 12 123 1234 12345678901234567890 3.14159 1,000,000 ٣٤٥٦ ४५६७ Ⅷ ½ ²",
    "spaces": "  two   three    four \t tab\t\t  end   ",
    "other spaces": "no\u00a0break\u3000wide\u2028line\u2029paragraph\u0085next\u200bzero\u202fnarrow",
    "newlines": "one\ntwo\r\nthree\rfour\n\n\n  five \n \n",
    "only newlines": "\n\n\r\n\n",
    "code": "def f(x: int) -> str:\n    return f'{x!r:>10}' if x != 0 else \"\"  # note\n\n\nclass A(B): ...\n",
    "contractions": "I'LL don't WE'VE he'd 'S 's ''t I'm they're 'ſ O'Neill",
    "punctuation": "¡Hola!! ... --- ??? (a)[b]{c} <x/> «y» “z” $5 €6 50%~^`|\\",
    "emoji": "😀👍🏽👨‍👩‍👧‍👦🏳️‍🌈🇻🇳❤️‍🔥 1️⃣",
    "combining": "e\u0301 o\u0302\u0323 Z\u0351\u036b\u0343\u036a\u0302\u036b\u033d a\u0308\u0308\u0308",
    "Vietnamese NFC": "Tiếng Việt được viết bằng chữ Quốc ngữ, với nhiều dấu thanh.",
    "Vietnamese NFD": "Tie\u0302\u0301ng Vie\u0323\u0302t "
    "d\u0111u\u031bo\u031b\u0323c vie\u0302\u0301t ba\u0306\u0300ng chu\u031b\u0303",
    "Chinese": "大型语言模型可以理解和生成文本。它们由许多层组成，每一层都有注意力机制！",
    "rare Chinese": "𠮷野家で𩸽を食べる㐀㐁",
    "Japanese": "ラマは大きな動物です。ﾊﾝｶｸもあります。",
    "Korean": "한국어 형태소 분석은 어렵습니다. ㅋㅋㅋ \u1112\u1161\u11ab\u1100\u116e\u11a8",
    "Arabic": "اللُّغَةُ العَرَبِيَّةُ تُكتَبُ من اليمين إلى اليسار، ١٢٣.",
    "Hebrew": "\u202bשָׁלוֹם עוֹלָם\u202c (hello)",
    "Thai": "ภาษาไทยไม่มีการเว้นวรรคระหว่างคำ",
    "Hindi": "हिन्दी में संयुक्ताक्षर क्षत्रिय ज्ञान",
    "control": "a\0b\x01\x1b[31mred\x7f\x80\x9f",
    "last code point": "x\U0010ffff\U0010fffey\uffff\ufffe",
    "byte order mark": "\ufeffbegin \ufeff middle",
    "replacement character": "\ufffd\ufffd a\ufffd",
    "special tokens": "<|begin_of_text|>user<|eot_id|><|end_of_text|> <|pad|> <s></s>",
    "byte tokens": "<0x41><0x0A>\n<0xFF>",
    "stand-ins for bytes": "ĠhelloĊ ĀāŁ",
}
TRAINING = [text for text in topics.topics.values() if len(text) > 2000][:40] + 20 * [
    text for name, text in STRESS.items() if name not in ("rare Chinese", "last code point", "Thai", "special tokens")
]


@pytest.fixture(params=STRESS.values(), ids=STRESS.keys())
def stress(request):
    return request.param


@pytest.fixture(scope="session")
def training():
    return TRAINING


@pytest.fixture(scope="session")
def bpe():
    return train_bpe(TRAINING, 1500)


@pytest.fixture(scope="session")
def digits_alone():
    return train_bpe(TRAINING, 1000, split_digits=True)


@pytest.fixture(scope="session")
def char():
    return train_char(TRAINING, 500)


@pytest.fixture
def write_files(tmp_path):
    """Write a tokenizer's files into a new directory, as whoever makes a model directory does."""

    def write(tokenizer, name="tokenizer"):
        directory = tmp_path / name
        directory.mkdir()
        for file, content in tokenizer.files().items():
            (directory / file).write_bytes(content)
        return directory

    return write


@pytest.fixture
def children_cpu_s() -> Callable[[], float]:
    """How many seconds the child processes that have ended computed."""

    def used_s() -> float:
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return used.ru_utime + used.ru_stime

    return used_s
