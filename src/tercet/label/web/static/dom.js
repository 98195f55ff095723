// Small helpers to build the page. Text only ever enters as text nodes.

export function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return node;
}

export const $ = (selector, root = document) => root.querySelector(selector);

export function button(label, props = {}, ...more) {
  return h("button", { type: "button", ...props }, label, ...more);
}

export const kbd = (key) => h("kbd", {}, key);

// Moves a node and keeps its focus and scroll position where the browser can do so.
export function moveTo(parent, node, before = null) {
  if (node.parentNode === parent && node.nextSibling === before) return;
  if (parent.moveBefore && node.isConnected && parent.isConnected) parent.moveBefore(node, before);
  else {
    const focused = node.contains(document.activeElement) && document.activeElement;
    parent.insertBefore(node, before);
    if (focused) focused.focus({ preventScroll: true });
  }
}

export function say(message) {
  const live = $("#live");
  // The same words twice in a row would not be read again.
  live.textContent = live.textContent === message ? `${message}\u00a0` : message;
}

export const plural = (count, one, many = `${one}s`) => `${count} ${count === 1 ? one : many}`;

export function words(text) {
  return (text.match(/\S+/gu) ?? []).length;
}
