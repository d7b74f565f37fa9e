"""Keys and values between decoding steps."""

from jaxtyping import Float
from torch import Tensor


class KVCache:
    """The keys and values of all earlier positions, layer by layer; the caller owns it.

    Attention at step t needs kᵢ and vᵢ of every i ≤ t, and those never change: each step appends its own
    and asks with its own query. Queries are not kept: no later step needs them. The memory is
    2 · layers · B · K · capacity · E elements; capacity doubles when it is reached.

    `length` counts the positions that are complete in every layer; the model moves it on after a forward pass.
    """

    def __init__(self, n_layers: int, capacity: int = 256) -> None:
        self.length = 0
        self._capacity = capacity
        self._keys: list[Tensor | None] = [None] * n_layers
        self._values: list[Tensor | None] = [None] * n_layers

    def append(
        self, layer: int, keys: Float[Tensor, "B K T E"], values: Float[Tensor, "B K T E"]
    ) -> tuple[Float[Tensor, "B K S E"], Float[Tensor, "B K S E"]]:
        """Store this step's keys and values of one layer; return all of them so far, S = length + T."""
        end = self.length + keys.shape[2]
        while self._capacity < end:
            self._capacity *= 2
        all_keys = self._keys[layer] = self._place(self._keys[layer], keys)
        all_values = self._values[layer] = self._place(self._values[layer], values)
        return all_keys[:, :, :end], all_values[:, :, :end]

    def keep_rows(self, rows: list[int]) -> None:
        """Go on with these rows of the batch alone, in this order."""
        self._keys = [None if k is None else k[rows] for k in self._keys]
        self._values = [None if v is None else v[rows] for v in self._values]

    @property
    def n_bytes(self) -> int:
        """Memory that the cache holds, in bytes."""
        return sum(t.nbytes for t in (*self._keys, *self._values) if t is not None)

    def _place(self, store: Tensor | None, new: Tensor) -> Tensor:
        batch, heads, n_new, head_dim = new.shape
        if store is None or store.shape[2] < self._capacity:
            grown = new.new_zeros(batch, heads, self._capacity, head_dim)
            if store is not None:
                grown[:, :, : self.length] = store[:, :, : self.length]
            store = grown
        store[:, :, self.length : self.length + n_new] = new
        return store
