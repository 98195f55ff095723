// Keys: what each one does, the labeler's own choice of them, and the dispatch.
import { $ } from "./dom.js";

const ACTIONS = {
  next: ["j", "ArrowDown"], prev: ["k", "ArrowUp"], up: ["Shift+ArrowUp"], down: ["Shift+ArrowDown"],
  tie: ["="], split: ["-"], unrank: ["0", "Backspace"], compare: ["v"], undo: ["z"],
  redo: ["Shift+z"], raw: ["m"], skip: ["s"], report: ["!"], help: ["?"], submit: ["Ctrl+Enter"],
};
const REPEATED = ["next", "prev", "up", "down", "undo", "redo"]; // while the key is held
const STORED = "tercet.keys";

export function keyName(event) {
  const letter = event.key.length === 1;
  const symbol = letter && event.key.toLowerCase() === event.key.toUpperCase();
  const shift = event.shiftKey && !symbol ? "Shift+" : "";
  const control = (event.ctrlKey || event.metaKey) && !event.getModifierState("AltGraph");
  return (control ? "Ctrl+" : "") + shift +
    (letter ? event.key.toLowerCase() : event.key);
}

export class Keys {
  constructor() {
    try {
      this.chosen = JSON.parse(localStorage.getItem(STORED)) ?? {};
    } catch {
      this.chosen = {};
    }
  }

  get single() {
    return this.chosen.single !== false;
  }

  of(name) {
    const first = this.chosen.map?.[name], keys = ACTIONS[name];
    return first ? [first, ...keys.slice(1)] : keys;
  }

  action(key) {
    return Object.keys(ACTIONS).find((name) => this.of(name).includes(key));
  }

  set(change) {
    this.chosen = { ...this.chosen, ...change };
    try {
      localStorage.setItem(STORED, JSON.stringify(this.chosen));
    } catch {
      // Without storage the choice lasts until the page is closed.
    }
  }

  // -> [action, ...arguments] or null
  read(event, flags) {
    const key = keyName(event), { target } = event;
    if (event.altKey && !event.getModifierState("AltGraph") || event.isComposing) return null;
    const typing = target.matches?.("textarea, input:not([type=radio], [type=checkbox])");
    if (typing && key !== "Ctrl+Enter") return null;
    const native = /^(Shift\+)?(Arrow\w+|Home|End|Enter| )$/.test(key);
    if (native && target.matches?.("select, [type=radio]")) return null;
    const character = key.replace("Shift+", "").length === 1;
    if (character && !this.single) return null;
    const action = this.action(key);
    if (action) return [action];
    if (/^[1-9]$/.test(key)) return ["digit", Number(key)];
    const base = { "{": "[", "}": "]" }[key] ?? key.replace("Shift+", "");
    if (flags.includes(base)) return ["flag", base, event.shiftKey, key];
    return /^[a-i]$/.test(key) ? ["letter", key.toUpperCase()] : null;
  }
}

export function listen(page, keys) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || page.busy || $("dialog[open]")) return;
    const { view } = page;
    if (!view) return;
    const flags = view.keys.flag ? page.flagKeys : [];
    let [name, ...rest] = keys.read(event, flags) ?? [];
    if (!name) return;
    // A letter can be both: in the pair view the questions come first.
    if (name === "flag" && view.keys.flag(...rest) === false) return;
    const act = name === "flag" ? () => {} : view.keys[name] ?? page.keys[name];
    if (!act) return;
    event.preventDefault();
    if (event.repeat && !REPEATED.includes(name)) return;
    act(...rest);
  });
}
