"""What a pattern means, as properties over generated paths, and on real architectures of transformers."""

from __future__ import annotations

import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.cases import net
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from loraloom.adapters import AdapterSpec, attach, plan_attach
from loraloom.adapters.targets import Layers, block_number, matches
from loraloom.errors import ConfigError, TargetError

names = st.text("abq_k1", min_size=1, max_size=4)
parts = st.lists(st.one_of(names, st.integers(0, 12).map(str)), min_size=1, max_size=5)
paths = parts.map(".".join)


# -- properties ----------------------------------------------------------------------------------------


@given(parts, st.data())
def test_a_name_means_every_path_that_ends_in_it(path: list[str], data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(path) - 1))
    assert matches(".".join(path[cut:]), ".".join(path))


@given(paths, paths)
def test_a_name_means_whole_parts_only(pattern: str, path: str) -> None:
    wanted, found = pattern.split("."), path.split(".")
    assert matches(pattern, path) == (found[-len(wanted) :] == wanted)


@given(paths, paths)
def test_an_escaped_regular_expression_means_one_path(pattern: str, path: str) -> None:
    assert matches(f"re:{re.escape(pattern)}", path) == (pattern == path)


@given(paths, st.data())
def test_a_star_stands_for_anything_between(path: str, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(path)))
    end = data.draw(st.integers(start, len(path)))
    assert matches(f"{path[:start]}*{path[end:]}", path)
    assert matches(f"*{path[end:]}", f"outer.{path}")


@given(parts)
def test_a_glob_starts_at_a_part(path: list[str]) -> None:
    pattern = ".".join(["*" if part.isdigit() else part for part in path])
    assert matches(pattern, ".".join(path)) and matches(pattern, ".".join(["outer", *path]))
    if not pattern.startswith("*"):
        assert not matches(f"{pattern}*", f"z{'.'.join(path)}")


@given(paths)
def test_every_pattern_is_about_the_whole_path(path: str) -> None:
    assert not matches(f"re:{re.escape(path)}", f"{path}.more")
    assert not matches(path, f"{path}.more")
    assert not matches(path, f"z{path}")


@given(st.lists(st.integers(0, 30), min_size=1, unique=True), st.data())
def test_layers_count_from_either_end(blocks: list[int], data: st.DataObject) -> None:
    paths = [f"block.{number}.proj" for number in blocks]
    chosen = data.draw(st.lists(st.sampled_from(blocks), unique=True))
    last = max(blocks)
    from_end = tuple(number - last - 1 for number in chosen)
    forward, backward = Layers.of(tuple(chosen), paths), Layers.of(from_end, paths)
    for path, number in zip(paths, blocks, strict=True):
        assert forward.include(path) == backward.include(path) == (number in chosen)
    assert not forward.include("embeddings.word")
    assert all(Layers.of(None, paths).include(path) for path in [*paths, "head"])


@given(st.integers(-40, 40).filter(lambda number: not -4 <= number < 4))
def test_a_block_that_is_not_there_is_named_as_it_was_written(number: int) -> None:
    with pytest.raises(ConfigError, match=f"block {number}, but the model has blocks 0 to 3"):
        Layers.of((0, number), [f"h.{index}" for index in range(4)])


@given(paths)
def test_the_block_is_the_first_number_of_a_path(path: str) -> None:
    numbers = [int(part) for part in path.split(".") if part.isdigit()]
    assert block_number(path) == (numbers[0] if numbers else None)


def test_a_broken_regular_expression_is_the_users_mistake() -> None:
    with pytest.raises(ConfigError, match=r"'re:\(' is not a regular expression"):
        plan_attach(net(one=nn.Linear(2, 2)), AdapterSpec.of(targets="re:("))


# -- patterns on a model -------------------------------------------------------------------------------


def blocks(count: int = 4) -> nn.Module:
    def block() -> nn.Module:
        return nn.ModuleDict({"query": nn.Linear(8, 8), "value": nn.Linear(8, 8), "norm": nn.LayerNorm(8)})

    return nn.ModuleDict(
        {"embed": nn.Embedding(5, 8), "layer": nn.ModuleList(block() for _ in range(count)), "lm_head": nn.Linear(8, 5)}
    )


