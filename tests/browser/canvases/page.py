"""What a user can point at on the page of the three canvases."""

from __future__ import annotations


def settle(notebook):
    """Wait until the canvases show the last frames that Python sent."""
    for widget, name in (("atlas", "atlas"), ("head_map", "map"), ("token_text", "text"), ("losses", "losses")):
        notebook.drawn(canvas(notebook, name), request=notebook.python(f"{widget}.frame['request']"))


def canvas(notebook, name):
    return notebook.page.locator(f".sinkscope-{name} canvas").first


def tip(notebook, name):
    return notebook.page.locator(f".sinkscope-{name} .sinkscope-tip").first


def token(notebook, place):
    return notebook.page.locator(".sinkscope-text .sinkscope-token").nth(place)


def hover(notebook, query, key):
    canvas(notebook, "map").hover(position=notebook.place_of_cell(canvas(notebook, "map"), query, key))


def wait_for_text(locator, text):
    locator.filter(has_text=text).wait_for()


def probability_of(notebook, query, key, unit=0):
    return notebook.python(f"float(attention[{unit}][0][{query}, {key}])")


def map_view(notebook, request=None):
    return notebook.drawn(canvas(notebook, "map"), request=request).view


def written(notebook, name):
    return [text for text, _ in canvas(notebook, name).evaluate("c => c.written")]


def place_of_token(notebook, place):
    """A point of the chart of the losses over a token."""
    box = canvas(notebook, "losses").bounding_box()
    return {"x": 40 + (box["width"] - 48) * (place + 0.5) / 64, "y": 40}
