"""New embeddings are the means of their pieces'; nothing else changes; transformers computes the same."""

import pytest
import torch
import transformers
from tests.checkpoints.llamas import SHAPES, random_llama

from lamoid.adapt.grow import grow_embeddings
from lamoid.checkpoints.hf import write_model
from lamoid.errors import UsageError

PIECES = [[3], [5, 9], [1, 1, 2], [399, 0, 7, 8, 250]]
IDS = torch.tensor([[0, 17, 399, 400, 3], [401, 402, 403, 5, 400]])


@pytest.fixture(params=["tied", "grouped"], ids=["tied", "untied"])
def model(request):
    return random_llama(SHAPES[request.param])


def test_new_rows_are_the_means_of_their_pieces(model):
    grown = grow_embeddings(model, PIECES, 400)
    for name in ("embedding", "lm_head"):
        old, new = getattr(model, name).weight, getattr(grown, name).weight
        assert new.shape == (404, 64) and torch.equal(new[:400], old)
        for row, ids in zip(new[400:], PIECES, strict=True):
            torch.testing.assert_close(row, sum(old[i] for i in ids) / len(ids))
    assert (grown.embedding.weight is grown.lm_head.weight) == model.config.tied_embeddings
    assert all(p.requires_grad for p in grown.parameters())


def test_a_token_of_one_piece_is_that_piece_and_old_logits_stay(model):
    """Id 400 stands for 3 alone: the same logits, also for the next token; nothing that was there before changes."""
    grown = grow_embeddings(model, PIECES, 400)
    before = {name: p.clone() for name, p in model.named_parameters()}
    with torch.inference_mode():
        old, new = model(torch.tensor([[1, 3, 9]])), grown(torch.tensor([[1, 400, 9]]))
    torch.testing.assert_close(new[..., :400], old)
    torch.testing.assert_close(new[..., 400], old[..., 3])
    with torch.no_grad():
        for parameter in grown.parameters():
            parameter.add_(1)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters()), "the copy shares nothing"


def test_transformers_resizes_to_the_same_logits(model, tmp_path):
    """Its own resize_token_embeddings with rows that are put there by hand."""
    write_model(tmp_path, model, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    theirs.resize_token_embeddings(404, mean_resizing=False)
    with torch.no_grad():
        for weight in {id(w): w for w in (theirs.get_input_embeddings().weight, theirs.lm_head.weight)}.values():
            weight[400:] = torch.stack([weight[ids].mean(dim=0) for ids in PIECES])
        expected = theirs(IDS).logits
        got = grow_embeddings(model, PIECES, 400)(IDS)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-5


def test_the_written_directory_opens_in_transformers(model, tmp_path):
    grown = grow_embeddings(model, PIECES, 400)
    write_model(tmp_path, grown, None)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert theirs.config.vocab_size == 404
    with torch.inference_mode():
        expected, got = theirs(IDS).logits, grown(IDS)
    assert float((got - expected).abs().max() / expected.abs().max()) < 1e-4


def test_padding_is_filled_first(model):
    """A tokenizer of 398 ids on 400 rows: two of four new ones take the padding's place."""
    grown = grow_embeddings(model, [[3], [5, 9], [4], [6]], 398)
    assert grown.config.vocab_size == 402 and len(grown.embedding.weight) == 402
    torch.testing.assert_close(
        grown.embedding.weight[398:402],
        model.embedding.weight[[3, 5, 4, 6]]
        + torch.stack(
            [
                torch.zeros(64),
                (model.embedding.weight[9] - model.embedding.weight[5]) / 2,
                torch.zeros(64),
                torch.zeros(64),
            ]
        ),
    )
    padded = grow_embeddings(model, [[3]], 390)
    assert padded.config.vocab_size == 400 and torch.equal(padded.embedding.weight[391:], model.embedding.weight[391:])


def test_bfloat16_means_are_taken_in_float32(model):
    half = model.to(torch.bfloat16)
    grown = grow_embeddings(half, PIECES, 400)
    assert grown.embedding.weight.dtype == torch.bfloat16
    expected = half.embedding.weight[PIECES[3]].float().mean(dim=0).to(torch.bfloat16)
    assert torch.equal(grown.embedding.weight[403], expected)


@pytest.mark.parametrize("pieces", [[[]], [[400]], [[-1]]])
def test_pieces_that_are_no_old_ids_are_refused(model, pieces):
    with pytest.raises(UsageError, match="it must be old ids, 0 to 399"):
        grow_embeddings(model, pieces, 400)


def test_a_tokenizer_larger_than_the_model_is_refused(model):
    with pytest.raises(UsageError, match="the model has 400 rows"):
        grow_embeddings(model, [[1]], 401)