def sites(model: nn.Module, **settings: object) -> list[str]:
    return [site.path for site in plan_attach(model, AdapterSpec.of(rank=2, **settings)).sites]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [f"layer.{i}.{name}" for i in range(4) for name in ("query", "value")]),
        ({"targets": "query"}, [f"layer.{i}.query" for i in range(4)]),
        (
            {"targets": re.compile(r"layer\.[02]\.(query|value)")},
            [f"layer.{i}.{n}" for i in (0, 2) for n in ("query", "value")],
        ),
        ({"targets": "layer.[1-2].value"}, ["layer.1.value", "layer.2.value"]),
        ({"targets": ["value", "embed"], "layers": 3}, ["layer.3.value"]),
        ({"targets": "query", "layers": -1}, ["layer.3.query"]),
        ({"targets": "query", "layers": [0, -2]}, ["layer.0.query", "layer.2.query"]),
        ({"targets": "query", "layers": "1-2"}, ["layer.1.query", "layer.2.query"]),
        ({"targets": "query", "layers": range(2)}, ["layer.0.query", "layer.1.query"]),
        ({"exclude": ["layer.0.*", "re:.*[123].value"]}, [f"layer.{i}.query" for i in (1, 2, 3)]),
        ({"exclude": ["lm_head", "value"]}, [f"layer.{i}.query" for i in range(4)]),
        ({"targets": "lm_head"}, ["lm_head"]),
        ({"targets": ["all-linear", "lm_head"], "exclude": "layer"}, None),
        ({"targets": "*", "exclude": ["embed", "norm"]}, None),
    ],
)
def test_patterns_choose(settings: dict[str, object], expected: list[str] | None) -> None:
    found = sites(blocks(), **settings)
    everything = [f"layer.{i}.{name}" for i in range(4) for name in ("query", "value")] + ["lm_head"]
    assert sorted(found) == sorted(everything if expected is None else expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"targets": "qurey"}, "targets: 'qurey' matches no module; did you mean 'query'"),
        (
            {"targets": ["query", "vlaue", "re:.*kye"]},
            "2 faults(.|\n)*'vlaue' matches no module(.|\n)*'re:.*kye' matches no",
        ),
        ({"targets": ["query", "layer.*.query"]}, "every module that 'layer.\\*.query' matches is chosen by another"),
        ({"exclude": "valu"}, "exclude: 'valu' matches no module; did you mean 'value'"),
        ({"rank_pattern": {"qurey": 4}}, "rank_pattern: 'qurey' matches no module; did you mean 'query'"),
        ({"alpha_pattern": {"re:.*quer": 4.0}}, "alpha_pattern: 're:.*quer' matches no module"),
        ({"targets": "query", "rank_pattern": {"value": 4}}, "rank_pattern: no module that 'value' matches is left"),
        ({"heads": "lm_haed"}, "heads: 'lm_haed' matches no module; did you mean 'lm_head'"),
        ({"parameters": "embed.wieght"}, "parameters: 'embed.wieght' matches no parameter; did you mean"),
        ({"targets": "norm"}, "'norm' chooses 'layer.0.norm', a LayerNorm, which no adapter fits"),
        ({"targets": "layer.0"}, "'layer.0' chooses 'layer.0', a ModuleDict, .*inside it are query, value"),
        ({"targets": "query", "exclude": "query"}, "no module is left to adapt; .*named embed, lm_head, query, value"),
        ({"targets": "lm_head", "layers": 1}, "no module is left to adapt"),
    ],
)
def test_a_pattern_that_decides_nothing_is_an_error_with_near_names(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TargetError, match=message):
        sites(blocks(), **settings)


