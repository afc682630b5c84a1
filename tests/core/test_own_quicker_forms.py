"""A normaliser of one's own with a quicker form is what its `weights` are, or is refused by name."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

import sinkscope
from sinkscope import SinkscopeError, attached
from sinkscope.normalisers import ClippedSoftmax, Normaliser, Pointwise, VirtualKey
from tests.support import naive_slots
from tests.support.zoo import build, inputs


def pointwise(weigh):
    return type("Own", (Pointwise,), {"weigh": lambda self, scores, lse, seen: weigh(scores, lse, seen)})()


def virtual_key(logit):
    return type("Own", (VirtualKey,), {"virtual_logit": lambda self, heads, device: logit})()


class Stretched(ClippedSoftmax):
    def __post_init__(self):
        pass


@pytest.mark.parametrize(
    ("normaliser", "message"),
    [
        (pointwise(lambda scores, lse, seen: (scores - lse).exp().clamp(min=0.01)), "Own.* gives weight to hidden"),
        (Stretched(gamma=0.02), r"Stretched\(gamma=0.02.*\) gives weight to hidden keys"),
        (pointwise(lambda scores, lse, seen: scores.tanh() / seen), "Own.* gave weights below 0"),
        (pointwise(lambda scores, lse, seen: (scores - lse).exp() * torch.nan), "Own.* gave weights that are NaN"),
        (pointwise(lambda scores, lse, seen: (scores - scores.amax((-2, -1), True)).exp()), "on the other queries"),
        (
            pointwise(lambda scores, lse, seen: (scores - lse).exp() * scores.amax(0, True).sigmoid()),
            "on the other texts",
        ),
        (
            pointwise(lambda scores, lse, seen: (scores - lse).exp() * scores.amax(1, True).sigmoid()),
            "on the other heads",
        ),
        (pointwise(lambda scores, lse, seen: scores.softmax(-1)), "on scores of other keys"),
        (pointwise(lambda scores, lse, seen: (scores - lse).exp()[..., :1]), r"the shape \(2, 4, 5, 1\) for scores"),
        (pointwise(lambda scores, lse, seen: 3.0), "gave a float for scores"),
        (pointwise(lambda scores, lse, seen: (scores - lse.sub_(1)).exp()), "changed the log-sum-exp in place"),
        (
            pointwise(lambda scores, lse, seen: (scores - lse).exp() * torch.ones(4, 1, 1) / 2),
            r"\(2, 4, 5, 7\) for scores of shape \(2, 1, 5, 7\)",
        ),
        (virtual_key(torch.tensor([0.0, 0.0, torch.nan, 0.0])), "`virtual_logit` of Own.* gave NaN"),
        (virtual_key(torch.zeros(2)), r"gave the shape \(2,\) for 4 heads; give a tensor \[head\]"),
        (virtual_key("none"), "gave 'none' for 4 heads"),
    ],
)
def test_a_quicker_form_that_breaks_its_promise_is_refused_before_anything_runs(normaliser, message):
    with pytest.raises(SinkscopeError, match=message):
        attached(build("llama"), normaliser=normaliser)


@pytest.mark.slow
def test_a_virtual_key_may_be_given_as_any_kind_of_numbers():
    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    for given, logits in (
        (0.5, [0.5] * 4),
        (torch.tensor(0.5), [0.5] * 4),
        ([0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3, 0.4]),
        (torch.full((4,), 0.5, dtype=torch.float64), [0.5] * 4),
    ):

        def weights(scores, logits=logits):
            extra = torch.tensor(logits, dtype=scores.dtype)[None, :, None, None].expand(*scores.shape[:-1], 1)
            return torch.cat([scores, extra], -1).softmax(-1)[..., :-1]

        expected = naive_slots.run(model, ids, weights=weights)
        naive_slots.check(model, ids, expected, normaliser=virtual_key(given))


def test_weights_in_float64_are_rounded_to_those_of_the_layer():
    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    expected = naive_slots.run(model, ids, weights=lambda scores: scores.softmax(-1) ** 2)
    normaliser = pointwise(lambda scores, lse, seen: (scores - lse).double().exp() ** 2)
    naive_slots.check(model, ids, expected, normaliser=normaliser)


class Borrowed(Normaliser):
    weights = Pointwise.weights

    def weigh(self, scores, lse, seen):
        return (scores - lse).exp() ** 2


class BorrowedKey(Normaliser):
    weights = VirtualKey.weights

    def virtual_logit(self, heads, device):
        return torch.zeros(heads)


class Denied(sinkscope.Softmax1):
    needs_whole_rows = False

    def weights(self, scores):
        return scores.softmax(-1) ** 2


@pytest.mark.parametrize("kind", [Borrowed, BorrowedKey, Denied])
def test_whatever_a_class_inherits_its_own_weights_count(kind):
    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    naive_slots.check(
        model, ids, naive_slots.run(model, ids, weights=lambda scores: kind().weights(scores)), normaliser=kind()
    )


def test_weights_that_become_nan_on_the_way_are_the_normalisers_fault():
    model, ids = build("llama"), inputs("llama", tokens=30)["input_ids"]
    overflowing = pointwise(lambda scores, lse, seen: torch.where(scores > 6, torch.nan, (scores - lse).exp()))
    with torch.no_grad(), attached(model, normaliser=overflowing):
        with torch.no_grad():
            model.model.layers[0].self_attn.q_proj.weight.mul_(1e3)
        try:
            with pytest.raises(SinkscopeError, match=r"Own\(\) gave weights that are NaN"):
                model(ids)
        finally:
            model.model.layers[0].self_attn.q_proj.weight.div_(1e3)


def gradients(model, ids, **slots):
    model.zero_grad()
    with attached(model, **slots):
        logits = model(ids, use_cache=False).logits
    F.cross_entropy(logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten()).backward()
    return torch.cat([each.grad.flatten() for each in model.parameters()])


class Root(Normaliser):
    def weights(self, scores):
        return (0.5 * scores.log_softmax(-1)).exp()


def test_gradients_do_not_pass_through_hidden_keys():
    model, ids = build("llama"), inputs("llama", tokens=20)["input_ids"]
    root = pointwise(lambda scores, lse, seen: (scores - lse).exp() ** 0.5)
    torch.testing.assert_close(
        gradients(model, ids, normaliser=root), gradients(model, ids, normaliser=Root()), atol=1e-5, rtol=1e-3
    )
    # a policy that drops nothing
    kept = gradients(model, ids, normaliser=sinkscope.Softpick(), policy=sinkscope.TOVA(60))
    torch.testing.assert_close(kept, gradients(model, ids, normaliser=sinkscope.Softpick()), atol=1e-5, rtol=1e-3)


class Temperature(Normaliser):
    def __init__(self):
        super().__init__()
        object.__setattr__(self, "factor", torch.nn.Parameter(torch.tensor(0.7)))

    def weights(self, scores):
        return (scores * self.factor).softmax(-1)


class InPlace(Normaliser):
    def weights(self, scores):
        scores.sub_(scores.amax(-1, keepdim=True))
        return scores.softmax(-1)


@pytest.mark.parametrize(
    ("normaliser", "message"),
    [(Temperature(), "(?s)Temperature.* are NaN where keys are hidden"), (InPlace(), "InPlace.* have no gradient")],
)
def test_gradients_that_would_be_wrong_are_refused_when_they_are_asked_for(normaliser, message):
    model, ids = build("llama"), inputs("llama", tokens=20)["input_ids"]
    with attached(model, normaliser=normaliser):
        logits = model(ids, use_cache=False).logits  # a forward pass alone is right
    with pytest.raises(SinkscopeError, match=message):
        logits.sum().backward()
    model.zero_grad()
