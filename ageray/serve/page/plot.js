// A face's posterior on an axis of 0 to 100 years, with its age and interval.

const SPACE = "http://www.w3.org/2000/svg";
const OLDEST = 100;
const HIGH = 40;

function part(name, className, attributes) {
  const made = document.createElementNS(SPACE, name);
  made.setAttribute("class", className);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

export function plot(face, bins) {
  const age = (bin) => Math.min(OLDEST, Math.max(0, bins.scale * (bins.first + bin) + bins.shift));
  const top = Math.max(...face.posterior);
  const points = face.posterior.map((share, bin) => `${age(bin).toFixed(2)},${(HIGH - (share / top) * (HIGH - 3)).toFixed(2)}`);
  const made = part("svg", "plot", { viewBox: `0 0 ${OLDEST} ${HIGH}`, preserveAspectRatio: "none", role: "img" });
  made.setAttribute("aria-label", `Probability by age: most likely around ${face.age.toFixed(0)} years`);
  const [low, high] = [face.age_low, face.age_high].map((end) => Math.min(OLDEST, end));
  made.append(
    part("rect", "band", { x: low, y: 0, width: high - low, height: HIGH }),
    part("polygon", "hill", { points: `${age(0)},${HIGH} ${points.join(" ")} ${age(bins.count - 1)},${HIGH}` }),
    part("line", "mark", { x1: Math.min(OLDEST, face.age), x2: Math.min(OLDEST, face.age), y1: 0, y2: HIGH }),
  );
  return made;
}

export function axis() {
  const made = document.createElement("div");
  made.className = "axis";
  made.ariaHidden = "true";
  for (const year of [0, 25, 50, 75, 100]) {
    const tick = document.createElement("span");
    tick.textContent = year;
    made.append(tick);
  }
  return made;
}
