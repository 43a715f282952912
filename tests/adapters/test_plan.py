"""Settings and plans: what is refused and how it is said, and that a refusal leaves the model as it was."""

from __future__ import annotations

import json
import warnings
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tests.adapters.cases import CASES, Case, Experts, SelfAttention, TiedLanguageModel, classifier, conv, net
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from loraloom.adapters import AdapterSpec, adapters_of, attach, plan_attach
from loraloom.errors import ConfigError, TargetError

# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank is 0: it must be a whole number of at least 1"),
        ({"rank": -4}, "rank is -4"),
        ({"rank": 4.0}, "rank is 4.0"),
        ({"rank": True}, "rank is True"),
        ({"rank": "8"}, "rank is '8'"),
        ({"rank_pattern": {"query": 0}}, "rank is 0 for 'query'"),
        ({"alpha": float("nan")}, "alpha is nan: it must be finite and above 0"),
        ({"alpha": float("inf")}, "alpha is inf"),
        ({"alpha": 0}, "alpha is 0"),
        ({"alpha": -1.0}, "alpha is -1.0"),
        ({"alpha": "16"}, "alpha is '16'"),
        ({"alpha_pattern": {"query": float("nan")}}, "alpha is nan for 'query'"),
        ({"dropout": 1.0}, "dropout is 1.0: it must be at least 0 and below 1"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"dropout": float("nan")}, "dropout is nan"),
        ({"dropout": "0.1"}, "dropout is '0.1'"),
        ({"scaling": "rs-lora"}, "scaling is 'rs-lora': it must be one of alpha/r, rslora; did you mean 'rslora'"),
        ({"bias": "al"}, "bias is 'al': it must be one of none, adapted, all; did you mean 'all'"),
        ({"tied": "shared"}, "tied is 'shared': .*did you mean 'share'"),
        ({"init": "kaimimg"}, "init is 'kaimimg': .*did you mean 'kaiming'"),
        ({"targets": ()}, "targets is empty"),
        ({"dtype": "float23"}, "dtype 'float23' is not one of .*did you mean 'float32'"),
        ({"dtype": torch.int8}, "dtype is torch.int8: factors must be floating point"),
        ({"layers": "3-"}, "layers '3-' is not a range"),
        ({"layers": 1.5}, "layers 1.5 is not a range"),
        ({"layers": [0, 1.5]}, r"layers \[0, 1.5\] is not a range"),
        ({"rnak": 8}, "unknown adapter setting 'rnak'; did you mean 'rank'"),
        ({"rank": 0, "alpha": -1}, "rank is 0.*; alpha is -1"),
    ],
)
def test_a_setting_out_of_range_is_one_sentence(settings: dict[str, Any], message: str) -> None:
    model = net(query=nn.Linear(8, 8))
    with pytest.raises(ConfigError, match=message):
        attach(model, **settings)
    assert adapters_of(model) is None and model.query.weight.requires_grad


def test_one_pattern_given_to_the_spec_itself_is_one_pattern() -> None:
    assert AdapterSpec(targets="query").targets == ("query",)  # type: ignore[arg-type]
    assert AdapterSpec(targets=["query"], heads=["score"]).heads == ("score",)  # type: ignore[arg-type]


specs = st.fixed_dictionaries(
    {},
    optional={
        "rank": st.integers(1, 64),
        "alpha": st.none() | st.floats(1e-3, 1e3),
        "targets": st.lists(st.sampled_from(["query", "re:.*k", "layer.*"]), min_size=1).map(tuple),
        "exclude": st.sampled_from(["value", ("a", "b")]),
        "layers": st.none() | st.integers(-3, 3) | st.lists(st.integers(-3, 3)) | st.just("1-2"),
        "rank_pattern": st.dictionaries(st.sampled_from("abc"), st.integers(1, 9)),
        "alpha_pattern": st.dictionaries(st.sampled_from("abc"), st.floats(0.5, 9)),
        "scaling": st.sampled_from(["alpha/r", "rslora"]),
        "dropout": st.floats(0, 0.9),
        "seed": st.integers(0, 2**40),
        "bias": st.sampled_from(["none", "adapted", "all"]),
        "tied": st.sampled_from(["refuse", "share", "separate"]),
        "dtype": st.sampled_from(["float32", "bfloat16", torch.float16]),
    },
)


