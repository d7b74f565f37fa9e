"""Chat data in the formats that people have: recognised, read alike, and refused with file and line (faults F14, F15)."""

import gzip
import json
import lzma

import pytest
import zstandard

from lamoid.data.conversations import Conversation, read_conversations
from lamoid.errors import DataError

TURNS = [
    ("system", "Trả lời ngắn gọn."),
    ("user", "Thủ đô của Việt Nam?"),
    ("assistant", "Hà Nội."),
    ("user", "안녕?"),
    ("assistant", "你好 👋"),
]
MESSAGES = {"messages": [{"role": role, "content": content} for role, content in TURNS]}
SHAREGPT = {
    "id": "x",
    "conversations": [
        {"from": {"user": "human", "assistant": "gpt", "system": "system"}[role], "value": content}
        for role, content in TURNS
    ],
}
ALPACA = {"instruction": "Dịch sang tiếng Việt", "input": "hello", "output": "xin chào"}
PROMPT = {"prompt": "2 + 2 =", "completion": " 4"}
TEXT = {"text": "Một đoạn văn.\n你好"}


def write(file, *records, end="\n"):
    lines = (json.dumps(record, ensure_ascii=False) if not isinstance(record, str) else record for record in records)
    file.write_text(end.join(lines) + end, encoding="utf-8")
    return str(file)


def read(*paths, **settings):
    said = []
    found = read_conversations([str(path) for path in paths], notify=said.append, **settings)
    return found, said


def plain(conversation: Conversation):
    return [(message["role"], message["content"]) for message in conversation.messages]


# ---- formats


@pytest.mark.parametrize(
    "record, name, expected",
    [
        (MESSAGES, "messages", TURNS),
        (SHAREGPT, "ShareGPT", TURNS),
        ({"system": TURNS[0][1], "conversations": SHAREGPT["conversations"][1:]}, "ShareGPT", TURNS),
        ({"conversations": MESSAGES["messages"]}, "ShareGPT", TURNS),
        (ALPACA, "Alpaca", [("user", "Dịch sang tiếng Việt\n\nhello"), ("assistant", "xin chào")]),
        ({"instruction": "a", "output": "b"}, "Alpaca", [("user", "a"), ("assistant", "b")]),
        (
            {**ALPACA, "input": "", "system": "s"},
            "Alpaca",
            [("system", "s"), ("user", ALPACA["instruction"]), ("assistant", "xin chào")],
        ),
        (PROMPT, "prompt–completion", [("user", "2 + 2 ="), ("assistant", " 4")]),
        ({"prompt": MESSAGES["messages"][:4], "completion": MESSAGES["messages"][4:]}, "prompt–completion", TURNS),
        ({"prompt": MESSAGES["messages"][:2], "completion": "Hà Nội."}, "prompt–completion", TURNS[:3]),
    ],
)
def test_formats_are_recognised(tmp_path, record, name, expected):
    found, said = read(write(tmp_path / "a.jsonl", record))
    assert found.format == name and found.formats == {str(tmp_path / "a.jsonl"): name}
    assert [plain(c) for c in found.conversations] == [expected]
    assert said == [f"{tmp_path / 'a.jsonl'}: {name}, 1 records"]


def test_plain_text(tmp_path):
    (tmp_path / "b.txt").write_bytes("\ufeffXin chào\r\n\n你好".encode())
    found, _ = read(write(tmp_path / "a.jsonl", TEXT), tmp_path / "b.txt")
    assert [c.text for c in found.conversations] == [TEXT["text"], "Xin chào\r\n\n你好"]
    assert found.format == "text" and not any(c.messages for c in found.conversations)


def test_given_messages_are_never_answers(tmp_path):
    record = {"prompt": MESSAGES["messages"][:4], "completion": MESSAGES["messages"][4:]}
    found, _ = read(write(tmp_path / "a.jsonl", MESSAGES, end="\n\n"), write(tmp_path / "b.jsonl", record))
    assert [c.answers() for c in found.conversations] == [[2, 4], [4]]


def test_text_in_parts_and_calls_without_text(tmp_path):
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]}
    record = {"messages": [{"role": "user", "content": parts}, call], "tools": [{"name": "f"}]}
    found, said = read(write(tmp_path / "a.jsonl", record))
    assert plain(found.conversations[0]) == [("user", "ab"), ("assistant", "")]
    assert found.conversations[0].messages[1]["tool_calls"] == [{"name": "f"}]
    assert found.n_with_tools == 1 and "1 records describe tools" in said[1]


