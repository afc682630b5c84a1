"""A generated answer and its prompt in one record: the tokens of `generate`, the numbers of `measure`."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sinkscope import (
    FREE,
    TOVA,
    Dense,
    EveryNth,
    Received,
    Recompute,
    Report,
    SinkCache,
    SinkMass,
    SinkscopeError,
    SinkWindow,
    Spans,
    Window,
    figures,
    generate_record,
    importance,
    measure,
    open_record,
    save_record,
    sink_features,
    span_mass,
)
from sinkscope.hf.caches import with_cache
from sinkscope.tokens import encode
from tests.support.model_state import state_of
from tests.support.talking import BOS, END, EOS, TEMPLATE, decoded, talker, tokenizer, wanting
from tests.support.zoo import build

MESSAGES = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "the cat ran away. then?"}]
COUNT = 12


def answers(record):
    """The generated ids of each text."""
    pairs = zip(record.token_id.values, record.is_generated.values, strict=True)
    return [ids[is_generated].tolist() for ids, is_generated in pairs]


def plain(model, ids, **options):
    """What `generate` itself writes behind one text."""
    given = torch.tensor([ids])
    options = {"do_sample": False, "max_new_tokens": COUNT, "pad_token_id": 0, **options}
    return model.generate(given, attention_mask=torch.ones_like(given), **options)[0, len(ids) :].tolist()


@pytest.mark.slow
def test_the_tokens_are_those_of_generate_and_the_numbers_those_of_measure():
    model, words = talker(), tokenizer()
    record = generate_record(model, words, MESSAGES, COUNT)
    ids = words.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    assert record.token_id[0, : len(ids)].values.tolist() == ids and record.prompt_length.item() == len(ids)
    assert answers(record) == [plain(model, ids)] and len(answers(record)[0]) == COUNT
    whole = measure(model, record.token_id.values.tolist(), [*FREE, Received()])
    for name in whole.data_vars:
        np.testing.assert_array_equal(record[name], whole[name], err_msg=name)
    assert "".join(record.token_text.values[0]).endswith(decoded(words, answers(record)[0]))


def test_parts_of_a_chat_are_spans_by_themselves():
    model, words = talker(), tokenizer()
    record = generate_record(model, words, MESSAGES, COUNT)
    said = {
        name: decoded(words, record.token_id.values[0][record.span.values[0] == name])
        for name in ("system", "user", "answer")
    }
    assert said == {
        "system": "be kind",
        "user": "the cat ran away. then?",
        "answer": decoded(words, answers(record)[0]),
    }
    assert set(record.span.values[0]) == {"system", "user", "template", "answer"}
    masses = span_mass(record)
    np.testing.assert_allclose(masses.sum("key_span"), 1, atol=1e-5)
    assert masses["null"].sel(query_span="system", key_span="answer") == 0


def test_a_plain_prompt_has_special_tokens_apart_and_the_end_token_belongs_to_nobody():
    model, words = talker(EOS), tokenizer()
    hook = wanting(model, *encode(words, "the dog"), EOS)
    record = generate_record(model, words, "the cat", COUNT)
    hook.remove()
    ids = [BOS, *encode(words, "the cat"), *encode(words, "the dog"), EOS]
    assert record.token_id.values.tolist() == [ids]
    said = [len(encode(words, text)) for text in ("the cat", "the dog")]
    expected = ["special"] + ["prompt"] * said[0] + ["answer"] * said[1] + ["special"]
    assert record.span.values[0].tolist() == expected and record.is_generated.sum() == said[1] + 1


@pytest.mark.parametrize("opened", [False, True])
def test_what_is_thought_before_the_answer_is_a_span(opened):
    template = TEMPLATE.replace("<|im_start|>assistant\n' }}", "<|im_start|>assistant\nB' }}") if opened else TEMPLATE
    model, words = talker(EOS), tokenizer(template)
    hook = wanting(model, *encode(words, f"{'' if opened else 'B'}a mat?Dthe dog"), EOS)
    record = generate_record(model, words, MESSAGES[1:], 20, think=("B", "D"))
    hook.remove()
    spans = {
        name: decoded(words, record.token_id.values[0][record.span.values[0] == name]) for name in ("think", "answer")
    }
    assert spans == {"think": "a mat?", "answer": "the dog"}


@pytest.mark.slow
def test_several_prompts_of_any_lengths_are_the_rows_of_one_record(tmp_path):
    model, words = talker(END), tokenizer()
    chats = [MESSAGES, MESSAGES[1:], [{"role": "user", "content": "the cat ran away. when"}]]
    record = generate_record(model, words, chats, COUNT, text="three chats")
    for row, chat in enumerate(chats):
        ids = words.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        assert record.prompt_length[row] == len(ids)
        assert answers(record)[row] == plain(model, ids)
        alone = measure(model, [ids + answers(record)[row]], [Received()]).received[0]
        np.testing.assert_allclose(record.received[row, ..., : alone.sizes["key"]], alone, atol=1e-5)
    again = open_record(save_record(record, tmp_path / "answers.nc"))
    np.testing.assert_array_equal(again.is_generated, record.is_generated)
    np.testing.assert_array_equal(again.span, record.span)
    assert again.attrs["text"] == "three chats" and again.attrs["generated"] == "greedy"


@pytest.mark.slow
def test_draws_are_those_of_generate_with_the_seed_and_leave_torchs_own_alone():
    model, words = talker(), tokenizer()
    before = torch.random.get_rng_state()
    record = generate_record(model, words, "the cat", COUNT, temperature=0.8, top_k=20, top_p=0.9, seed=3)
    assert torch.equal(torch.random.get_rng_state(), before)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        drawn = plain(model, [BOS, *encode(words, "the cat")], do_sample=True, temperature=0.8, top_k=20, top_p=0.9)
    assert answers(record) == [drawn] and "seed=3" in record.attrs["generated"]
    other = generate_record(model, words, "the cat", COUNT, temperature=0.8, seed=4)
    assert answers(other) != [drawn]


@pytest.mark.slow
@pytest.mark.parametrize("policy", [SinkWindow(2, 6), Window(8), Dense()])
def test_under_a_policy_the_answer_is_that_of_a_cache_and_the_numbers_are_of_the_policy(policy):
    model, words = talker(), tokenizer()
    ids = words.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
    record = generate_record(model, words, MESSAGES, COUNT, policy=policy)
    if policy.is_dense:
        assert answers(record) == [plain(model, ids)]
    else:
        with SinkCache(model, *policy.kept) as cache:
            assert answers(record) == [plain(model, ids, **with_cache(model, cache))]
    whole = measure(model, record.token_id.values.tolist(), [SinkMass()], policy=policy)
    np.testing.assert_array_equal(record.sink_mass, whole.sink_mass)
    assert record.attrs["policy"] == repr(policy)


@pytest.mark.parametrize("policy", [TOVA(8), EveryNth(4, 6)])
def test_any_policy_that_can_be_measured_writes_the_likeliest_tokens_under_it(policy):
    model, words = talker(), tokenizer()
    record = generate_record(model, words, "the cat ran away and", 6, policy=policy, probes=[SinkMass()])
    from sinkscope import attached

    ids = record.token_id.values[0].tolist()
    with torch.no_grad(), attached(model, policy=policy):
        logits = model(torch.tensor([ids]), use_cache=False).logits[0]
    start = record.prompt_length.item()
    assert logits[start - 1 : -1].argmax(-1).tolist() == ids[start:]
    assert set(record.data_vars) == {"sink_mass"} and "answer" in record.span.values


@pytest.mark.slow
def test_sink_features_are_the_highest_importances_of_each_head():
    record = generate_record(talker(), tokenizer(), ["the cat ran", "a dog"], COUNT)
    found, alpha = sink_features(record, top=4, queries=3), importance(record)
    assert found.dims == ("sequence", "layer", "head", "rank")
    for row, length in enumerate(record.length.values):
        own = np.sort(alpha.values[row, ..., : length - 2], -1)[..., ::-1][..., :4]
        np.testing.assert_array_equal(found[row], own)
    assert sink_features(record, top=60).isel(rank=-1).isnull().all()
    with pytest.raises(SinkscopeError, match="queries=99 leaves no key"):
        sink_features(record, queries=99)


@pytest.mark.slow
def test_the_model_is_left_as_it_was():
    model = talker()
    before = state_of(model)
    generate_record(model, tokenizer(), MESSAGES, 4, policy=SinkWindow(2, 6))
    assert state_of(model) == before


def test_a_prompt_of_one_token_is_answered():
    words = tokenizer(None)
    words.backend_tokenizer.post_processor = None
    record = generate_record(talker(), words, "a", 2)
    assert record.length.item() == 3 and record.sizes["sink"] == 3


def ends_at_once(model=None):
    model = talker(EOS)
    wanting(model, EOS)
    return generate_record(model, tokenizer(), "the cat", COUNT)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (ends_at_once, "ends its answer to text 0 at once, with '</s>'"),
        (lambda: generate_record(talker(), tokenizer(), []), "the prompt is empty"),
        (lambda: generate_record(talker(), tokenizer(), [[]]), "the chat is empty"),
        (lambda: generate_record(talker(), tokenizer(), ""), "'' has no tokens"),
        (lambda: generate_record(talker(), tokenizer(), 5), "no text and no chat"),
        (lambda: generate_record(talker(), tokenizer(), [MESSAGES[0], "the"]), "messages beside something else"),
        (lambda: generate_record(talker(), tokenizer(None), MESSAGES), "has no chat template"),
        (lambda: generate_record(talker(), tokenizer(), MESSAGES, 0), "max_new_tokens=0"),
        (lambda: generate_record(talker(), tokenizer(), MESSAGES, temperature=-1.0), "temperature=-1.0"),
        (lambda: generate_record(talker(), tokenizer(), MESSAGES, policy=Recompute(8)), "[Rr]ecompute"),
        (lambda: generate_record(talker(), None, "the cat"), "needs a tokenizer"),
        (
            lambda: generate_record(build("gpt2"), tokenizer(), "a" * 509, 5),
            "512 positions, and a prompt of 510 tokens with 5 new ones needs 515",
        ),
        (lambda: generate_record(build("bert"), tokenizer(), "the cat"), "BertModel"),
    ],
)
def test_what_cannot_be_generated_is_refused_in_a_sentence(run, words):
    with pytest.raises(SinkscopeError, match=words) as refused:
        run()
    assert "\n" not in str(refused.value)


def test_a_report_of_an_answer_shows_the_attention_between_its_parts():
    record = generate_record(talker(), tokenizer(), MESSAGES, COUNT)
    report = Report({"text": record})
    assert "span_mass" in report.figures and len(report.tables["spans"]) == 16
    cells = figures.span_mass.describe(record).panels[0].marks[0].cells
    np.testing.assert_allclose(cells, span_mass(record).mean(["layer", "head"]))


def test_spans_of_a_chat_can_be_set_beside_others():
    words = tokenizer()
    record = generate_record(talker(), words, MESSAGES, COUNT)
    again = Spans.of_labels(record.span.values[0])
    assert again.labels(record.sizes["token"]) == record.span.values[0].tolist()
