"""The codebook head, compared with its formula and used in a model."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextscale.errors import ConfigError
from nextscale.storage.models import load_transformer, save_transformer
from nextscale.testing.tiny import LABEL, grid_tokenizer, transformer_for
from nextscale.transformer import ScaleTransformer
from nextscale.transformer.head import CodebookHead


@settings(deadline=None)
@given(st.integers(2, 12), st.integers(1, 5), st.integers(0, 10))
def test_it_is_a_gaussian_over_the_codes_times_a_linear_model(number: int, channels: int, seed: int) -> None:
    torch.manual_seed(seed)
    head = CodebookHead(6, 3 * torch.randn(number, channels)).double()
    states = torch.randn(2, 3, 6, dtype=torch.double)
    linear = states @ head.weight.T + head.bias
    distance = (head.point(states)[:, :, None] - head.codes).square().sum(-1)
    expected = linear - head.log_precision(states).exp() * distance / 2
    torch.testing.assert_close(head(states, None).log_softmax(-1), expected.log_softmax(-1))


def test_a_model_with_it_starts_near_uniform_and_trains_and_is_stored(tmp_path) -> None:
    tokenizer = grid_tokenizer((8, 8))
    config = transformer_for(tokenizer).config.model_copy(update={"head": "codebook"})
    space, schedule = tokenizer.token_space, tokenizer.schedule()
    torch.manual_seed(0)
    model = ScaleTransformer(config, space, tokenizer.feature_dim, schedule, [LABEL], codebook=tokenizer.codebook)
    with torch.no_grad():
        pyramid = tokenizer.encode(torch.randn(4, 2, 8, 8))
        inputs = tokenizer.teacher_forcing(pyramid)
    labels = {"label": torch.arange(4) % 3}

    def loss() -> torch.Tensor:
        return space.loss(model(inputs, model.conditioner(labels, 4)), pyramid.tokens).mean()

    first = loss()
    assert first.item() == pytest.approx(torch.tensor(float(space.vocabulary)).log().item(), abs=0.2)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(30):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert all(parameter.grad is not None for parameter in model.head.parameters())
    assert loss() < first - 0.5
    save_transformer(tmp_path, model)
    again = load_transformer(tmp_path, tokenizer)
    torch.testing.assert_close(again.head.codes, model.head.codes)


def test_it_needs_tokens_with_a_codebook() -> None:
    tokenizer = grid_tokenizer((8, 8))
    config = transformer_for(tokenizer).config.model_copy(update={"head": "codebook"})
    with pytest.raises(ConfigError, match="codes of a codebook"):
        ScaleTransformer(config, tokenizer.token_space, tokenizer.feature_dim, tokenizer.schedule())
