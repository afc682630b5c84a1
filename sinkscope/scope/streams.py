"""Models of several streams of attention: what the whole was called with, and parts that read no tokens.

A model that reads images holds a language model ("text") and a tower of patches ("vision"); an encoder-decoder has an
"encoder", a "decoder", and the decoder's queries on what the encoder made ("cross"). Each is watched on its own, around
one call of the whole.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sinkscope.attention.layer import FusedLayer, Layer
from sinkscope.attention.masks import IndexedMask
from sinkscope.errors import SinkscopeError
from sinkscope.hf.images import Grid, image_grids, image_sizes
from sinkscope.hf.models import core, is_encoder_decoder, is_pretrained, other_states, placeholder_ids, setting
from sinkscope.models.facts import find_streams
from sinkscope.scope.collect import Text
from sinkscope.scope.watch import Scores
from sinkscope.undo import Undo


class Told(threading.local):
    """What the models around a base were called with in this thread: the base may get only what they made of it.

    Attributes:
        is_called: whether such a call is under way.
        ids: its "input_ids"; None without.
        mask: its "attention_mask", of any kind; None without.
        grids: of its images, in their order.
    """

    def __init__(self) -> None:
        self.is_called = False
        self.ids: Any = None
        self.mask: Any = None
        self.grids: list[Grid] = []

    def __reduce__(self) -> Any:
        return Told, ()  # beside a copy of its model nothing was told yet

    def watch(self, model: nn.Module, base: nn.Module, undo: Undo) -> None:
        """Listen to the models around `base`. An encoder-decoder gives its decoder tokens of its own."""
        if is_encoder_decoder(model):
            return
        for module in models_around(base, model):
            undo.hang(module, self._listen, before=True, with_kwargs=True)
            undo.hang(module, self._forget, always_call=True)

    def _listen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = arguments_of(module, args, kwargs) if args else kwargs
        if not self.is_called:  # the outermost
            self.is_called, self.ids, self.mask = True, given.get("input_ids"), given.get("attention_mask")
            self.grids = image_grids(module, given)

    def _forget(self, *_: Any) -> None:
        self.is_called, self.ids, self.mask, self.grids = False, None, None, []

    def completed(self, given: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the base, with the ids of what it got as embeddings and the padding before it."""
        heard: dict[str, Any] = {}
        embedded, ids = given.get("inputs_embeds"), self.ids
        if isinstance(embedded, Tensor) and isinstance(ids, Tensor) and ids.shape == embedded.shape[:2]:
            heard["input_ids"] = ids
        if not is_padding(given.get("attention_mask")) and is_padding(self.mask):
            heard["attention_mask"] = self.mask
        return given | heard

    def mask_of(self, given: dict[str, Any]) -> Any:
        """The mask of the base; that of the whole, where the base gets what this made of it."""
        mask = given.get("attention_mask")
        return self.mask if self.is_called and not is_padding(mask) else mask


def models_around(base: nn.Module, model: nn.Module) -> list[nn.Module]:
    """The models inside `model`, itself too, that run `base`."""
    return [
        each for each in model.modules() if each is not base and is_pretrained(each) and base in set(each.modules())
    ]


def is_padding(mask: Any) -> bool:
    """Whether a mask is one [batch, token] that says which tokens are padding."""
    return isinstance(mask, Tensor) and mask.dim() == 2