@pytest.mark.parametrize("layout", ["array", "pretty array", "one object", "lines", "BOM"])
def test_json_files(tmp_path, layout):
    file = tmp_path / "a.json"
    second = {"messages": MESSAGES["messages"][1:]}
    contents = {
        "array": json.dumps([MESSAGES, second]),
        "pretty array": "\n " + json.dumps([MESSAGES, second], ensure_ascii=False, indent=2) + "\n",
        "one object": json.dumps(MESSAGES, indent=1),
        "lines": json.dumps(MESSAGES) + "\n\n" + json.dumps(second),
        "BOM": "\ufeff" + json.dumps([MESSAGES, second]),
    }
    file.write_text(contents[layout], encoding="utf-8")
    found, _ = read(file)
    assert [plain(c) for c in found.conversations] == ([TURNS] if layout == "one object" else [TURNS, TURNS[1:]])


@pytest.mark.parametrize(
    "suffix, compress", [(".gz", gzip.compress), (".xz", lzma.compress), (".zst", zstandard.compress)]
)
@pytest.mark.parametrize("inner", [".jsonl", ".json", ".txt"])
def test_compressed_files(tmp_path, suffix, compress, inner):
    content = json.dumps([MESSAGES] if inner == ".json" else MESSAGES, ensure_ascii=False)
    file = tmp_path / f"a{inner}{suffix}"
    file.write_bytes(compress(content.encode()))
    (conversation,) = read(file)[0].conversations
    assert (conversation.text == content) if inner == ".txt" else (plain(conversation) == TURNS)


def test_folders_and_globs(tmp_path):
    """From a folder comes what is chat data or plain text; each file once, whatever names it."""
    (tmp_path / "inner").mkdir()
    write(tmp_path / "a.jsonl", MESSAGES)
    write(tmp_path / "inner" / "b.json", ALPACA)
    write(tmp_path / "c.csv", "no,chat")
    (tmp_path / "d.txt").write_text("văn bản")
    found, said = read(tmp_path, tmp_path / "*.jsonl")
    assert found.format == "messages, text, Alpaca" and len(said) == 3
    assert found.formats == {
        str(tmp_path / "a.jsonl"): "messages",
        str(tmp_path / "d.txt"): "text",
        str(tmp_path / "inner" / "b.json"): "Alpaca",
    }


def test_repeats_are_left_out(tmp_path):
    other = {"messages": [*MESSAGES["messages"][:4], {"role": "assistant", "content": "another answer"}]}
    found, said = read(write(tmp_path / "a.jsonl", MESSAGES, other, MESSAGES), write(tmp_path / "b.jsonl", SHAREGPT))
    assert len(found.conversations) == 2 and found.n_duplicates == 2
    assert "2 records left out because they stand elsewhere too" in said


def test_keys_are_of_what_is_said(tmp_path):
    found, _ = read(write(tmp_path / "a.jsonl", MESSAGES))
    again, _ = read(write(tmp_path / "b.jsonl", *[{"messages": [*MESSAGES["messages"][1:]]}, MESSAGES]))
    keys = [c.key for c in again.conversations]
    assert found.conversations[0].key == keys[1] != keys[0]
    given, _ = read(
        write(tmp_path / "c.jsonl", {"prompt": MESSAGES["messages"][:4], "completion": MESSAGES["messages"][4:]})
    )
    assert given.conversations[0].key != keys[1]


# ---- what is refused


BAD = {
    "no JSON": ('{"messages": [', "line 2 is not JSON"),
    "no object": ("[1, 2]", "line 2 is [1, 2]; expected an object with"),
    "number": ("7", "line 2 is 7"),
    "nothing known": ({"question": "a", "answer": "b"}, "line 2 has ['question', 'answer']; expected \"messages\""),
    "completion without prompt": ({"completion": "b"}, "line 2 has ['completion']"),
    "unknown role": (
        {"messages": [{"role": "bot", "content": "x"}]},
        "line 2: message 0 has the role 'bot'; known are system, user",
    ),
    "role is a list": ({"messages": [{"role": ["user"], "content": "x"}]}, "line 2: message 0 has the role ['user']"),
    "no role": ({"messages": [{"content": "x"}]}, "line 2: message 0 has the role None"),
    "no content": ({"messages": [{"role": "user"}]}, "line 2: message 0 holds None; expected a text"),
    "number as content": ({"messages": [{"role": "user", "content": 3}]}, "message 0 holds 3; expected a text"),
    "picture": (
        {"messages": [{"role": "user", "content": [{"type": "image", "url": "x"}]}]},
        "message 0 holds [{'type': 'image'",
    ),
    "message is a text": ({"messages": ["hello"]}, "message 0 is 'hello'; expected an object"),
    "messages is a text": ({"messages": "hello"}, "line 2 is 'hello'; expected a list of messages"),
    "no messages": ({"messages": []}, "line 2 has no assistant turn"),
    "no assistant": ({"messages": [{"role": "user", "content": "x"}]}, "line 2 has no assistant turn"),
    "answer only given": (
        {"prompt": MESSAGES["messages"], "completion": []},
        "line 2 is prompt–completion; the records before it are messages",
    ),
    "lone surrogate": ('{"messages": [{"role": "assistant", "content": "\\ud800"}]}', "line 2 has a lone surrogate"),
    "BOM in the middle": ("\ufeff" + json.dumps(MESSAGES), "line 2 begins with a byte-order mark"),
    "another format": (ALPACA, "line 2 is Alpaca; the records before it are messages"),
    "nested too deep": ('{"messages": ' + "[" * 100_000 + "]" * 100_000 + "}", "line 2 is not JSON"),
}


