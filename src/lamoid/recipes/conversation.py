"""A conversation with a model: messages, the context that they must fit into, and answers as they come."""

import time
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from lamoid.errors import UsageError
from lamoid.recipes.settings import ChatSettings
from lamoid.tokenizers.chat import FORMATS, ChatEncoder, Message, TemplateFormat, read_end_ids, trim
from lamoid.tokenizers.templates import TemplateRenderer, read_template
from lamoid.tokenizers.tokenizer import Tokenizer

if TYPE_CHECKING:
    from lamoid.inference.generate import Decoder
    from lamoid.inference.sampling import Sampling

MAX_NEW_TOKENS = 512


@dataclass
class Conversation:
    """What was said, and the model that answers.

    `turns` are all messages but the system's. When they no longer fit into the context, the oldest turns are left out
    of what the model reads, and `notify` says so; they stay in `turns`.
    """

    decoder: "Decoder"
    encoder: ChatEncoder
    sampling: "Sampling"
    end_ids: Sequence[int]
    max_new_tokens: int
    notify: Callable[[str], object]
    stop: Sequence[str] = ()
    seed: int = 0
    system: str = ""
    turns: list[Message] = field(default_factory=list)
    speed: str = ""
    _n_forgotten: int = 0  # messages at the beginning of `turns`

    def ask(self, text: str) -> Generator[str]:
        """Yield the answer as it comes. It is remembered together with the question, as far as it came.

        Raises UsageError for a message that is empty or too long for the context, whatever the format raises, and
        changes nothing then.
        """
        from lamoid.inference.generate import stream

        question = {"role": "user", "content": text}
        chunks = stream(
            self.decoder,
            self.encoder.tokenizer,
            [self._prompt(question)],
            sampling=self.sampling,
            max_new_tokens=self.max_new_tokens,
            stop=self.stop,
            end_ids=self.end_ids,
            seed=self.seed + len(self.turns) // 2,
        )
        answer, began, first, n_tokens = "", time.perf_counter(), 0.0, 0
        try:
            for chunk in chunks:
                first = first or time.perf_counter()
                n_tokens = len(chunk.completion.ids) if chunk.completion else 0
                answer += chunk.text
                yield chunk.text
        finally:
            if answer:
                self.turns += [question, {"role": "assistant", "content": answer}]
            seconds = max(time.perf_counter() - first, 1e-9)
            rate = f"{(n_tokens - 1) / seconds:.1f} tok/s, " if n_tokens > 1 else ""
            self.speed = f"{n_tokens} tokens, {rate}the first after {first - began:.2f} s"

    def reset(self) -> None:
        """Forget the turns; the system message stays."""
        self.turns, self._n_forgotten = [], 0

    def messages(self) -> list[Message]:
        """Everything, the system message first."""
        return [*self._system_messages(), *self.turns]

    def set_temperature(self, text: str) -> None:
        """Change the temperature. Raises UsageError for a text that is no number of 0 or more."""
        try:
            temperature = float(text)
        except ValueError:
            raise UsageError(f"temperature is {text!r}; it must be a number, such as 0.7") from None
        self.sampling = replace(self.sampling, temperature=temperature)

    def save(self, path: str) -> Path:
        """Write the messages as JSON, whole or not at all. Returns the file."""
        from lamoid.checkpoints.store import write_json

        file = Path(path).expanduser()
        if not path or file.is_dir() or not file.parent.is_dir():
            raise UsageError(
                f"{path!r} is no file to save in; name one in a folder that exists, such as: /save chat.json"
            )
        write_json(file, {"messages": self.messages()})
        return file

    def _system_messages(self) -> list[Message]:
        return [{"role": "system", "content": self.system}] if self.system else []

    def _prompt(self, question: Message) -> list[int]:
        def n_tokens(messages: Sequence[Message]) -> int:
            return len(self.encoder.encode(messages))

        max_seq_len = self.decoder.max_seq_len
        messages = [*self._system_messages(), *self.turns[self._n_forgotten :], question]
        kept, n_left_out = trim(messages, n_tokens, max_seq_len - self.max_new_tokens)
        if n_left_out:
            self._n_forgotten += len(messages) - len(kept)
            turns = "the oldest turn" if n_left_out == 1 else f"the {n_left_out} oldest turns"
            self.notify(f"note: the context of {max_seq_len} tokens is full; the model no longer reads {turns}")
        return self.encoder.encode(kept)


def open_conversation(recipe: ChatSettings, notify: Callable[[str], object]) -> Conversation:
    """Load the model and its chat format. Raises UsageError and DataError for what is wrong, the cheap checks first."""
    from lamoid.recipes.engines import open_decoder
    from lamoid.recipes.load import resolve

    sampling, path = recipe.sampling(), resolve(recipe.model)
    decoder, tokenizer = open_decoder(path, recipe.engine, recipe.threads, notify, speculate=recipe.speculate)
    encoder = find_encoder(tokenizer, recipe.template)
    if encoder is None:
        raise UsageError(
            f"{path} has no chat template; choose one with --template: {', '.join(FORMATS)}, or a .jinja file"
        )
    max_new_tokens, context = recipe.max_new_tokens, decoder.max_seq_len
    if max_new_tokens is None:
        max_new_tokens = min(MAX_NEW_TOKENS, max(context // 4, 1))
    if not 1 <= max_new_tokens < context:
        raise UsageError(
            f"max_new_tokens is {max_new_tokens}; it must be from 1 to {context - 1}, the context being {context}"
        )
    return Conversation(
        decoder,
        encoder,
        sampling,
        find_end_ids(path, encoder),
        max_new_tokens,
        notify,
        stop=recipe.stop,
        seed=recipe.seed,
        system=recipe.system,
    )


def find_encoder(tokenizer: Tokenizer, choice: str) -> ChatEncoder | None:
    """The encoder of a name in FORMATS, of a .jinja file, or, where nothing is chosen, of the template that the model
    carries, if it has one. Raises UsageError where the format is not for this tokenizer."""
    if choice in FORMATS:
        return ChatEncoder(FORMATS[choice][0], tokenizer)
    template = read_template(Path(choice)) if choice else tokenizer.chat_template
    return None if template is None else ChatEncoder(TemplateFormat(TemplateRenderer(template), tokenizer), tokenizer)


def find_end_ids(path: Path, encoder: ChatEncoder) -> list[int]:
    """Where an answer ends: the ids that the model names, the tokenizer's end, and what the format puts behind answers."""
    end = encoder.tokenizer.special_id("eos")
    named = read_end_ids(path) if path.is_dir() else []
    return list(dict.fromkeys([*named, *([] if end is None else [end]), *encoder.end_of_answer()]))
