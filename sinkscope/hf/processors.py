"""Processors, which make a model's inputs of images, sound and text."""

from __future__ import annotations

import os
import wave
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import AutoProcessor, ProcessorMixin

from sinkscope.errors import SinkscopeError, first_line
from sinkscope.hf.models import quiet_transformers, setting


def load_processor(model: Any, revision: str | None = None, trust_remote_code: bool = False) -> Any:
    """The processor beside a loaded model, which makes its inputs of images, sound and text.

    Raises:
        SinkscopeError: there is none, or it cannot be loaded here.
    """
    place = str(setting(model, "name_or_path") or "")
    chosen = {"revision": revision} if revision else {}
    try:
        with quiet_transformers():
            processor = AutoProcessor.from_pretrained(place, trust_remote_code=trust_remote_code, **chosen)
    except Exception as error:
        raise SinkscopeError(f"The processor of {place} cannot be loaded ({first_line(error)}).") from error
    if not isinstance(processor, ProcessorMixin):
        raise SinkscopeError(
            f"{place} has no processor for images or sound beside its tokenizer: give a model that reads them.",
            page="An image model, an encoder-decoder",
        )
    return processor


def inputs_with_images(processor: Any, paths: Sequence[str | os.PathLike[str]], text: str) -> Any:
    """What a processor makes of images in files and the words behind them, as one turn of a chat where it has one.

    Raises:
        SinkscopeError: a file that is no image, or a processor that cannot make inputs of these.
    """
    from PIL import Image

    pictures = []
    for path in paths:
        try:
            with Image.open(path) as opened:
                pictures.append(opened.convert("RGB"))
        except (OSError, ValueError) as error:
            raise SinkscopeError(f"{os.fspath(path)} is no image that can be read: {first_line(error)}.") from error
    try:
        if getattr(processor, "chat_template", None):
            parts = [*({"type": "image"} for _ in pictures), {"type": "text", "text": text}]
            turn = [{"role": "user", "content": parts}]
            text = processor.apply_chat_template(turn, add_generation_prompt=True, tokenize=False)
        else:
            mark = getattr(processor, "boi_token", None) or getattr(processor, "image_token", "")
            text = f"{mark}\n" * len(pictures) + text
        return processor(images=pictures, text=[text], return_tensors="pt")
    except Exception as error:  # whatever the code of any processor may raise
        raise _made_nothing(processor, f"{len(pictures)} images and a text", error) from error


def inputs_with_sound(processor: Any, path: str | os.PathLike[str]) -> Any:
    """What a processor makes of a recording in a .wav file (PCM of 16 bits), its channels mixed.

    Raises:
        SinkscopeError: another file, or a processor that cannot make inputs of it.
    """
    try:
        with wave.open(os.fspath(path), "rb") as opened:
            width, channels, rate = opened.getsampwidth(), opened.getnchannels(), opened.getframerate()
            frames = opened.readframes(opened.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise SinkscopeError(f"{os.fspath(path)} is no .wav file that can be read: {first_line(error)}.") from error
    if width != 2:
        raise SinkscopeError(f"{os.fspath(path)} has samples of {8 * width} bits; give a .wav file of 16.")
    sound = np.frombuffer(frames, dtype="<i2").reshape(-1, channels).mean(1, dtype=np.float32) / 2**15
    try:
        made = processor(audio=sound, sampling_rate=rate, return_tensors="pt")
        if not made:
            raise ValueError("it reads no sound")
        return made
    except Exception as error:  # whatever the code of any processor may raise
        raise _made_nothing(processor, f"{len(sound) / rate:.1f} seconds of sound", error) from error


def _made_nothing(processor: Any, given: str, error: Exception) -> SinkscopeError:
    return SinkscopeError(
        f"{type(processor).__name__} makes nothing of {given} ({first_line(error)}); call it yourself, and give "
        "sinkscope.report what it makes."
    )
