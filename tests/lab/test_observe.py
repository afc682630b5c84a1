"""What is recorded of a model, for each arm, against loops over its queries and a forward pass written out."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sinkscope.lab.bigram import TOKENS, Backcopy, observed, uniform_bos_mass
from sinkscope.lab.decoder import ARMS, NAMES, Arm, Decoder, Sizes, arms_of
from sinkscope.lab.runs import Text
from tests.support.training_records import TEXT

TASK = Backcopy.of(Text("a text", TEXT), "at")
LENGTH, WIDTH, HEADS = 7, 12, 2


def model(arm: Arm, layers: int = 2, seed: int = 0) -> Decoder:
    torch.manual_seed(seed)
    made = Decoder(Sizes(TASK.tokens, LENGTH, layers, HEADS, WIDTH), arm)
    with torch.no_grad():
        for layer in made.layers:
            layer.attention.enter.weight *= 3  # uneven attention
            if arm.has_sink_logit:
                layer.attention.sink_logit.copy_(torch.tensor([0.7, -1.2]))
    return made


def ids(sequences: int = 5) -> torch.Tensor:
    return TASK.sample(sequences, LENGTH, torch.Generator().manual_seed(1))


def weights_by_hand(arm: str, scores: np.ndarray, logit: float) -> np.ndarray:
    """Weights of one query over the keys it sees, from the formula."""
    exponentials = np.exp(scores)
    if arm in ("softmax", "sink token", "gated"):
        return exponentials / exponentials.sum()
    if arm == "softmax1":
        return exponentials / (1 + exponentials.sum())
    if arm == "learned sink":
        return exponentials / (math.exp(logit) + exponentials.sum())
    if arm == "clipped softmax":
        return np.clip(1.03 * exponentials / exponentials.sum() - 0.03, 0, 1)
    if arm == "sigmoid":
        return 1 / (1 + np.exp(-(scores - math.log(len(scores)))))
    if arm == "softpick":
        return np.maximum(exponentials - 1, 0) / (np.abs(exponentials - 1).sum() + 1e-6)
    assert arm == "relu"
    return np.maximum(scores, 0) / len(scores)


def normed(states: np.ndarray, weight: torch.Tensor) -> np.ndarray:
    scale = np.sqrt((states**2).mean(-1, keepdims=True) + torch.finfo(torch.float32).eps)
    return states / scale * weight.detach().double().numpy()


def by_hand(made: Decoder, arm: str, text: np.ndarray) -> tuple[np.ndarray, list[dict[str, np.ndarray]]]:
    """Logits of one sequence and, per layer, weights [head, query, key], values and hidden states, in float64."""
    get = {name: tensor.detach().double().numpy() for name, tensor in made.named_parameters()}
    hidden = get["embedding.weight"][text] + get["position"][: len(text)]
    if arm == "sink token":
        hidden = np.vstack([get["sink_token"], hidden])
    layers, dim = [], WIDTH // HEADS
    for number in range(len(made.layers)):
        name = f"layers.{number}."
        states = normed(hidden, made.layers[number].before_attention.weight)
        query, key, value = np.split(states @ get[name + "attention.enter.weight"].T, 3, axis=1)
        weights, output = np.zeros((HEADS, len(states), len(states))), np.zeros_like(hidden)
        for head in range(HEADS):
            own = slice(head * dim, (head + 1) * dim)
            logit = get[name + "attention.sink_logit"][head] if arm == "learned sink" else 0.0
            for place in range(len(states)):
                scores = key[: place + 1, own] @ query[place, own] / math.sqrt(dim)
                weights[head, place, : place + 1] = weights_by_hand(arm, scores, logit)
            output[:, own] = weights[head] @ value[:, own]
        gate = np.ones_like(output)
        if arm == "gated":
            gate = 1 / (1 + np.exp(-states @ get[name + "attention.gate.weight"].T))
        output = output * gate
        hidden = hidden + output @ get[name + "attention.leave.weight"].T
        inner = normed(hidden, made.layers[number].before_perceptron.weight) @ get[name + "perceptron.0.weight"].T
        inner = inner + get[name + "perceptron.0.bias"]
        inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
        hidden = hidden + inner @ get[name + "perceptron.2.weight"].T + get[name + "perceptron.2.bias"]
        gate = gate.reshape(len(gate), HEADS, dim).mean(-1).T
        layers.append({"weights": weights, "value": value, "hidden": hidden, "gate": gate})
    logits = normed(hidden, made.before_head.weight) @ get["head.weight"].T
    return (logits[1:] if arm == "sink token" else logits), layers


@pytest.mark.parametrize("arm", ARMS, ids=NAMES)
def test_masses_norms_and_losses_are_means_over_the_queries_of_each_kind(arm):
    made, batch = model(arm), ids()
    found = {name: each.numpy() for name, each in observed(made, TASK, batch).items()}
    shift = int(arm.has_sink_token)
    sums = {
        "loss": np.zeros(3),
        **{name: np.zeros((2, HEADS, 3)) for name in ("bos_mass", "previous_mass", "row_sum", "gate")},
        "bos_value_norm": np.zeros((2, HEADS)), "value_norm": np.zeros((2, HEADS)),
        "bos_hidden_norm": np.zeros(2), "hidden_norm": np.zeros(2),
    }  # fmt: skip
    counts = np.zeros(3)
    for text in batch.numpy():
        logits, layers = by_hand(made, arm.name, text[:-1])
        for query in range(1, LENGTH):
            trigger = TASK.characters[text[query]] in "at"
            kinds = [True, trigger, not trigger]
            counts += kinds
            loss = np.log(np.exp(logits[query]).sum()) - logits[query, text[query + 1]]
            sums["loss"] += np.where(kinds, loss, 0)
            for number, layer in enumerate(layers):
                for head in range(HEADS):
                    row = layer["weights"][head, query + shift, shift:]
                    gate = layer["gate"][head, query + shift]
                    masses = {"bos_mass": row[0], "previous_mass": row[query - 1], "row_sum": row.sum(), "gate": gate}
                    for name, mass in masses.items():
                        sums[name][number, head] += np.where(kinds, mass, 0)
        for number, layer in enumerate(layers):
            norms = np.linalg.norm(layer["hidden"][shift:], axis=1)
            sums["bos_hidden_norm"][number] += norms[0] / len(batch)
            sums["hidden_norm"][number] += norms[1:].mean() / len(batch)
            for head in range(HEADS):
                own = slice(head * WIDTH // HEADS, (head + 1) * WIDTH // HEADS)
                norms = np.linalg.norm(layer["value"][shift:, own], axis=1)
                sums["bos_value_norm"][number, head] += norms[0] / len(batch)
                sums["value_norm"][number, head] += norms[1:].mean() / len(batch)
    assert counts[1] > 5 and counts[2] > 10
    for name in ("loss", "bos_mass", "previous_mass", "row_sum", "gate"):
        sums[name] /= counts
    assert set(found) == set(sums)
    for name, expected in sums.items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-5, atol=2e-6, err_msg=name)  # float32 against float64


def test_the_null_is_one_over_the_keys_that_each_query_sees():
    batch = ids()
    for sink_tokens in (0, 1):
        shares = {kind: [] for kind in TOKENS}
        for text in batch.tolist():
            for query, token in enumerate(text[:-1]):
                if query:
                    kind = "trigger" if TASK.characters[token] in "at" else "non-trigger"
                    shares["all"].append(1 / (query + 1 + sink_tokens))
                    shares[kind].append(1 / (query + 1 + sink_tokens))
        expected = [np.mean(shares[kind]) for kind in TOKENS]
        np.testing.assert_allclose(uniform_bos_mass(TASK, batch, sink_tokens), expected, rtol=1e-12)


def test_arms_of_one_seed_begin_with_the_same_weights():
    plain = dict(model(ARMS[0]).named_parameters())
    for arm in ARMS[1:]:
        own = dict(model(arm).named_parameters())
        for name, parameter in plain.items():
            assert torch.equal(own[name], parameter), (arm.name, name)


def test_every_parameter_of_every_arm_gets_a_gradient():
    for arm in ARMS:
        made = model(arm)
        logits, _ = made(ids()[:, :-1])
        logits.square().mean().backward()
        for name, parameter in made.named_parameters():
            assert parameter.grad is not None and bool(parameter.grad.abs().sum() > 0), (arm.name, name)


def test_arms_are_found_by_name_each_once_or_taken_as_they_are():
    own = Arm("my own", has_sink_token=True)
    assert [arm.name for arm in arms_of(["relu", "softmax", "relu", own])] == ["relu", "softmax", "my own"]
    assert arms_of("sigmoid") == [ARMS[NAMES.index("sigmoid")]]
