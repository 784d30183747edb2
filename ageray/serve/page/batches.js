// Scoring jobs: a form starts them; the list is refreshed each second while its tab is open.

import { alertIn, ask, download, element, hasKey } from "./ask.js";

const list = document.getElementById("batch-list");
const form = document.getElementById("batch-form");
const warning = document.getElementById("batch-alert");
let timer = 0;
let open = false;

export function showBatches(model) {
  form.hidden = !model.batches;
  document.getElementById("batch-off").hidden = model.batches;
}

export function watchBatches(visible) {
  open = visible;
  clearTimeout(timer);
  if (open) refresh();
}

async function refresh() {
  clearTimeout(timer);
  try {
    const answer = await ask("v1/batches");
    document.getElementById("input-hint").textContent = `below ${answer.inputs.join(", ")}`;
    document.getElementById("out-hint").textContent = `below ${answer.outputs.join(", ")}`;
    draw(answer.batches);
  } catch (error) {
    alertIn(warning, error.message);
  }
  if (open) timer = setTimeout(refresh, 1000);
}

function draw(batches) {
  const focused = document.activeElement?.dataset?.job;
  list.replaceChildren(...batches.map(item));
  if (focused) list.querySelector(`[data-job="${CSS.escape(focused)}"]`)?.focus();
  const running = batches.filter((job) => job.state === "running").length;
  const summary = `${batches.length} batches, ${running} running`;
  const status = document.getElementById("batch-status");
  if (status.textContent !== summary) status.textContent = summary;
}

function item(job) {
  const entry = element("li", "panel job");
  const top = element("div", "row");
  top.append(element("span", `state ${job.state}`, job.state), element("code", "", job.out));
  entry.append(top, element("p", "soft", `from ${job.input}, submitted ${job.submitted.replace("T", " ").replace("Z", " UTC")}`));
  if (job.progress) entry.append(bar(job), element("p", "soft", figures(job)));
  if (job.files.length) entry.append(links(job));
  if (job.message) entry.append(element("p", "failed", job.message));
  if (job.state === "running" || job.state === "waiting") {
    const stop = element("button", "button", "Cancel");
    stop.dataset.job = job.id;
    stop.setAttribute("aria-label", `Cancel ${job.out}`);
    stop.addEventListener("click", () => send(`v1/batches/${encodeURIComponent(job.id)}/cancel`));
    entry.append(stop);
  }
  return entry;
}

const words = { "_report.html": "Page", "_summary.json": "Summary", "errors.parquet": "Errors" };

function links(job) {
  const row = element("p", "row");
  for (const file of job.files) {
    const link = element("a", "", words[file] || file);
    link.href = `v1/batches/${encodeURIComponent(job.id)}/files/${encodeURIComponent(file)}`;
    link.target = "_blank";
    link.rel = "noopener";
    link.dataset.job = `${job.id}/${file}`;
    link.addEventListener("click", (event) => {
      if (!hasKey()) return; // a link cannot send a key
      event.preventDefault();
      download(link.getAttribute("href"), file).catch((error) => alertIn(warning, error.message));
    });
    row.append(link);
  }
  return row;
}

function bar(job) {
  const progress = element("progress");
  progress.setAttribute("aria-label", `Progress of ${job.out}`);
  if (job.progress.total !== null) {
    progress.max = Math.max(1, job.progress.total);
    progress.value = job.progress.done;
  }
  return progress;
}

function figures({ progress, state }) {
  const number = (value) => value.toLocaleString("en");
  const parts = [`${number(progress.done)}${progress.total === null ? "" : ` of ${number(progress.total)}`} images`];
  parts.push(`${number(progress.faces)} faces`, `${number(progress.errors)} without a face`);
  if (progress.images_per_second) parts.push(`${progress.images_per_second.toFixed(1)} images/s`);
  if (state === "running" && progress.seconds_left !== null) parts.push(`${Math.ceil(progress.seconds_left)} s left`);
  return parts.join(" · ");
}

async function send(path, body) {
  alertIn(warning, "");
  try {
    await ask(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: body && JSON.stringify(body) });
    await refresh();
  } catch (error) {
    alertIn(warning, error.message);
  }
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  send("v1/batches", { input: document.getElementById("input").value.trim(), out: document.getElementById("out").value.trim() });
});
