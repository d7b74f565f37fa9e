"""The decoder-only models: what next-token training, scoring and generation take.

Each has `config.max_seq_len`, `embedding`, `lm_head`, and `forward` and `hidden_states` with the arguments of Llama's.
"""

from lamoid.models.gpt2 import GPT2
from lamoid.models.llama import Llama
from lamoid.models.variant import Variant

DecoderModel = Llama | GPT2 | Variant
