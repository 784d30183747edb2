// Photos: chosen or dropped, sent a few at a time, drawn with their faces.

import { alertIn, ask, element } from "./ask.js";
import { axis, plot } from "./plot.js";

const files = document.getElementById("files");
const drop = document.getElementById("drop");
const status = document.getElementById("status");
const results = document.getElementById("results");
const warning = document.getElementById("alert");
const PHOTOS_A_REQUEST = 8; // few, so that the first results show soon
let model = null;
let images = [];

export function showPhotos(about) {
  model = about;
  const { megapixels, body_mib } = about.limits;
  document.getElementById("bounds").textContent = `JPEG, PNG, WebP, TIFF; up to ${megapixels} megapixels and ${body_mib} MiB`;
}

async function score(chosen) {
  if (!model || !chosen.length) return;
  alertIn(warning, "");
  for (let start = 0; start < chosen.length; ) {
    const part = chosen.slice(start, start + Math.min(PHOTOS_A_REQUEST, model.limits.images));
    start += part.length;
    status.textContent = `Looking at ${chosen.length} ${chosen.length === 1 ? "photo" : "photos"} …`;
    const body = new FormData();
    for (const file of part) body.append("images", file, file.name);
    try {
      const answer = await ask("v1/score?posterior=true", { method: "POST", body });
      for (const [number, image] of answer.images.entries()) {
        images.push(image);
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
  const faces = images.reduce((sum, image) => sum + image.faces.length, 0);
  const many = (count, noun) => `${count} ${noun}${count === 1 ? "" : "s"}`;
  status.textContent = images.length ? `${many(faces, "face")} in ${many(images.length, "photo")}` : "";
  document.getElementById("actions").hidden = !images.length;
}

async function card(image, file) {
  const article = element("article", "card");
  const stage = element("div", "stage");
  const about = element("div", "about");
  about.append(element("h2", "", image.name));
  if (image.error) about.append(element("p", "failed", image.error));
  const list = element("ul", "plain");
  for (const face of image.faces) list.append(row(face));
  about.append(list);
  const canvas = image.width && !image.error?.startsWith("too large") ? await picture(image, file) : null;
  stage.append(canvas || element("p", "soft", "no picture"));
  article.append(stage, about);
  return article;
}

function row(face) {
  const entry = element("li", "face");
  entry.append(element("span", "number", String(face.face + 1)));
  if (face.error) {
    entry.append(element("p", "failed", face.error));
    return entry;
  }
  const words = element("div");
  const years = element("b", "", face.age.toFixed(0));
  years.append(element("small", "", " years"));
  words.append(years, element("span", "range", `90 %: ${face.age_low.toFixed(0)} to ${face.age_high.toFixed(0)}`));
  words.append(element("small", "soft", reasons(face)));
  const side = element("div");
  side.append(plot(face, model.bins), axis());
  entry.append(words, side);
  return entry;
}

// What an age check says, and why an interval is wide.
function reasons(face) {
  const parts = [];
  if (face.over_18 !== null) parts.push(`over 18: ${(100 * face.over_18).toFixed(0)} %`);
  if (face.quality !== null && face.quality < 0.7) parts.push("poor picture");
  if (face.unusual !== null && face.unusual > 1) parts.push("unusual face");
  return parts.join(" · ");
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
  const labelWidth = pen.measureText(text).width + unit;
  const left = Math.max(0, Math.min(x0, width - labelWidth));
  const top = Math.max(0, y0 - 1.6 * unit);
  pen.fillStyle = "#fff";
  pen.fillRect(left, top, labelWidth, 1.5 * unit);
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
  const columns = ["image", "face", "x0", "y0", "x1", "y1", "detection", "age", "age_low", "age_high", "error",
    "quality", "unusual", "over_18", "over_25"];
  const rows = images.flatMap((image) =>
    image.faces.length
      ? image.faces.map((face) =>
          [image.name, face.face, ...(face.box ?? ["", "", "", ""]), face.detection, face.age, face.age_low, face.age_high, face.error,
            face.quality, face.unusual, face.over_18, face.over_25])
      : [[image.name, -1, "", "", "", "", "", "", "", "", image.error, "", "", "", ""]]);
  return [columns, ...rows].map((row) => row.map(cell).join(",")).join("\r\n") + "\r\n";
}

files.addEventListener("change", () => score([...files.files]));
for (const name of ["dragenter", "dragover"]) drop.addEventListener(name, (event) => { event.preventDefault(); drop.classList.add("over"); });
for (const name of ["dragleave", "drop"]) drop.addEventListener(name, () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => { event.preventDefault(); score([...event.dataTransfer.files]); });
document.getElementById("csv").addEventListener("click", () => save("ages.csv", "text/csv", csv()));
document.getElementById("json").addEventListener("click", () => save("ages.json", "application/json", JSON.stringify(images, null, 1)));
document.getElementById("clear").addEventListener("click", () => { images = []; results.replaceChildren(); alertIn(warning, ""); summarize(); files.focus(); });
