"""report() of what a processor made: models that read images, and encoder-decoders, whole."""

from __future__ import annotations

import wave

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2VLImageProcessor,
    WhisperFeatureExtractor,
)

import sinkscope
from sinkscope import Report, SinkscopeError
from sinkscope.hf.images import thumbnails
from sinkscope.hf.processors import inputs_with_images, inputs_with_sound, load_processor
from sinkscope.hf.tiny import tiny_model
from tests.reporting.byte_tokens import byte_tokenizer
from tests.support.several import ENCODER_DECODERS, build_several, inputs_of, own_maps
from tests.support.zoo import build

BESIDE = "it reads token ids alone, and here they stand beside"
ENCODES = "it reads with an encoder and writes with a decoder"


def reported(model, inputs, **options) -> Report:
    return sinkscope.report(model, None, inputs, progress=False, **options)


@pytest.fixture(scope="module")
def pictured(tmp_path_factory):
    """A directory with a model that reads images and its processor, and a picture."""
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = byte_tokenizer(True)
    tokenizer.add_tokens(["<image>"], special_tokens=True)
    sizes = {"height": 32, "width": 32}
    images = CLIPImageProcessor(size=sizes, crop_size=sizes)
    processor = LlavaProcessor(images, tokenizer, patch_size=8, num_additional_image_tokens=1)
    processor.vision_feature_select_strategy = "default"
    config = build_several("llava").config
    config.text_config.vocab_size = 300
    config.image_token_index = config.image_token_id = tokenizer.convert_tokens_to_ids("<image>")
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    y, x = np.mgrid[:32, :32]
    Image.fromarray(np.stack([8 * x, 8 * y, 0 * x], -1).astype(np.uint8)).save(folder / "picture.png")
    return folder


@pytest.mark.usefixtures("one_format")
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen3_vl", "gemma3", "mllama"])
def test_an_image_is_shown_with_the_part_that_reads_it_and_the_rest_is_left_out_with_its_reason(name, tmp_path):
    made = reported(build_several(name), inputs_of(name))
    assert set(made.records) == {"text", "vision"} | ({"cross"} if name == "mllama" else set())
    own = own_maps(name, inputs_of(name))["vision"][0][0]
    if name != "qwen3_vl":  # whose images stand behind each other in one row
        np.testing.assert_allclose(made.records["vision"].received.sel(layer=0), own.sum(2), atol=5e-5)
    for subject in ("Streaming", "What softmax forces"):
        assert any(note.startswith(f"{subject} was not measured: {BESIDE}") for note in made.notes)
    assert {"image_mass", "visual_sinks"} < set(made.tables) and {"vision_mass", "vision_received"} < set(made.figures)
    row = made.tables["summary"].set_index("quantity").loc["mass on the tokens of images"]
    assert row["value"] == pytest.approx(float(sinkscope.image_mass(made.records["text"]).mean()))
    page = (made.save(tmp_path / "report", progress=False) / "report.html").read_text(encoding="utf-8")
    assert "Images, and other parts of the model" in page
    known = name != "mllama"
    assert ("image_grid" in made.figures) is known
    assert any("where its tokens are in the image is not known" in note for note in made.notes) is not known
    assert any("see each other both ways" in note for note in made.notes) is (name == "gemma3")
    again = Report.open(tmp_path / "report")
    assert again.records["text"].equals(made.records["text"]) and again.headline == made.headline