def test_the_first_matching_pattern_wins_in_rank_and_alpha() -> None:
    spec = AdapterSpec.of(
        rank=2,
        alpha=3.0,
        rank_pattern={"layer.0.query": 5, "query": 4},
        alpha_pattern={"re:.*[01].query": 8.0, "layer.3.value": 1.0},
        scaling="rslora",
    )
    plan = plan_attach(blocks(), spec)
    chosen = {site.path: (site.rank, site.alpha) for site in plan.sites}
    assert chosen["layer.0.query"] == (5, 8.0) and chosen["layer.1.query"] == (4, 8.0)
    assert chosen["layer.2.query"] == (4, 3.0) and chosen["layer.3.value"] == (2, 1.0)
    assert all(site.scale == pytest.approx(site.alpha / site.rank**0.5) for site in plan.sites)


def test_alpha_left_open_is_twice_each_layers_own_rank() -> None:
    plan = plan_attach(blocks(), AdapterSpec.of(rank=2, rank_pattern={"query": 6}))
    assert {(site.rank, site.alpha, site.scale) for site in plan.sites} == {(2, 4.0, 2.0), (6, 12.0, 2.0)}


# -- real architectures --------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}
GPT2 = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16, "vocab_size": 40}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 40}
LLAMA = {**SMALL, "num_key_value_heads": 1}
CLASSIFY, CAUSAL, SEQ2SEQ = AutoModelForSequenceClassification, AutoModelForCausalLM, AutoModelForSeq2SeqLM


@pytest.mark.parametrize(
    ("kind", "settings", "auto", "per_block", "head"),
    [
        ("gpt2", GPT2, CAUSAL, 4, "lm_head"),
        ("gpt2", {**GPT2, "pad_token_id": 0}, CLASSIFY, 4, "score"),
        ("bert", SMALL, CLASSIFY, 6, "classifier"),
        ("bert", SMALL, AutoModelForTokenClassification, 6, "classifier"),
        ("roberta", SMALL, CLASSIFY, 6, "classifier"),
        (
            "distilbert",
            {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24, "vocab_size": 40},
            CLASSIFY,
            6,
            "classifier",
        ),
        ("llama", LLAMA, CAUSAL, 7, "lm_head"),
        ("llama", {**LLAMA, "pad_token_id": 0}, CLASSIFY, 7, "score"),
    ],
)
def test_all_linear_takes_every_block_and_no_output_head(kind, settings, auto, per_block, head) -> None:
    model = auto.from_config(AutoConfig.for_model(kind, **settings))
    adapters = attach(model, rank=2)
    found = [site.module for site in adapters.plan("default").sites]
    in_blocks = [path for path in found if block_number(path) is not None]
    assert len(in_blocks) == 2 * per_block
    assert not [path for path in found if path.split(".")[0] == head]
    model(input_ids=torch.tensor([[3, 4, 5]])).logits.sum().backward()
    unused = [key for key, p in adapters.named_parameters("default") if p.grad is None]
    assert not unused


def test_all_linear_takes_encoder_and_decoder_of_t5() -> None:
    model = SEQ2SEQ.from_config(AutoConfig.for_model("t5", **T5))
    found = sites(model)
    assert len(found) == 2 * (4 + 2) + 2 * (8 + 2) and "lm_head" not in found
    assert {path.split(".")[0] for path in found} == {"encoder", "decoder"}
    assert len(sites(model, layers=-1)) == len(found) // 2


def test_a_tied_embedding_of_a_language_model_is_refused_or_shared() -> None:
    model = CAUSAL.from_config(AutoConfig.for_model("gpt2", **GPT2))
    with pytest.raises(TargetError, match="'transformer.wte' is tied to 'lm_head.weight': .*tied='share'"):
        sites(model, targets="wte")
    ids = torch.tensor([[3, 4, 5]])
    adapters = attach(model.eval(), targets=["wte", "c_attn"], tied="share", rank=2)
    assert [site.path for site in adapters.plan("default").sites if site.shares] == ["lm_head"]
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_(std=0.1)
        attached = model(input_ids=ids).logits
        adapters.merge()
        torch.testing.assert_close(model(input_ids=ids).logits, attached, rtol=1e-4, atol=1e-5)


def test_a_base_encoder_has_no_head_to_leave_out() -> None:
    model = AutoModel.from_config(AutoConfig.for_model("bert", **SMALL))
    assert len(sites(model)) == 2 * 6 + 1  # the pooler too