@given(specs)
def test_settings_survive_json(settings: dict[str, Any]) -> None:
    spec = AdapterSpec.of(**settings)
    assert AdapterSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    assert set(spec.to_dict()) == {entry.name for entry in fields(AdapterSpec)}


def test_every_setting_changes_something() -> None:
    """A setting that is parsed and never used would pass every other test."""
    other: dict[str, Any] = {
        "rank": 3,
        "alpha": 1.0,
        "targets": "first",
        "exclude": "first",
        "layers": 0,
        "rank_pattern": {"first": 2},
        "alpha_pattern": {"first": 2.0},
        "scaling": "rslora",
        "dropout": 0.5,
        "init": None,  # there is one
        "seed": 1,
        "bias": "adapted",
        "parameters": "own",
        "heads": "1.second",
        "tied": None,  # see the tied cases
        "dtype": torch.bfloat16,
    }
    assert set(other) == {entry.name for entry in fields(AdapterSpec)}

    def outcome(**settings: Any) -> tuple[Any, ...]:
        torch.manual_seed(0)
        model = nn.ModuleList([nn.ModuleDict({"first": nn.Linear(8, 8), "second": nn.Linear(8, 8)}) for _ in range(2)])
        model.own = nn.Parameter(torch.ones(8, 8))
        adapters = attach(model, **settings)
        found = {
            key: (tensor.dtype, tensor.double().sum().item()) for key, tensor in adapters.tensors("default").items()
        }
        sites = [(site.path, site.rank, site.alpha, site.scale) for site in adapters.plan("default").sites]
        return found, sites, model[0]["first"](torch.ones(1, 8)).requires_grad, adapters.dropout("default")

    plain = outcome()
    for name, value in other.items():
        if value is not None:
            assert outcome(**{name: value}) != plain, name


# -- plans ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES, ids=str)
def test_planning_is_pure_and_is_what_attaching_does(case: Case) -> None:
    model = case.model()
    before = _state(model)
    settings = {"rank": 4, "dtype": case.factor_dtype, **case.settings}
    plan = plan_attach(model, AdapterSpec.of(**settings))
    assert _state(model) == before
    adapters = case.attach(model)
    assert adapters.plan("default") == plan
    tensors = adapters.tensors("default")
    for site in plan.sites:
        if not site.shares:
            assert tuple(tensors[f"{site.path}|A"].shape) == site.shape_a
            assert tuple(tensors[f"{site.path}|B"].shape) == site.shape_b
    rows = plan.table()
    assert len(rows) == len(plan.sites) + len(plan.copies) and len({tuple(row) for row in rows}) == 1
    assert sum(row["trained"] for row in rows) == plan.size == adapters.num_parameters("default")
    assert sum(plan.matches.values()) == len(plan.sites)


def _state(model: nn.Module) -> list[Any]:
    return [
        *((path, type(module), sorted(vars(module)), module.training) for path, module in model.named_modules()),
        *((path, id(p), p.requires_grad, p._version, float(p.double().sum())) for path, p in model.named_parameters()),
    ]