@pytest.mark.slow
@pytest.mark.parametrize("name", ENCODER_DECODERS)
def test_an_encoder_decoder_is_shown_with_its_encoder_and_its_cross_attention(name):
    given, own = inputs_of(name), own_maps(name, inputs_of(name))
    made = reported(build_several(name), given)
    assert set(made.records) == {"text", "cross", "encoder"} and "of the decoder" in made.headline
    for record, stream in {"text": "decoder", "cross": "cross", "encoder": "encoder"}.items():
        received = made.records[record].received
        for number, (expected,) in own[stream].items():
            np.testing.assert_allclose(received.sel(layer=number), expected.sum(2), atol=1e-4)
    assert {"cross_mass", "cross_received", "encoder_mass", "encoder_received"} < set(made.figures)
    lines = {line.get_gid(): line.get_ydata() for line in made.figures["cross_received"].axes[0].lines}
    alpha = np.mean([expected[0].mean((0, 1)) for (expected,) in own["cross"].values()], 0)
    np.testing.assert_allclose(lines["mean"], alpha, atol=1e-5)
    np.testing.assert_allclose(lines["null"], 1 / len(alpha))
    assert sum(ENCODES in note for note in made.notes) == 2


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bart", "whisper"])
def test_a_decoder_that_is_given_nothing_reads_what_the_model_writes(name):
    model, given = build_several(name), inputs_of(name)
    del given["decoder_input_ids"]
    made = reported(model, given)
    ids = torch.zeros(2, 1).long()
    for _ in range(made.records["text"].sizes["token"] - 1):
        with torch.no_grad():
            ids = torch.cat([ids, model(**given, decoder_input_ids=ids).logits[:, -1:].argmax(-1)], 1)
    np.testing.assert_array_equal(made.records["text"].token_id, ids)
    assert any("what the model itself writes" in note for note in made.notes)


@pytest.mark.slow
def test_the_encoder_of_a_text_model_reads_the_text(tmp_path):
    path, model = tmp_path / "text.txt", build_several("t5")
    path.write_text("In the beginning God created the heaven and the earth. " * 4, encoding="utf-8")
    model.resize_token_embeddings(300)
    made = sinkscope.report(model, byte_tokenizer(False), path, sequences=2, length=40, progress=False)
    assert made.records["encoder"].sizes["token"] == 40 and made.records["cross"].key_length.values.tolist() == [40, 40]
    with pytest.raises(SinkscopeError, match="reads input_features, and no text"):
        sinkscope.report(build_several("whisper"), byte_tokenizer(False), path, progress=False)


@pytest.mark.slow
def test_what_a_tokenizer_made_of_one_text_is_a_text():
    ids = torch.randint(3, 90, (1, 80), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    made = reported(build("llama"), {"input_ids": ids, "attention_mask": mask}, softmax=False)
    np.testing.assert_array_equal(made.records["text"].token_id, ids[:, 5:])
    assert made.notes == ["Streaming was not measured: it needs 128 tokens, and there are 75."]
    both = reported(build("llama"), {"input_ids": ids.reshape(2, 40)})
    assert both.records["text"].sizes["sequence"] == 2
    assert sum("it reads one text, and the report was given 2 at once" in note for note in both.notes) == 2


@pytest.mark.slow
def test_what_is_no_input_of_the_model_is_said():
    with pytest.raises(SinkscopeError, match="reads no pixel_values"):
        reported(build("llama"), inputs_of("llava"))
    with pytest.raises(SinkscopeError, match="give the processor's whole output"):
        reported(build_several("llava"), inputs_of("llava") | {"pixel_values": None})


@pytest.mark.slow
def test_layers_that_share_their_keys_are_shown_as_any_others(tmp_path):
    model, path = tiny_model("gemma4_text+num_kv_shared_layers"), tmp_path / "text.txt"
    model.resize_token_embeddings(300)
    path.write_text("In the beginning God created the heaven and the earth. " * 6, encoding="utf-8")
    given = {"sequences": 2, "length": 64, "softmax": False, "progress": False}
    made = sinkscope.report(model, byte_tokenizer(False), path, **given)
    assert {"perplexity", "ablation"} < set(made.records) and "log_perplexity" in made.figures
    assert made.notes and all("share keys" in note for note in made.notes)  # whose cost cannot be told yet


# --- processors ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_report_from_the_command_line_reads_a_picture(pictured, tmp_path):
    from tests.test_cli import run

    done = run("report", str(pictured), "--image", str(pictured / "picture.png"), "--out", str(tmp_path / "report"))
    assert done.returncode == 0 and f"Streaming was not measured: {BESIDE} pixel_values." in done.stdout
    assert (tmp_path / "report" / "figures" / "image_grid.pdf").is_file()
    text = Report.open(tmp_path / "report").records["text"]
    assert int(text.is_image.sum()) == 16 and "".join(text.token_text.values[0]).endswith("What does this show?")
    y, x = np.mgrid[:32, :32]
    shown = text.picture.values[0, 0].reshape(32, 3, 32, 3).mean((1, 3))
    np.testing.assert_allclose(shown, (x + y) / 62, atol=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--image", "config.json"], "config.json is no image that can be read"),
        (["--image", "nothing.png"], "nothing.png is no image that can be read"),
        (["--audio", "picture.png"], "picture.png is no .wav file that can be read"),
        (["--audio", "a.wav", "--image", "picture.png"], "--audio is read alone"),
    ],
)
def test_files_that_cannot_be_read_are_refused_by_name(pictured, monkeypatch, options, message):
    from sinkscope.cli import app

    monkeypatch.chdir(pictured)
    with pytest.raises(SinkscopeError, match=message):
        app(["report", ".", *options, "--out", "report"], standalone_mode=False)
    assert not (pictured / "report").exists()


