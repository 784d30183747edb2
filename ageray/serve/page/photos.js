// Photos: dropped or chosen, sent a few at a time, drawn with their faces.

import { alertIn, ask, element } from "./ask.js";
import { axis, plot } from "./plot.js";

const files = document.getElementById("files");
const drop = document.getElementById("drop");
const status = document.getElementById("status");
const results = document.getElementById("results");
const warning = document.getElementById("alert");
const AT_ONCE = 8; // photos a request: the first results are there soon
let model = null;
let found = [];

export function showPhotos(about) {
  model = about;
  const { megapixels, body_mib } = about.limits;
  document.getElementById("bounds").textContent = `JPEG, PNG, WebP, TIFF; up to ${megapixels} megapixels and ${body_mib} MiB`;
}

async function score(chosen) {
  if (!model || !chosen.length) return;
  alertIn(warning, "");
  for (let start = 0; start < chosen.length; ) {
    const part = chosen.slice(start, start + Math.min(AT_ONCE, model.limits.images));
    start += part.length;
    status.textContent = `Looking at ${chosen.length} ${chosen.length === 1 ? "photo" : "photos"} …`;
    const body = new FormData();
    for (const file of part) body.append("images", file, file.name);
    try {
      const answer = await ask("v1/score?posterior=true", { method: "POST", body });
      for (const [number, image] of answer.images.entries()) {
        found.push(image);
        results.append(await card(image, part[number]));
      }
    } catch (error) {
      alertIn(warning, error.message);
      break;
    }
  }
  summarize();
  files.value = "";
}

function summarize() {
  const faces = found.reduce((sum, image) => sum + image.faces.length, 0);
  const many = (count, one) => `${count} ${one}${count === 1 ? "" : "s"}`;
  status.textContent = found.length ? `${many(faces, "face")} in ${many(found.length, "photo")}` : "";
  document.getElementById("actions").hidden = !found.length;
}

async function card(image, file) {
  const made = element("article", "card");
  const stage = element("div", "stage");
  const about = element("div", "about");
  about.append(element("h2", "", image.name));
  if (image.error) about.append(element("p", "failed", image.error));
  const list = element("ul", "plain");
  for (const face of image.faces) list.append(row(face));
  about.append(list);
  const canvas = image.width && !image.error?.startsWith("too large") ? await picture(image, file) : null;
  stage.append(canvas || element("p", "soft", "no picture"));
  made.append(stage, about);
  return made;
}

function row(face) {
  const made = element("li", "face");
  made.append(element("span", "number", String(face.face + 1)));
  if (face.error) {
    made.append(element("p", "failed", face.error));
    return made;
  }
  const words = element("div");
  const years = element("b", "", face.age.toFixed(0));
  years.append(element("small", "", " years"));
  words.append(years, element("span", "range", `90 %: ${face.age_low.toFixed(0)} to ${face.age_high.toFixed(0)}`));
  const side = element("div");
  side.append(plot(face, model.bins), axis());
  made.append(words, side);
  return made;
}

async function picture(image, file) {
  const canvas = element("canvas");
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    return null; // a format that the service reads and the browser does not
  }
  const scale = Math.min(1, 1100 / Math.max(image.width, image.height));
  canvas.width = Math.round(image.width * scale);
  canvas.height = Math.round(image.height * scale);
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `${image.name} with ${image.faces.length} faces marked`);
  const pen = canvas.getContext("2d");
  pen.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  bitmap.close();
  for (const face of image.faces) if (face.box) mark(pen, face, scale, canvas.width);
  return canvas;
}

function mark(pen, face, scale, width) {
  const [x0, y0, x1, y1] = face.box.map((side) => side * scale);
  const unit = Math.max(11, width / 48);
  pen.lineWidth = unit / 7;
  pen.strokeStyle = "#fff";
  pen.shadowColor = "#000b";
  pen.shadowBlur = unit / 3;
  pen.strokeRect(x0, y0, x1 - x0, y1 - y0);
  pen.shadowBlur = 0;
  pen.font = `700 ${unit}px system-ui, sans-serif`;
  const text = face.age === null ? `${face.face + 1}` : `${face.face + 1} · ${face.age.toFixed(0)}`;
  const wide = pen.measureText(text).width + unit;
  const left = Math.max(0, Math.min(x0, width - wide));
  const top = Math.max(0, y0 - 1.6 * unit);
  pen.fillStyle = "#fff";
  pen.fillRect(left, top, wide, 1.5 * unit);
  pen.fillStyle = "#171923";
  pen.fillText(text, left + unit / 2, top + 1.1 * unit);
}

function save(name, type, text) {
  const link = element("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function csv() {
  // a name that starts like a formula must not become one in a spreadsheet
  const cell = (value) => `"${String(value ?? "").replace(/^[=+\-@\t\r]/, "'$&").replaceAll('"', '""')}"`;
  const columns = ["image", "face", "x0", "y0", "x1", "y1", "detection", "age", "age_low", "age_high", "error"];
  const rows = found.flatMap((image) =>
    image.faces.length
      ? image.faces.map((face) =>
          [image.name, face.face, ...(face.box ?? ["", "", "", ""]), face.detection, face.age, face.age_low, face.age_high, face.error])
      : [[image.name, -1, "", "", "", "", "", "", "", "", image.error]]);
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

files.addEventListener("change", () => score([...files.files]));
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); score([...event.dataTransfer.files]); });
document.getElementById("csv").addEventListener("click", () => save("ages.csv", "text/csv", csv()));
document.getElementById("json").addEventListener("click", () => save("ages.json", "application/json", JSON.stringify(found, null, 1)));
document.getElementById("clear").addEventListener("click", () => { found = []; results.replaceChildren(); alertIn(warning, ""); summarize(); files.focus(); });
