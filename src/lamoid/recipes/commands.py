"""What one can type in a chat: messages, and commands that begin with a slash."""

import contextlib

from lamoid.errors import UsageError
from lamoid.recipes.conversation import Conversation
from lamoid.recipes.recipe import say

HELP = """/system TEXT      what the model is told before all else; without a text there is none
/reset            forget what was said
/temperature X    0 takes the most likely token; higher is more varied
/save FILE        write the messages as JSON
/help             this list
/quit             leave, as Ctrl-D does; Ctrl-C stops an answer
//…               a message that begins with /"""


def take(line: str, conversation: Conversation) -> None:
    """Obey a command, or answer a message. Raises UsageError for a command that is none, and what they raise."""
    command, _, rest = line.strip().partition(" ")
    if command == "/help":
        say(HELP)
    elif command == "/system":
        conversation.system = rest.strip()
        say(f"system: {conversation.system or 'none'}")
    elif command == "/reset":
        conversation.reset()
        say("forgotten")
    elif command == "/temperature":
        conversation.set_temperature(rest.strip())
        say(f"temperature: {conversation.sampling.temperature:g}")
    elif command == "/save":
        say(f"saved: {conversation.save(rest.strip())}")
    elif command.startswith("/") and not command.startswith("//"):
        raise UsageError(f"{command} is no command; /help lists them, and // begins a message with /")
    elif line.strip():
        _answer(line.strip()[1:] if command.startswith("//") else line, conversation)


def _answer(text: str, conversation: Conversation) -> None:
    try:
        with contextlib.closing(conversation.ask(text)) as pieces:
            for piece in pieces:
                print(piece, end="", flush=True)
        print(flush=True)
        say(conversation.speed)
    except KeyboardInterrupt:
        print(flush=True)
        say("stopped")
