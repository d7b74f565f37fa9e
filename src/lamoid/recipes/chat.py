"""`lamoid chat`: talk with a model."""

import io
import sys
from dataclasses import dataclass

from lamoid.errors import LamoidError, UsageError
from lamoid.recipes.recipe import say
from lamoid.recipes.settings import ChatSettings


@dataclass(frozen=True)
class Recipe(ChatSettings):
    """Talk with a model in the terminal, or message by message on standard input. /help lists the commands."""


def run(recipe: Recipe) -> int:
    """Read a line, print the answer, until the input ends. Returns the last error's exit code where no one watches."""
    from lamoid.recipes.commands import take
    from lamoid.recipes.conversation import open_conversation

    if not recipe.model:
        raise UsageError("a model is needed, such as: lamoid chat smollm2")
    conversation, is_watched, code = open_conversation(recipe, say), sys.stdin.isatty(), 0
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    if is_watched:
        say("/help lists the commands, Ctrl-C stops an answer, Ctrl-D leaves")
    was_interrupted = False
    while True:
        try:
            line = input("> " if is_watched else "")
            was_interrupted = False
            if line.strip() == "/quit":
                break
            take(line, conversation)
        except EOFError:
            break
        except LamoidError as error:
            say(f"lamoid: {' '.join(str(error).split())}")
            code = error.exit_code
        except KeyboardInterrupt:
            if was_interrupted or not is_watched:
                raise
            was_interrupted = True
            say("\nCtrl-C again or Ctrl-D leaves")
    return 0 if is_watched else code
