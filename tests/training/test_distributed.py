"""What several processes share, without starting any: rows of a batch, gradients of nothing, shards read back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lamoid.checkpoints.shards import read_shards
from lamoid.data.packed import Batch
from lamoid.data.padded import EncoderBatch
from lamoid.errors import CheckpointError, UsageError
from lamoid.models.llama import PRESETS, Llama, LlamaConfig
from lamoid.nn.losses import IGNORED
from lamoid.training.distributed import World, own_rows, processes
from lamoid.training.objectives import next_token


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_every_row_goes_to_one_rank(size):
    rows = torch.arange(7)[:, None].expand(7, 3)
    batches = (Batch(rows, rows), EncoderBatch(rows, rows, rows, rows[:, :1], torch.arange(7)))
    for batch in batches:
        parts = [own_rows(batch, rank, size) for rank in range(size)]
        assert torch.equal(torch.cat([part.input_ids for part in parts]), rows)
        assert max(len(p.labels) for p in parts) - min(len(p.labels) for p in parts) <= 1
    assert parts[0].next_sentence.tolist() == list(range(len(parts[0].labels)))
    assert own_rows(batches[0], 0, size).segment_ids is None


def test_fewer_rows_than_ranks_are_refused():
    rows = torch.zeros(2, 3)
    with pytest.raises(UsageError, match="2 rows for 3 processes; raise --batch-rows"):
        own_rows(Batch(rows, rows), 0, 3)


def test_dropout_differs_between_ranks_and_is_drawn_again_on_resume():
    rows = torch.zeros(4, 3)

    def drawn(rank: int, position: tuple[int, int]) -> float:
        World(rank, 2).share(lambda position: (Batch(rows, rows), position))(position)
        return float(torch.rand(()))

    assert drawn(0, (0, 4)) == drawn(0, (0, 4))
    assert len({drawn(rank, position) for rank in (0, 1) for position in ((0, 4), (0, 8), (1, 4))}) == 6


def test_a_rank_without_trained_tokens_gives_zeros():
    """The others wait for its gradients, which must be there."""
    model = Llama(LlamaConfig(11, 8, 1, 2, 1, 4, 12, 16, tied_embeddings=True)).initialise(0)
    ids = torch.randint(0, 11, (2, 5))
    loss, count = World(1, 2).join(next_token)(model, Batch(ids, torch.full_like(ids, IGNORED)))
    assert (float(loss.detach()), count) == (0.0, 0)
    assert all(p.grad is not None and not p.grad.any() for p in model.parameters())


def test_a_whole_file_is_read_as_shards_are(tmp_path):
    weight = torch.randn(3, 5)
    save_file(
        {"exp_avg/w": weight, "step/w": torch.tensor(7.0), "random_state": torch.get_rng_state()},
        tmp_path / "a.safetensors",
    )
    found = read_shards(tmp_path, {"w": torch.zeros(3, 5, requires_grad=True)})
    assert torch.equal(found["exp_avg/w"], weight) and float(found["step/w"]) == 7
    assert torch.equal(found["random_state"], torch.get_rng_state())
    with pytest.raises(CheckpointError, match=r"exp_avg/w is \(3, 5\), which fits no parameter"):
        read_shards(tmp_path, {"w": torch.zeros(5, 3)})


def bytes_per_rank(config: LlamaConfig, ranks: int, tokens: int) -> tuple[float, float, float]:
    """What docs/scale.md says a rank of a sharded run holds, in fp32: its shards; units brought together; activations."""
    with torch.device("meta"):
        model = Llama(config)
    n_all, n_block = (sum(p.numel() for p in module.parameters()) for module in (model, model.layers[0]))
    n_outer = n_all - config.n_layers * n_block
    shards = (4 + 4 + 8) * n_all / ranks
    whole = 4 * (2 * n_outer + 3 * n_block)
    activations = 4 * tokens * (config.n_layers * config.d_model + 8 * config.d_model + 4 * config.d_ff)
    return shards, whole, activations


@pytest.mark.parametrize(("size", "ranks"), [("8b", 8), ("8b", 64), ("70b", 64), ("70b", 512)])
def test_documented_memory_is_the_formula(size, ranks):
    gb = [n / 1e9 for n in bytes_per_rank(PRESETS[f"llama-3-{size}"], ranks, 8192)]
    row = f"| {size.upper()} | {ranks} | " + " | ".join(f"{n:.1f}" for n in (*gb, sum(gb))) + " |"
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text(encoding="utf-8")
    assert row in page, row


def test_a_world_without_torchrun_is_refused(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="RANK, LOCAL_RANK, MASTER_ADDR, MASTER_PORT not set"), processes(5):
        pass
