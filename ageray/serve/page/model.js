// The model's card as rows. Its tables (errors by decade) are only in the JSON.

import { element } from "./ask.js";

function* rows(values, prefix = "") {
  for (const [key, value] of Object.entries(values)) {
    const name = prefix + key.replaceAll("_", " ");
    if (value === null || value === "") continue;
    if (Array.isArray(value)) {
      if (!value.some((item) => typeof item === "object")) yield [name, value.join(", ")];
    } else if (typeof value === "object") yield* rows(value, `${name}: `);
    else yield [name, typeof value === "number" ? String(+value.toPrecision(4)) : String(value)];
  }
}

export function showModel(model) {
  const { not_good_for: limits, what, ...card } = model.card;
  document.getElementById("model-what").textContent = what || "";
  const list = [limits || []].flat().map((limit) => element("li", "", limit));
  document.getElementById("limits-list").replaceChildren(...list);
  document.getElementById("limits").hidden = !list.length;
  const about = { name: model.name, identity: model.identity, network: model.network };
  const parts = [...rows({ ...about, ...card })].flatMap(([name, text]) => [element("dt", "", name), element("dd", "", text)]);
  document.getElementById("card").replaceChildren(...parts);
}