def test_a_model_without_a_processor_is_refused(tmp_path):
    build_several("t5").save_pretrained(tmp_path)
    byte_tokenizer(False).save_pretrained(tmp_path)
    model, _ = sinkscope.load(tmp_path)
    with pytest.raises(SinkscopeError, match="has no processor for images or sound"):
        load_processor(model)


def test_a_processor_that_makes_nothing_of_it_says_so(pictured):
    model, _ = sinkscope.load(pictured)
    with pytest.raises(SinkscopeError, match=r"LlavaProcessor makes nothing of 0\.1 seconds of sound"):
        inputs_with_sound(load_processor(model), sound(pictured))
    made = inputs_with_images(load_processor(model), [pictured / "picture.png"] * 2, "both")
    assert made["pixel_values"].shape[0] == 2


def sound(folder):
    with wave.open(str(folder / "sound.wav"), "wb") as file:
        file.setparams((2, 2, 16000, 0, "NONE", ""))
        file.writeframes(np.repeat(np.arange(1600, dtype="<i2"), 2).tobytes())
    return folder / "sound.wav"


def test_a_recording_is_read_with_its_channels_mixed(tmp_path):
    extractor = WhisperFeatureExtractor(feature_size=8, chunk_length=1)
    made = inputs_with_sound(lambda audio, **given: extractor(audio, **given), sound(tmp_path))
    expected = extractor(np.arange(1600, dtype=np.float32) / 2**15, sampling_rate=16000, return_tensors="pt")
    torch.testing.assert_close(made["input_features"], expected["input_features"])


def test_thumbnails_show_the_picture_also_from_patches_in_blocks():
    picture = np.random.default_rng(0).integers(0, 256, (8, 12, 3)).repeat(16, 0).repeat(16, 1).astype(np.uint8)
    processor = Qwen2VLImageProcessor(
        patch_size=8, merge_size=2, min_pixels=16, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    given = processor(Image.fromarray(picture), return_tensors="pt")
    (shown,) = thumbnails(build_several("qwen2_vl"), given)
    grey = picture.mean(-1)
    grey = (grey - grey.min()) / (grey.max() - grey.min())
    expected = torch.nn.functional.interpolate(torch.from_numpy(grey)[None, None], (96, 96), mode="area")[0, 0]
    expected = (expected - expected.min()) / (expected.max() - expected.min())
    np.testing.assert_allclose(shown, expected, atol=0.02)
