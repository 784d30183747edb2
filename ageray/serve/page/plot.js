// The posterior of a face from 0 to 100 years, with its age and its 90 % interval.

const SPACE = "http://www.w3.org/2000/svg";
const OLDEST = 100;
const HEIGHT = 40;

function part(name, className, attributes) {
  const node = document.createElementNS(SPACE, name);
  node.setAttribute("class", className);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  return node;
}

export function plot(face, bins) {
  const age = (bin) => Math.min(OLDEST, Math.max(0, bins.scale * (bins.first + bin) + bins.shift));
  const top = Math.max(...face.posterior);
  const points = face.posterior.map((share, bin) => `${age(bin).toFixed(2)},${(HEIGHT - (share / top) * (HEIGHT - 3)).toFixed(2)}`);
  const svg = part("svg", "plot", { viewBox: `0 0 ${OLDEST} ${HEIGHT}`, preserveAspectRatio: "none", role: "img" });
  svg.setAttribute("aria-label", `Probability by age: most likely around ${face.age.toFixed(0)} years`);
  const [low, high] = [face.age_low, face.age_high].map((end) => Math.min(OLDEST, end));
  svg.append(
    part("rect", "band", { x: low, y: 0, width: high - low, height: HEIGHT }),
    part("polygon", "hill", { points: `${age(0)},${HEIGHT} ${points.join(" ")} ${age(bins.count - 1)},${HEIGHT}` }),
    part("line", "mark", { x1: Math.min(OLDEST, face.age), x2: Math.min(OLDEST, face.age), y1: 0, y2: HEIGHT }),
  );
  return svg;
}

export function axis() {
  const line = document.createElement("div");
  line.className = "axis";
  line.ariaHidden = "true";
  for (const year of [0, 25, 50, 75, 100]) {
    const tick = document.createElement("span");
    tick.textContent = year;
    line.append(tick);
  }
  return line;
}
