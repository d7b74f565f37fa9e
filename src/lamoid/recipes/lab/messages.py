"""The same text in four languages without a network: what the programs of this machine say, as their translators wrote it.

Distributions install the programs' catalogues of messages (gettext's .mo files) beside them. A message counts where it is
translated into all of the languages.
"""

import struct
import sys
from pathlib import Path

FOLDERS = {"Vietnamese": "vi", "Chinese": "zh_CN", "Korean": "ko"}
LOCALES = (Path("/usr/share/locale"), Path(sys.base_prefix) / "share" / "locale")
FEWEST_SPACES = 3
"""Shorter messages are names and labels."""


def messages(locales: tuple[Path, ...] = LOCALES) -> dict[str, list[str]]:
    """Language -> its messages, English among them, in one order for all; empty lists where there are none."""
    found: dict[str, tuple[str, ...]] = {}
    for locale in locales:
        folders = {name: locale / folder / "LC_MESSAGES" for name, folder in FOLDERS.items()}
        names = [{file.name for file in folder.glob("*.mo")} for folder in folders.values()]
        for name in sorted(set.intersection(*names)):
            catalogues = [read_catalogue((folder / name).read_bytes()) for folder in folders.values()]
            for english in set.intersection(*(set(catalogue) for catalogue in catalogues)):
                translated = [catalogue[english] for catalogue in catalogues]
                if english.count(" ") >= FEWEST_SPACES and english not in translated:
                    found[english] = (english, *translated)
    columns = list(zip(*(found[english] for english in sorted(found)), strict=True)) or [()] * (len(FOLDERS) + 1)
    return dict(zip(("English", *FOLDERS), map(list, columns), strict=True))


def read_catalogue(raw: bytes) -> dict[str, str]:
    """Message -> translation of a .mo file, without plurals and contexts; nothing where it is damaged or not UTF-8.

    Source: the GNU gettext manual, "The Format of GNU MO Files".
    """
    try:
        order = {0x950412DE: "<", 0xDE120495: ">"}[int.from_bytes(raw[:4], "little")]
        _, n_messages, originals, translations = struct.unpack_from(f"{order}4I", raw, 4)
        pairs = {}
        for i in range(min(n_messages, len(raw) // 16)):
            texts = []
            for table in (originals, translations):
                n_bytes, start = struct.unpack_from(f"{order}2I", raw, table + 8 * i)
                texts.append(raw[start : start + n_bytes].decode())
            if texts[0] and texts[1] and not set("\0\x04") & set(texts[0] + texts[1]):
                pairs[texts[0]] = texts[1]
    except (KeyError, struct.error, UnicodeDecodeError):
        return {}
    return pairs
