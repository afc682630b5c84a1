"""Canvases over synthetic attention, as a notebook would hold them; ``CELLS`` are its cells."""

DATA = '''
import numpy as np
from IPython.display import display
from sinkscope.explorer.canvases import Atlas, HeadMap, Losses, TokenText

LENGTH, LAYERS, HEADS, SIDE, SINKS = 64, 4, 5, 32, 4
HOSTILE = "<img src=x onerror=\\"globalThis.wasRun = true\\">"
words = "the quick brown fox jumps over a lazy dog and runs away".split()
tokens = ["<s>", HOSTILE, "\\n", "\\t"] + [" " + words[i % len(words)] for i in range(LENGTH - 4)]
tokens[20] = ".\\n"
tokens[30] = "\\u202eevil"

def probabilities(unit):
    """Softmax over logits with a sink at key 0 and, per head, a distance it looks back to."""
    query, key = np.mgrid[:LENGTH, :LENGTH]
    logits = 4.0 * (key == 0) - 0.5 * np.abs(query - key - unit % 7) + 0.3 * np.sin(query * key)
    logits[key > query] = -np.inf
    weights = np.exp(logits)
    return weights / weights.sum(-1, keepdims=True), logits

def on_scale(values):
    """1 to 255 along log10 from -5 to 0."""
    with np.errstate(divide="ignore"):
        return np.clip(np.round(1 + 254 * (np.log10(values) + 5) / 5), 1, 255).astype(np.uint8)

requests = iter(range(1, 10**6))
attention = [probabilities(unit) for unit in range(LAYERS * HEADS)]
'''

ATLAS = """
atlas = Atlas()
scores = [float(p[:, 0].mean()) for p, _ in attention]

def fill_atlas(caption="dense"):
    small = np.stack([p.reshape(SIDE, 2, SIDE, 2).max((1, 3)) for p, _ in attention])
    labels = [f"layer {layer}, head {head}" for layer in range(LAYERS) for head in range(HEADS)]
    with atlas.hold_sync():
        atlas.pixels = on_scale(small).tobytes()
        atlas.frame = {
            "side": SIDE, "labels": labels, "places": [[unit // HEADS, unit % HEADS] for unit in range(LAYERS * HEADS)],
            "columns": HEADS, "request": next(requests), "caption": caption,
        }
        atlas.order = list(range(LAYERS * HEADS))
        atlas.scores, atlas.score_name = scores, "sink mass"

fill_atlas()
"""

MAP = """
head_map = HeadMap(tokens=tokens, query=40)
asked, hovers, answers_held, tiles_held = [], [], False, False

def send_tile(caption="dense", preview="", unit=None):
    q0, q1, k0, k1 = head_map.view or [0, LENGTH, 0, LENGTH]
    p, _ = attention[atlas.selected if unit is None else unit]
    whole = np.where(np.tri(LENGTH, dtype=bool), on_scale(p), 0).astype(np.uint8)
    with head_map.hold_sync():
        head_map.pixels, head_map.sinks = whole[q0:q1, k0:k1].tobytes(), whole[q0:q1, :SINKS].tobytes()
        head_map.frame = {
            "rows": q1 - q0, "cols": k1 - k0, "query": [q0, q1], "key": [k0, k1], "sinks": [0, SINKS],
            "length": LENGTH,
            "low": -5, "high": 0, "scale": "log", "unit": "log10 probability", "diverging": False,
            "request": next(requests), "caption": f"{caption}, head {atlas.selected}", "preview": preview,
        }

def view_changed(change):
    if change.new:
        asked.append(change.new)
    if not tiles_held:
        send_tile()

def answer(question):
    p, logits = attention[atlas.selected]
    q, k = question["query"], question["key"]
    head_map.answer(question, *((None, None) if k > q else (p[q, k], logits[q, k])))

def heard(_, question, buffers):
    hovers.append(question)
    if not answers_held:
        answer(question)

head_map.observe(view_changed, "view")
head_map.on_msg(heard)
send_tile()
"""

TEXT = """
token_text = TokenText(tokens=tokens, query=40)

def send_row(caption="dense"):
    p, _ = attention[atlas.selected]
    row = np.where(np.arange(LENGTH) <= token_text.query, p[token_text.query], np.nan)
    with token_text.hold_sync():
        token_text.values = row.astype("<f4").tobytes()
        token_text.frame = {
            "query": token_text.query, "scale": "log", "unit": "probability", "low": -5, "high": 0,
            "request": next(requests), "caption": f"{caption}, query {token_text.query}",
        }

send_row()

losses = Losses(tokens=tokens, query=40)

def send_losses(curves=2, caption="window 12"):
    rng = np.random.default_rng(0)
    shown = rng.gamma(2, 2, (curves, LENGTH)).astype("<f4")
    shown[:, 0] = shown[-1, 5::7] = np.nan
    with losses.hold_sync():
        losses.values = shown.tobytes()
        losses.frame = {
            "names": ["dense", caption, "third", "fourth"][:curves], "length": LENGTH, "smooth": 16,
            "request": next(requests), "caption": caption,
        }

send_losses()

def head_changed(_):
    send_tile()
    send_row()

def query_changed(change):
    head_map.query = token_text.query = losses.query = change.new
    send_row()

atlas.observe(head_changed, "selected")
head_map.observe(query_changed, "query")
token_text.observe(query_changed, "query")
losses.observe(query_changed, "query")
"""

SHOW = """
from ipywidgets import HBox, Layout, VBox
head_map.layout.flex = "0 0 480px"
holder = VBox()
display(HBox([head_map, VBox([atlas, token_text, losses], layout=Layout(flex="1 1 0", min_width="0"))]), holder)
"""

CELLS = [DATA + ATLAS + MAP + TEXT, SHOW]