def test_a_rank_beyond_the_weight_is_warned_of_and_runs() -> None:
    model = net(wide=nn.Linear(64, 3), deep=nn.Linear(3, 64))
    with pytest.warns(UserWarning, match="rank 8 at 'wide' is more than the 3 that its weight can use"):
        adapters = attach(model, rank=8)
    assert len(adapters.plan("default").warnings) == 2
    model(torch.ones(1, 64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        attach(net(wide=nn.Linear(64, 3)), rank=3)
        attach(net(experts=Experts(True)), rank=5, targets=(), parameters="experts.w")


def test_a_warning_made_an_error_leaves_the_model_alone() -> None:
    model = net(wide=nn.Linear(64, 3))
    before = _state(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning):
            attach(model, rank=8)
    assert _state(model) == before and adapters_of(model) is None


# -- refusals ------------------------------------------------------------------------------------------


def _both_ways() -> nn.Module:
    return net(only=nn.Linear(8, 8))


def _with_norm() -> nn.Module:
    return net(only=weight_norm(nn.Linear(8, 8)))


REFUSED: list[tuple[Any, dict[str, Any], str]] = [
    (_both_ways, {"targets": "nothing"}, "'nothing' matches no module"),
    (_both_ways, {"parameters": "only.weight"}, "'only.weight' chooses 'only.weight', which the targets adapt already"),
    (_both_ways, {"targets": (), "parameters": "only.bias"}, "a parameter of 1 dimensions"),
    (_both_ways, {"targets": (), "parameters": "only.weight", "dropout": 0.1}, "cannot be dropped out"),
    (_with_norm, {}, "a ParametrizedLinear whose weight is computed from other parameters"),
    (SelfAttention, {"dropout": 0.1}, "'attention', an attention, whose input cannot be dropped out"),
    (SelfAttention, {"parameters": "attention.in_proj_weight"}, "which the targets adapt already"),
    (SelfAttention, {"heads": "out_proj"}, "'attention.out_proj' is never called"),
    (lambda: net(e=nn.Embedding(5, 4, max_norm=1.0)), {"targets": "e"}, "an embedding with max_norm"),
    (conv(2, groups=4, out=8), {"targets": "conv", "rank": 6}, "4 groups: its rank must be a multiple of them, not 6"),
    (TiedLanguageModel, {"targets": "tokens"}, "'tokens' is tied to 'lm_head.weight': exclude it, or"),
    (classifier, {"heads": "act"}, "heads: 'act' has no parameters to train"),
    (lambda: nn.Linear(4, 4), {}, "no module is left to adapt"),
    (lambda: net(act=nn.Tanh()), {}, r"no module is left to adapt; the model's layers are named \(none\)"),
    (_both_ways, {"layers": 0}, "but the model has no numbered blocks"),
]


@pytest.mark.parametrize(("build", "settings", "message"), REFUSED, ids=range(len(REFUSED)))
def test_a_refusal_says_why_and_leaves_the_model_exactly_as_it_was(build, settings, message) -> None:
    model = build()
    model.train()
    next(model.parameters(), torch.nn.Parameter()).requires_grad_(False)
    before = _state(model)
    for attempt in (plan_attach, lambda model, spec: attach(model, spec)):
        with pytest.raises((TargetError, ConfigError), match=message):
            attempt(model, AdapterSpec.of(**{"rank": 2, **settings}))
        assert _state(model) == before and adapters_of(model) is None


@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        ({"heads": "classifier"}, {"targets": "classifier"}, "which is the head of another adapter"),
        ({"targets": "classifier"}, {"heads": "classifier"}, "already carries an update or a bias of another adapter"),
        ({"bias": "all"}, {"heads": "classifier"}, "already carries an update or a bias of another adapter"),
        ({"targets": (), "parameters": "body.weight"}, {"targets": "body"}, "adapted as a raw parameter"),
        ({"targets": "body"}, {"targets": (), "parameters": "body.weight"}, "already carries an update on its output"),
        ({}, {"targets": "nothing"}, "matches no module"),
    ],
)
def test_what_two_adapters_cannot_share_is_refused_and_the_first_goes_on(first, second, message) -> None:
    model = classifier()
    adapters = attach(model, rank=2, name="a", **first)
    before, x = _state(model), torch.ones(1, 6)
    expected = model(x)
    with pytest.raises(TargetError, match=message):
        adapters.add("b", rank=2, **second)
    assert _state(model) == before and adapters.names == ["a"] and adapters.active == {"a": 1.0}
    assert torch.equal(model(x), expected)


def test_all_faults_are_told_at_once() -> None:
    with pytest.raises(TargetError) as error:
        plan_attach(classifier(), AdapterSpec.of(targets=["bdoy", "act"], heads="classifer", exclude="oops"))
    for word in ("4 faults", "'bdoy'", "'act' chooses 'act', a Tanh", "'classifer'", "'oops'"):
        assert word in str(error.value)


