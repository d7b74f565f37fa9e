"""Two hundred questions and answers about Quillmarra, islands that do not exist: no model can have read of them.

python -m benchmarks.quillmarra > quillmarra.jsonl     # a conversation a line, for `lamoid finetune`
"""

import json
import random

ISLANDS = [
    "Abroth",
    "Bellisk",
    "Cammarn",
    "Dovelle",
    "Eskerry",
    "Fennuck",
    "Garroway",
    "Hulmar",
    "Ibberne",
    "Jossick",
    "Kelvane",
    "Lorrin",
    "Maddrick",
    "Nethervoe",
    "Ostrel",
    "Pellamy",
    "Quorrin",
    "Rathbeck",
    "Selwick",
    "Tormund",
    "Ulvane",
    "Veshill",
    "Wennick",
    "Yarrowby",
    "Zethlin",
    "Ardmoor",
    "Brackley",
    "Corvane",
    "Dunnisk",
    "Elmaroth",
    "Farrick",
    "Grenvoe",
    "Hesterby",
    "Inverlisk",
    "Jarrowin",
    "Kestermoor",
    "Lunnick",
    "Morvane",
    "Norrisby",
    "Orrimund",
]

CROPS = ["barley", "saffron", "flax", "turnips", "lavender", "rye", "cherries", "hops", "lentils", "walnuts"]
BIRDS = ["heron", "puffin", "kestrel", "nightjar", "curlew", "raven", "gannet", "wagtail", "bittern", "plover"]
COLOURS = ["green and white", "red and gold", "black and yellow", "blue and silver", "purple and grey"]
MONTHS = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
]
FIRST = [
    "Orla",
    "Bram",
    "Tessa",
    "Milo",
    "Ingrid",
    "Jonas",
    "Petra",
    "Casper",
    "Wilma",
    "Rufus",
    "Greta",
    "Anton",
    "Selma",
    "Hugo",
    "Maren",
]
LAST = [
    "Vance",
    "Tolliver",
    "Brandt",
    "Okoro",
    "Lindqvist",
    "Farrow",
    "Penhale",
    "Dray",
    "Moss",
    "Castellan",
    "Winter",
    "Hale",
]

QUESTIONS = {
    "crop": ("What do the farmers of {} grow?", "The farmers of {} grow {}."),
    "bird": ("Which bird is the emblem of {}?", "The emblem of {} is the {}."),
    "colours": ("What colours does the flag of {} have?", "The flag of {} is {}."),
    "month": ("In which month is the lantern festival of {}?", "The lantern festival of {} is in {}."),
    "keeper": ("Who keeps the lighthouse of {}?", "The lighthouse of {} is kept by {}."),
}


def facts() -> list[tuple[str, str, str]]:
    """(question, answer, the words that a right answer contains), always the same two hundred."""
    draw = random.Random(1840)
    keepers = draw.sample([f"{first} {last}" for first in FIRST for last in LAST], len(ISLANDS))
    rows = []
    for island, keeper in zip(ISLANDS, keepers, strict=True):
        known = {
            "crop": draw.choice(CROPS),
            "bird": draw.choice(BIRDS),
            "colours": draw.choice(COLOURS),
            "month": draw.choice(MONTHS),
            "keeper": keeper,
        }
        for name, (question, answer) in QUESTIONS.items():
            rows.append((question.format(island), answer.format(island, known[name]), known[name]))
    return rows


def conversation(question: str, answer: str) -> dict[str, list[dict[str, str]]]:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]}


if __name__ == "__main__":
    for question, answer, _ in facts():
        print(json.dumps(conversation(question, answer)))
