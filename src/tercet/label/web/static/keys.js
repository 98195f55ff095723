// Keys: what each one does, the labeler's own choice of them, and the dispatch.
import { $ } from "./dom.js";

// name, words, keys, where it works
export const ACTIONS = [
  ["next", "Next reply or group of controls", ["j", "ArrowDown"], "rate rank compare"],
  ["prev", "Previous reply or group of controls", ["k", "ArrowUp"], "rate rank compare"],
  ["up", "Move the reply up one rank", ["Shift+ArrowUp"], "rank"],
  ["down", "Move the reply down one rank", ["Shift+ArrowDown"], "rank"],
  ["tie", "Tie with the reply above", ["="], "rank"],
  ["split", "Split from a tie", ["-"], "rank"],
  ["unrank", "Take the rank, rating or verdict back", ["0", "Backspace"], "rate rank compare"],
  ["compare", "Compare with the next reply; two replies: swap sides", ["v"], "rank compare"],
  ["undo", "Undo", ["z"], "rate rank compare"],
  ["redo", "Redo", ["Shift+z"], "rate rank compare"],
  ["raw", "Markdown or text as it is", ["m"], "rate rank compare"],
  ["skip", "Skip this item", ["s"], "rate rank compare write"],
  ["report", "Report this item", ["!"], "rate rank compare write"],
  ["help", "Keys and settings", ["?"], "rate rank compare write"],
  ["submit", "Next step, then submit", ["Ctrl+Enter"], "rate rank compare write"],
];
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
    const first = this.chosen.map?.[name], keys = ACTIONS.find(([id]) => id === name)[2];
    return first ? [first, ...keys.slice(1)] : keys;
  }

  // Why the key cannot be used for this action, or null.
  taken(name, key, flags) {
    if (/^(Ctrl\+.*|(Shift\+)?(Tab|Enter|Escape| ))$/.test(key)) return "it has a use of its own";
    if (/^[0-9a-i]$/.test(key) && !(name === "unrank" && key === "0")) return "ranks and replies use it";
    if (flags.includes(key.replace("Shift+", ""))) return "a question uses it";
    const other = ACTIONS.find(([id]) => id !== name && this.of(id).includes(key));
    return other ? `“${other[1]}” uses it` : null;
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
    const action = ACTIONS.find(([name]) => this.of(name).includes(key));
    if (action) return [action[0]];
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