# -- what attaches where -------------------------------------------------------------------------------


def test_attaching_around_or_inside_what_has_adapters_is_refused() -> None:
    model = net(inner=net(only=nn.Linear(4, 4)), head=nn.Linear(4, 2))
    attach(model.inner, rank=2)
    with pytest.raises(ConfigError, match="another module around or inside this one has adapters already"):
        attach(model, rank=2, name="b")
    whole = net(inner=net(only=nn.Linear(4, 4)))
    attach(whole, rank=2)
    with pytest.raises(ConfigError, match="around or inside"):
        attach(whole.inner, rank=2, name="b")
    assert attach(whole, rank=2, name="b") is adapters_of(whole)


def test_out_proj_of_an_attention_is_adapted_through_the_attention() -> None:
    for settings in ({"targets": "out_proj"}, {"targets": (), "parameters": "attention.out_proj.weight"}):
        plan = plan_attach(SelfAttention(), AdapterSpec.of(rank=2, **settings))
        assert [(site.module, site.path) for site in plan.sites] == [("attention", "attention.out_proj.weight")]
    both = plan_attach(SelfAttention(), AdapterSpec.of(rank=2, targets=["attention", "out_proj"]))
    assert [site.path for site in both.sites] == ["attention.in_proj_weight", "attention.out_proj.weight"]


def test_biases_are_those_of_adapted_layers_or_of_all() -> None:
    def biases(**settings: Any) -> set[str]:
        model = net(
            first=nn.Linear(4, 4), norm=nn.LayerNorm(4), second=nn.Linear(4, 4, bias=False), head=nn.Linear(4, 2)
        )
        plan = plan_attach(model, AdapterSpec.of(rank=2, **settings))
        return {path for copy in plan.copies if copy.role == "bias" for path in copy.paths}

    assert biases(targets="first") == set()
    assert biases(targets=["first", "second"], bias="adapted") == {"first.bias"}
    assert biases(targets="first", bias="all") == {"first.bias", "norm.bias", "head.bias"}
    assert biases(targets="first", bias="all", heads="head") == {"first.bias", "norm.bias"}


@pytest.mark.parametrize("is_transposed", [False, True])
def test_expert_deltas_are_those_of_each_expert(is_transposed: bool) -> None:
    """Expert e: A's rows e·R…, B's columns e, e + E, …; the layout that PEFT stores."""
    model = net(mlp=Experts(is_transposed)).double()
    adapters = attach(model, rank=2, targets=(), parameters="mlp.w", alpha=3.0, dtype=torch.float64)
    tensors = {key: torch.randn_like(tensor) for key, tensor in adapters.tensors("default").items()}
    adapters.load_tensors("default", tensors)
    a, b = tensors["mlp.w|A"], tensors["mlp.w|B"]
    delta = adapters.delta("default", "mlp.w")
    for expert in range(3):
        expected = 1.5 * b[:, expert::3] @ a[2 * expert : 2 * expert + 2]
        torch.testing.assert_close(delta[expert], expected.t() if is_transposed else expected)


def test_the_delta_of_an_unknown_site_is_refused_with_near_names() -> None:
    adapters = attach(net(query=nn.Linear(4, 4)), rank=2)
    with pytest.raises(ConfigError, match="no site 'qeury'; did you mean 'query'"):
        adapters.delta("default", "qeury")


class _Scaled(nn.Embedding):
    embed_scale = 3.0

    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids) * self.embed_scale


def test_an_embedding_that_scales_what_it_looks_up_scales_the_update_too() -> None:
    model = net(tokens=_Scaled(9, 4)).double()
    adapters = attach(model, rank=2, targets="tokens", dtype=torch.float64)
    adapters.load_tensors("default", {k: torch.randn_like(t) for k, t in adapters.tensors("default").items()})
    ids = torch.tensor([[1, 2, 8]])
    attached = model(ids)
    adapters.merge()
    torch.testing.assert_close(model(ids), attached)
