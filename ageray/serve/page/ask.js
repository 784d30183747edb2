// Requests to the service. Every failure becomes an Error with one line for people.

let key = sessionStorage.getItem("ageray-key") || "";

export function useKey(value) {
  key = value.trim();
  sessionStorage.setItem("ageray-key", key);
}

export const hasKey = () => key !== "";

// Saves a file of the service, asking for it with the key.
export async function download(path, name) {
  const answer = await fetch(path, { headers: { Authorization: `Bearer ${key}` } });
  if (!answer.ok) throw new Error(`${name}: the service answered ${answer.status}.`);
  const link = element("a");
  link.href = URL.createObjectURL(await answer.blob());
  link.download = name;
  link.click();
  URL.revokeObjectURL(link.href);
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
