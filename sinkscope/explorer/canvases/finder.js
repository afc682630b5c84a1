// Goes to a head by number, and to a token by its place or by a part of the text.

export default {
  render({ model, el }) {
    const life = lifetime();
    el.classList.add("sinkscope", "sinkscope-finder");
    const finder = { model, life, ...buildFinder(el) };
    life.follow(model, ["change:selected", "change:places"], () => tellHead(finder));
    life.follow(model, ["change:tokens"], () => (finder.status.textContent = ""));
    onEnter(finder, finder.head, () => goToHead(finder));
    onEnter(finder, finder.token, (back) => goToToken(finder, back ? -1 : 1));
    for (const [button, direction] of [[finder.before, -1], [finder.next, 1]]) {
      keepKeys(life, button, () => false);
      life.on(button, "click", () => goToToken(finder, direction));
    }
    tellHead(finder);
    return () => {
      life.end();
      el.classList.remove("sinkscope", "sinkscope-finder");
    };
  },
};

function buildFinder(root) {
  const field = (name, told, size) => {
    const label = element("label", "sinkscope-choice", root, `${name} `);
    const input = element("input", "sinkscope-field", label);
    input.type = "text";
    input.size = size;
    input.title = told;
    input.setAttribute("aria-description", told);
    input.spellcheck = false;
    return input;
  };
  const head = field("go to head", "the numbers of a layer and a head, such as 3.5; Enter goes there", 7);
  const told = 'a part of the text, or the number of a token; digits of the text stand in quotes, "12"; Enter finds the next, Shift+Enter the previous one';
  const token = field("find token", told, 16);
  const button = (name, label) => {
    const made = element("button", "sinkscope-button", root, name);
    made.type = "button";
    made.title = label;
    made.setAttribute("aria-label", label);
    return made;
  };
  const [before, next] = [button("‹", "previous token found"), button("›", "next token found")];
  const status = element("span", "sinkscope-faint", root);
  status.setAttribute("role", "status");
  return { head, token, before, next, status };
}

function onEnter({ life }, input, go) {
  keepKeys(life, input, (event) => {
    if (event.key !== "Enter") return false;
    go(event.shiftKey);
    return true;
  });
}

function tellHead({ model, head }) {
  const place = model.get("places")[model.get("selected")];
  head.placeholder = place ? place.join(".") : "";
}

function choice(finder, name, value) {
  finder.model.set(name, value);
  finder.model.save_changes();
}

function goToHead(finder) {
  const { model, head, status } = finder;
  const places = model.get("places");
  const numbers = (head.value.match(/\d+/g) ?? []).map(Number);
  const unit = places.findIndex(([layer, own]) => numbers.length === 2 && layer === numbers[0] && own === numbers[1]);
  if (unit >= 0) {
    choice(finder, "selected", unit);
    [head.value, status.textContent] = ["", `layer ${numbers[0]}, head ${numbers[1]}`];
    return;
  }
  const highest = (part) => places.reduce((most, place) => Math.max(most, place[part]), 0);
  const there = `layers end at ${highest(0)} and heads at ${highest(1)}`;
  status.textContent = places.length ? `no such head: give two numbers, such as 0.0; ${there}` : "the text is still being read";
}

// The places of tokens in which a part of the text begins, case aside; or of the token of a number.
function placesOf(tokens, asked) {
  if (/^#?\d+$/.test(asked)) {
    const place = Number(asked.replace("#", ""));
    return place < tokens.length ? [place] : [];
  }
  const sought = (/^".+"$/.test(asked) ? asked.slice(1, -1) : asked).toLowerCase();
  const small = tokens.map((token) => token.toLowerCase());
  const [text, owner] = [small.join(""), small.flatMap((token, place) => Array(token.length).fill(place))];
  const found = new Set();
  if (!sought) return [];
  for (let at = text.indexOf(sought); at >= 0; at = text.indexOf(sought, at + 1)) found.add(owner[at]);
  return [...found];
}

function goToToken(finder, direction) {
  const { model, token, status } = finder;
  const [tokens, query] = [model.get("tokens"), model.get("query")];
  const places = placesOf(tokens, token.value.trim() || token.value);
  if (!places.length) {
    status.textContent = token.value ? `not found: ${visible(token.value, 40)}; tokens are 0 to ${tokens.length - 1}` : "";
    return;
  }
  const beyond = direction > 0 ? places.find((place) => place > query) : places.findLast((place) => place < query);
  const place = beyond ?? places.at(direction > 0 ? 0 : -1);
  choice(finder, "query", place);
  status.textContent = `${places.indexOf(place) + 1} of ${places.length}: token ${place} ${visible(tokens[place], 20)}`;
}
