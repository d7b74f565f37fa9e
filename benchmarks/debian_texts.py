"""Text in Vietnamese, Chinese and Korean out of Debian's packages: fetched, unpacked and stripped of its markup.

Nothing of it is kept in the repository. What Debian leaves untranslated is left out: of the handbook and of LibreOffice's
help only lines that have a letter of the language.
"""

import re
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

PACKAGES = {
    "Vietnamese": ["debian-handbook", "libreoffice-help-vi"],
    "Chinese": ["debian-handbook", "debian-reference-zh-cn", "fortunes-zh"],
    "Korean": ["debian-handbook", "debian-faq-ko", "libreoffice-help-ko"],
}
_FOLDERS = {"Vietnamese": ("vi", "vi-VN"), "Chinese": ("zh-cn", "zh-CN"), "Korean": ("ko", "ko-KR")}
_LETTERS = {
    "Vietnamese": re.compile(r"[ăđơưĂĐƠƯ\u1ea0-\u1ef9]"),
    "Chinese": re.compile(r"[\u4e00-\u9fff]"),
    "Korean": re.compile(r"[\uac00-\ud7af]"),
}
_TERMINAL = re.compile(r"\x1b\[[\d;]*m")
_NO_TEXT = ("script", "style", "head")
_BLOCKS = ("p", "li", "div", "h1", "h2", "h3", "h4", "pre", "tr", "td", "dt", "dd", "br")


def texts(language: str, folder: Path) -> str:
    """All different lines of a language's packages, in the order of their files. Fetches what is not in the folder yet."""
    lines: dict[str, None] = {}
    for package in PACKAGES[language]:
        for line in _lines(language, _unpacked(package, folder)):
            if _LETTERS[language].search(line):
                lines.setdefault(line)
    return "\n".join(lines) + "\n"


def _unpacked(package: str, folder: Path) -> Path:
    target = folder / package
    if not target.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True)
        archive = next(folder.glob(f"{package}_*.deb"))
        subprocess.run(["dpkg-deb", "-x", str(archive), str(target)], check=True)
    return target


def _lines(language: str, package: Path) -> Iterator[str]:
    short, long = _FOLDERS[language]
    for file in sorted(p for p in package.rglob("*") if p.is_file() and not p.is_symlink()):
        if file.suffix == ".html" and ({short, long} & set(file.parts) or f".{short}." in file.name):
            parser = _Text()
            parser.feed(file.read_text(encoding="utf-8", errors="replace"))
            content = "".join(parser.parts)
        elif file.parent.name == "fortunes" and not file.suffix:
            content = _TERMINAL.sub("", file.read_text(encoding="utf-8", errors="replace"))
        else:
            continue
        yield from (" ".join(line.split()) for line in content.split("\n"))


class _Text(HTMLParser):
    """The text of a page, a line for each block."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[str] = []
        self._depth = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._depth += tag in _NO_TEXT
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_endtag(self, tag: str) -> None:
        self._depth -= tag in _NO_TEXT
        if tag in _BLOCKS:
            self.parts.append("\n")

    def handle_data(self, data: str) -> None:
        if not self._depth:
            self.parts.append(data.replace("\n", " "))
