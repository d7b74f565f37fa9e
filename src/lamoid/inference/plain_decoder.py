"""GPT-2 and the variant, one token at a time: their own forward pass with a cache. Llama's fast path is in `decoder.py`."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from lamoid.inference.decoder import TorchDecoder
from lamoid.inference.generate import Decoder
from lamoid.models.decoders import DecoderModel
from lamoid.models.llama import Llama
from lamoid.nn.kv_cache import KVCache


def decoder_for(model: DecoderModel) -> Decoder:
    """The decoder that fits a model."""
    return TorchDecoder(model) if isinstance(model, Llama) else PlainDecoder(model)


class PlainDecoder:
    """Holds the cache of a batch of sequences. Prompts of unequal length are padded on the left and masked."""

    def __init__(self, model: DecoderModel) -> None:
        self.model = model.eval()
        self.max_seq_len = model.config.max_seq_len
        self._cache = KVCache(model.config.n_layers)
        self._mask: Tensor | None = None

    def prefill(self, prompts: Sequence[Sequence[int]]) -> Float[np.ndarray, "B V"]:
        """Read the prompts; returns the logits of the token after each."""
        longest = max(len(prompt) for prompt in prompts)
        ids = torch.tensor([[0] * (longest - len(prompt)) + list(prompt) for prompt in prompts])
        mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        self._cache = KVCache(self.model.config.n_layers, capacity=longest + 256)
        self._mask = None if bool(mask.all()) else mask.to(self.model.embedding.weight.device)
        return self._logits(ids)

    def step(self, ids: Sequence[int]) -> Float[np.ndarray, "B V"]:
        """Append one token to each sequence; returns the logits of the next."""
        if self._mask is not None:
            self._mask = F.pad(self._mask, (0, 1), value=1)
        return self._logits(torch.tensor(ids)[:, None])

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these sequences alone, in this order."""
        self._cache.keep_rows(rows)
        if self._mask is not None:
            self._mask = self._mask[rows]

    @torch.inference_mode()
    def _logits(self, ids: Tensor) -> Float[np.ndarray, "B V"]:
        ids = ids.to(self.model.embedding.weight.device)
        hidden = self.model.hidden_states(ids, self._mask, cache=self._cache)
        return self.model.lm_head(hidden[:, -1]).float().cpu().numpy()