def arguments_of(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a call of a module, by name."""
    given = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
    return given | given.pop("kwargs", {})


def reads_tokens(base: Any) -> bool:
    """Whether a model reads tokens, or their embeddings."""
    return not {"input_ids", "inputs_embeds"}.isdisjoint(inspect.signature(base.forward).parameters)


@dataclass
class TowerPass:
    """A forward pass of a model that reads no tokens: its texts are images (or sounds), its tokens their patches.

    Where several images stand behind each other in one row, each is a text of its own. What a tower splits further, as
    windows of an image, is one image all the same.
    """

    lengths: list[int] | None  # patches of each image in one row; None where rows are images, or nothing says
    masks: list[Tensor]  # booleans [image, patch] that may say what is padding
    images: int | None  # how many there are; None where nothing says
    texts: list[Text] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)  # patches of each text
    cache: None = None
    past: int = 0

    @property
    def scores(self) -> Scores:
        """What the scores of its layers look like."""
        return Scores(1 if self.images is None else self.images, None, 0)

    def check(self, layer: Layer, name: str) -> None:
        """Raise SinkscopeError where rows of attention are no images, but windows of them."""
        keys, read = (
            layer.length - layer.key_start,
            "" if self.images is None else f", while it reads {self.images} images",
        )
        in_windows = self.lengths is None and self.images is not None and len(layer.lse) != self.images
        if in_windows or layer.rows != keys:
            raise SinkscopeError(
                f"{name} attends from {len(layer.lse)} x {layer.rows} queries to {keys} keys{read}, so which patch is "
                "which cannot be told (attention in windows, or at another resolution); measure its maps elsewhere and "
                "use sinkscope.from_maps."
            )

    def split(self, *layers: Layer) -> Iterator[tuple[list[Text], Layer]]:
        """The images with what one attention module did for them, in one call or in several."""
        images = self._images(layers)
        rows = [(number, row) for number, image in enumerate(images) for row in range(len(image.lse))]
        if not self.texts:
            self.texts = [Text(start=0) for _ in rows]
            self.counts = [images[number].rows for number, _ in rows]
        if len(rows) != len(self.texts):
            raise SinkscopeError(
                f"attention in this tower of patches ran for {len(rows)} images in one layer and {len(self.texts)} in "
                "another, which cannot be told apart; give one image at a time."
            )
        done = 0
        for image in images:
            texts = self.texts[done : done + len(image.lse)]
            real = next((mask for mask in self.masks if mask.shape == (len(texts), image.rows)), None)
            if real is None or bool(real.all()):
                yield texts, image
            else:
                for batch, kept in enumerate(real):
                    places = kept.nonzero().flatten()
                    self.counts[done + batch] = len(places)
                    yield [texts[batch]], image.part(batch, places, places)
            done += len(texts)

    def _images(self, layers: tuple[Layer, ...]) -> list[Layer]:
        """One layer for each image that the calls of attention were about."""
        if len(layers) == 1 and self.lengths is not None and len(self.lengths) > 1:
            return _apart(layers[0], self.lengths)
        ends = np.cumsum([layer.rows for layer in layers]).tolist()
        if len(layers) == 1 or self.lengths is None or self.lengths == [layer.rows for layer in layers]:
            return list(layers)
        images: list[Layer] = []
        first = 0
        for stop in np.cumsum(self.lengths).tolist():
            if stop not in ends:
                return list(layers)
            last = ends.index(stop) + 1
            images.append(_side_by_side(layers[first:last]))
            first = last
        return images

    def split_hidden(self, hidden: Tensor) -> Iterator[tuple[list[Text], Tensor]]:
        """Hidden states of each image: of rows that are images, or of several in one row."""
        flat = hidden if hidden.dim() == 2 else hidden[0] if len(hidden) == 1 else None
        if flat is not None and len(flat) == sum(self.counts):
            for text, part in zip(self.texts, flat.split(self.counts), strict=True):
                yield [text], part[None]
        elif hidden.dim() == 3 and len(hidden) == len(self.texts) and {hidden.shape[1]} == set(self.counts):
            yield self.texts, hidden

    def commit(self, caches: Any, output: Any) -> None:
        """Count the patches of a forward pass that finished."""
        if not self.texts:  # no attention was seen
            self.texts, self.counts = [Text(start=0)], [0]
        for text, count in zip(self.texts, self.counts, strict=True):
            text.token_ids.append(np.full(count, -1))
            text.tokens += count


def _side_by_side(layers: tuple[Layer, ...]) -> Layer:
    """Calls of attention for parts of one text as one, in which each part sees itself."""
    if len(layers) == 1:
        return layers[0]
    fused = [layer for layer in layers if isinstance(layer, FusedLayer) and layer.value is not None]
    if len(fused) < len(layers) or any(
        bool((~layer.mask.seen(slice(0, layer.rows), layer.rows).eq(layer.rows)).any()) for layer in fused
    ):
        raise SinkscopeError(
            "attention ran several times for one image, under masks of its own, and is not put together here; measure "
            "the maps elsewhere and use sinkscope.from_maps."
        )
    owner = torch.repeat_interleave(torch.arange(len(fused)), torch.tensor([layer.rows for layer in fused])).to(
        fused[0].lse.device
    )
    places = torch.arange(len(owner), device=owner.device)
    joined: dict[str, Any] = {
        name: torch.cat([getattr(layer, name) for layer in fused], 2)
        for name in ("lse", "query", "key", "value", "output")
    }
    mask = IndexedMask(lambda batch, head, query, key: owner[query] == owner[key], torch.arange(1), places, places)
    return replace(fused[0], mask=mask, **joined)


def _apart(row: Layer, lengths: list[int]) -> list[Layer]:
    """The images that stand behind each other in one row, where each looks at itself alone; else the row."""
    if len(row.lse) > 1 or row.rows != sum(lengths):
        return [row]
    owner = torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))
    places = [(owner == number).nonzero().flatten().to(row.lse.device) for number in range(len(lengths))]
    images, seen = [row.part(0, place, place) for place in places], row.keys_seen()
    alone = all(
        bool((image.keys_seen() == seen[..., place]).all()) for image, place in zip(images, places, strict=True)
    )
    return images if alone else [row]


def read_tower(base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TowerPass:
    """Read the arguments of a forward pass of a model that reads no tokens.

    A tensor [image, 3] of whole numbers is taken for the sizes of images in patches (time, height, width), if as many
    rows as they have in all were given; attention then looks within one frame. Images padded to one size, with their
    own sizes beside them, are read behind each other in one row.
    """
    given = {name: each for name, each in arguments_of(base, args, kwargs).items() if isinstance(each, Tensor)}
    masks = [each.bool() for name, each in given.items() if name.endswith("attention_mask") and each.dim() == 2]
    rows = {len(each) for each in given.values() if each.is_floating_point()}
    for grid in given.values():
        if grid.dim() == 2 and grid.shape[1] == 3 and not grid.is_floating_point() and int(grid.prod(1).sum()) in rows:
            frames = [height * width for time, height, width in grid.tolist() for _ in range(time)]
            return TowerPass(frames, masks, None)
    pictures = [each for each in given.values() if each.is_floating_point()]
    patch = setting(base, "patch_size")
    for pixels in pictures:
        if isinstance(patch, int) and (sizes := image_sizes(pixels, given)) is not None:  # pixtral: in one row
            return TowerPass([(height // patch) * (width // patch) for height, width in sizes], masks, None)
    return TowerPass(None, masks, next((len(each) for each in pictures if each.dim() in (3, 4)), None))


def check_given(model: Any, base: Any, given: Mapping[str, Any], moving: str | None) -> None:
    """Raise SinkscopeError for arguments that cannot be followed.

    That is states to attend to, given to a model in which no attention to them was found, and positions in several
    dimensions beside a policy that moves keys.

    Args:
        model, base: the whole, and the part of it that is called.
        given: its arguments, by name.
        moving: the name of such a policy, where there is one.
    """
    other = other_states(dict(given))
    if other is not None and not any(stream.crosses for stream in find_streams(model).values()):
        raise SinkscopeError(
            f"the model was given `{other}` to attend to, and no cross-attention was found in {type(model).__name__}; "
            "leave it out."
        )
    if moving is not None and has_planes(given):
        raise SinkscopeError(
            f"{type(base).__name__} gives the tokens of an image positions in two dimensions, and `{moving}` counts "
            "positions in one; leave the policy or the image out."
        )


def has_planes(given: Mapping[str, Any]) -> bool:
    """Whether tokens are given positions in more than one dimension, as those of an image."""
    positions = given.get("position_ids")
    return isinstance(positions, Tensor) and positions.dim() == 3 and bool((positions != positions[:1]).any())


def _check_rows(ids: Any, mask: Any) -> None:
    """Raise SinkscopeError for token ids that are none, and for a mask of other rows."""
    if ids is None:
        return
    if not isinstance(ids, Tensor) or ids.dim() != 2 or ids.is_floating_point() or not ids.numel():
        given = f"{ids.dtype} {tuple(ids.shape)}" if isinstance(ids, Tensor) else f"a {type(ids).__name__}"
        raise SinkscopeError(
            f"input_ids are {given}; give whole numbers [sequence, token], as the processor makes them."
        )
    if isinstance(mask, Tensor) and mask.dim() == 2 and len(mask) != len(ids):
        raise SinkscopeError(
            f"attention_mask has {len(mask)} rows, and input_ids {len(ids)}; give one of the same processor's output."
        )


def check_inputs(model: Any, inputs: Mapping[str, Any]) -> None:
    """Raise SinkscopeError unless a processor's output is one that a model can read."""
    inner = core(model)  # wrappers hand on whatever they are given
    taken = inspect.signature(inner.forward).parameters
    strange = [name for name in inputs if name not in taken]
    if strange:
        raise SinkscopeError(
            f"{type(inner).__name__} reads no {', '.join(strange)}; give it the output of its own processor, or give "
            "that output to the model it was made for."
        )
    if not any(each is not None for each in inputs.values()):
        raise SinkscopeError(f"there is nothing to read for {type(inner).__name__}; give its processor's output.")
    if lists := [name for name, each in inputs.items() if isinstance(each, (list, tuple, np.ndarray))]:
        raise SinkscopeError(
            f"{lists[0]} is a {type(inputs[lists[0]]).__name__}, and a model reads tensors; call the processor or "
            'tokenizer with return_tensors="pt".'
        )
    if "encoder" in find_streams(model) and not {"decoder_input_ids", "decoder_inputs_embeds", "labels"} & set(inputs):
        raise SinkscopeError(
            f"{type(model).__name__} needs something for its decoder to read; give decoder_input_ids beside "
            f"{', '.join(inputs)}, or capture() a call of generate()."
        )
    ids, marks = inputs.get("input_ids"), placeholder_ids(model)
    _check_rows(ids, inputs.get("attention_mask"))
    if marks and ids is None and not any(name.endswith("embeds") for name in inputs):
        raise SinkscopeError(
            f"{type(inner).__name__} reads text with its images, and there are no input_ids; let the processor make "
            "text and images together.",
            page="An image model, an encoder-decoder",
        )
    pictures = [name for name in inputs if name.startswith("pixel_values") and inputs[name] is not None]
    if not marks or not isinstance(ids, Tensor):
        return
    marked = bool(torch.isin(ids, torch.tensor(marks, device=ids.device)).any())
    if pictures and not marked:
        raise SinkscopeError(
            f"there are images ({', '.join(pictures)}), but no token of the text stands for one (id "
            f"{' or '.join(map(str, marks))}); let the processor make text and images together.",
            page="An image model, an encoder-decoder",
        )
    if marked and not pictures and not any(name.endswith(("features", "embeds", "outputs")) for name in inputs):
        raise SinkscopeError(
            "some tokens of the text stand for an image, but there is none; give the processor's whole output, "
            "pixel_values and all.",
            page="An image model, an encoder-decoder",
        )
