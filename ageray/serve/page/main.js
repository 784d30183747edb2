// Tabs, the form for the key, and the request for the model, which all sections need.

import { alertIn, ask, useKey } from "./ask.js";
import { showBatches, watchBatches } from "./batches.js";
import { showModel } from "./model.js";
import { showPhotos } from "./photos.js";

const tabs = [...document.querySelectorAll("[role=tab]")];
const form = document.getElementById("key-form");

function choose(tab) {
  for (const each of tabs) {
    const chosen = each === tab;
    each.setAttribute("aria-selected", chosen);
    each.tabIndex = chosen ? 0 : -1;
    document.getElementById(each.getAttribute("aria-controls")).hidden = !chosen;
  }
  watchBatches(tab.id === "tab-batches");
}

for (const [number, tab] of tabs.entries()) {
  tab.addEventListener("click", () => choose(tab));
  tab.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    const next = tabs[(number + step + tabs.length) % tabs.length];
    choose(next);
    next.focus();
  });
}

async function begin() {
  try {
    const model = await ask("v1/model");
    form.hidden = true;
    showPhotos(model);
    showBatches(model);
    showModel(model);
  } catch (error) {
    alertIn(document.getElementById("alert"), error.message);
  }
}

document.addEventListener("key-needed", () => {
  form.hidden = false;
  document.getElementById("key").focus();
});
form.addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(document.getElementById("key").value);
  alertIn(document.getElementById("alert"), "");
  begin();
});
begin();