@pytest.mark.parametrize("bad, expected", BAD.values(), ids=BAD.keys())
def test_bad_lines_are_named(tmp_path, bad, expected):
    file = write(tmp_path / "a.jsonl", MESSAGES, bad, {"messages": MESSAGES["messages"][1:]})
    with pytest.raises(DataError) as caught:
        read(file)
    message = str(caught.value)
    assert message.startswith(file) and "--skip-bad" in message and "\n" not in message and len(message) < 500
    assert expected in message
    found, said = read(file, skip_bad=True)
    assert [plain(c) for c in found.conversations] == [TURNS, TURNS[1:]]
    assert found.n_bad == len(found.bad) == 1
    assert f"2 records, 1 bad lines left out, the first: {file}" in said[0]


@pytest.mark.parametrize(
    "record, expected",
    [
        ({"conversations": [{"from": "alien", "value": "x"}]}, "turn 0 is from 'alien'; known are human, gpt"),
        ({"conversations": [{"from": {}, "value": "x"}]}, "turn 0 is from {}"),
        ({"conversations": ["x"]}, "turn 0 is 'x'; expected an object"),
        ({"conversations": [{"from": "gpt"}]}, "turn 0 holds None"),
        ({"conversations": [], "system": 3}, "system holds 3"),
        ({"instruction": "a", "output": 3}, "output holds 3"),
        ({"instruction": ["a"], "output": "b"}, "instruction holds ['a']"),
        ({"prompt": 3, "completion": "b"}, "prompt is 3; expected a list of messages"),
        ({"prompt": MESSAGES["messages"], "completion": []}, "has no assistant turn"),
        ({"text": None}, "text holds None"),
        ({"text": " \n"}, "holds an empty text"),
    ],
)
def test_bad_records_of_other_formats(tmp_path, record, expected):
    with pytest.raises(DataError) as caught:
        read(write(tmp_path / "a.jsonl", record))
    assert "line 1" in str(caught.value) and expected in str(caught.value)


def test_files_that_are_no_utf_8_name_the_line(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(json.dumps(MESSAGES).encode() + b"\n" + '{"text": "é"}'.encode("latin-1"))
    with pytest.raises(DataError, match="line 2 is not UTF-8: byte 0xE9 at its offset 10"):
        read(file)
    assert read(file, skip_bad=True)[0].n_bad == 1
    file.write_bytes(json.dumps(MESSAGES).encode("utf-16"))
    with pytest.raises(DataError, match="line 1 is not UTF-8"):
        read(file)


def test_a_mark_at_the_beginning_of_a_file_is_left_out(tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(MESSAGES).encode())
    assert plain(read(file)[0].conversations[0]) == TURNS


def test_broken_arrays(tmp_path):
    file = tmp_path / "a.json"
    file.write_text("[" + json.dumps(MESSAGES) + ",\n {]", encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json is not JSON: .* line 2"):
        read(file)
    file.write_text(json.dumps([MESSAGES, 3]), encoding="utf-8")
    with pytest.raises(DataError, match=r"a\.json record 2 is 3"):
        read(file)


@pytest.mark.parametrize("name, content", [("a.jsonl", ""), ("a.jsonl", "\n \n"), ("a.json", "[]"), ("a.txt", " \n")])
def test_nothing_to_read(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="holds no conversation"):
        read(tmp_path / name)


def test_nothing_good_to_read(tmp_path):
    with pytest.raises(DataError, match=r"holds no conversation \(2 bad lines\)"):
        read(write(tmp_path / "a.jsonl", "x", "y"), skip_bad=True)


def test_files_of_another_kind(tmp_path):
    (tmp_path / "a.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"a\.csv is of no known kind; expected one of \.json"):
        read(tmp_path / "a.csv")
    with pytest.raises(DataError, match="does not exist"):
        read(tmp_path / "b.jsonl")
    with pytest.raises(DataError, match="holds no text file"):
        (tmp_path / "empty").mkdir()
        read(tmp_path / "empty")


def test_truncated_archives(tmp_path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(json.dumps(MESSAGES).encode() * 100)[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        read(file)
