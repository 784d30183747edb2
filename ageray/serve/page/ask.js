// Requests to the service. Every failure becomes an Error with one line for people.

let key = sessionStorage.getItem("ageray-key") || "";

export function useKey(value) {
  key = value.trim();
  sessionStorage.setItem("ageray-key", key);
}

export async function ask(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key) headers.set("Authorization", `Bearer ${key}`);
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error("The service cannot be reached.");
  }
  const body = await answer.json().catch(() => ({}));
  if (answer.ok) return body;
  if (answer.status === 401) document.dispatchEvent(new Event("key-needed"));
  throw new Error(body.error?.message || `The service answered ${answer.status}.`);
}

export const element = (name, className = "", text = "") => {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text) node.textContent = text;
  return node;
};

export function alertIn(box, text) {
  box.textContent = text;
  box.hidden = !text;
}
