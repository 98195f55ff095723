// Questions that interrupt: skip, report, keys and settings, and two versions of one draft.
import { $, button, h, kbd } from "./dom.js";
import { differences } from "./compare.js";
import { keyName } from "./keys.js";
import { summary } from "./rankstate.js";

const REASONS = {
  skip: ["I do not understand the prompt", "I do not know enough to judge", "The replies are too alike",
    "I do not want to read this"],
  report: ["Personal data", "Dangerous or illegal content", "A reply says which model wrote it",
    "A text is broken or empty"],
};
const TITLES = { skip: "Skip this item", report: "Report this item" };
const HELP = {
  skip: "Somebody else will get it. Your work on it is not counted.",
  report: "You will not see it again, and an administrator will look at it.",
};

export function dialog(id, title, ...content) {
  const root = h("dialog", { id, "aria-labelledby": `${id}-title` },
    h("h2", { id: `${id}-title` }, title), ...content);
  document.body.append(root);
  root.addEventListener("close", () => root.remove());
  root.showModal();
  return root;
}

// -> the reason, or null
export function askReason(kind) {
  return new Promise((done) => {
    const other = h("textarea", { id: "other", rows: "2", maxlength: "1000", dir: "auto" });
    const radio = (label, i) => h("label", { class: "check" },
      h("input", { type: "radio", name: "reason", value: label, required: true, autofocus: i === 0 }),
      label);
    const missing = h("p", { class: "bad", role: "alert" });
    const form = h("form", { method: "dialog", class: "stack", novalidate: true },
      h("p", { class: "help" }, HELP[kind]),
      h("div", { class: "stack", role: "radiogroup", "aria-label": "Reason" },
        REASONS[kind].map(radio)),
      h("label", { class: "field" }, "Something else, or more about it", other), missing,
      h("div", { class: "actions" },
        button("Cancel", { class: "quiet", onclick: () => root.close() }),
        h("button", { class: "primary" }, TITLES[kind])));
    form.addEventListener("submit", (event) => {
      const chosen = $("input:checked", form)?.value, more = other.value.trim();
      const reason = [chosen, more].filter(Boolean).join(": ");
      if (reason) return root.close(reason);
      event.preventDefault();
      missing.textContent = "Choose a reason, or write one.";
      $("input", form).focus();
    });
    const root = dialog(kind, TITLES[kind], form);
    root.addEventListener("close", () => done(root.returnValue || null));
  });
}

// action: words, the pages where it works (everywhere)
const ACTIONS = {
  next: ["Next reply or group of controls", "rate rank compare"],
  prev: ["Previous reply or group of controls", "rate rank compare"],
  up: ["Move the reply up one rank", "rank"],
  down: ["Move the reply down one rank", "rank"],
  tie: ["Tie with the reply above", "rank"],
  split: ["Split from a tie", "rank"],
  unrank: ["Take the rank, rating or verdict back", "rate rank compare"],
  compare: ["Compare with the next reply; two replies: swap sides", "rank compare"],
  undo: ["Undo"], redo: ["Redo"], raw: ["Markdown or text as it is"], skip: ["Skip this item"],
  report: ["Report this item"], help: ["Keys and settings"], submit: ["Next step, then submit"],
};

// Why the key cannot be used for this action, or null.
function taken(keys, name, key, flags) {
  if (/^(Ctrl\+.*|(Shift\+)?(Tab|Enter|Escape| ))$/.test(key)) return "it has a use of its own";
  if (/^[0-9a-i]$/.test(key) && !(name === "unrank" && key === "0")) return "ranks and replies use it";
  if (flags.includes(key.replace("Shift+", ""))) return "a question uses it";
  const other = keys.action(key);
  return other && other !== name ? `“${ACTIONS[other][0]}” uses it` : null;
}

export function showHelp(page, keys) {
  const here = page.view.state;
  const note = h("p", { class: "help", role: "status" });
  const rows = h("tbody");
  const draw = () => rows.replaceChildren(
    ...Object.entries(ACTIONS).filter(([, [, where = here]]) => where.includes(here)).map(([name, [words]]) => {
      const [first, ...rest] = keys.of(name);
      const input = button(first, { class: "key", "aria-label": `Change the key for: ${words}` });
      input.addEventListener("click", () => capture(name, input));
      return h("tr", {}, h("td", {}, input, rest.map((key) => [" ", kbd(key)]).flat()),
        h("td", {}, words));
    }),
    ...fixed(page).map(([key, words]) => h("tr", {}, h("td", {}, kbd(key)), h("td", {}, words))));
  const capture = (name, input) => {
    input.textContent = "press a key";
    note.textContent = "Press the new key. Escape keeps the old one.";
    input.onblur = () => {
      input.textContent = keys.of(name)[0];
      input.onkeydown = null;
    };
    input.onkeydown = (event) => {
      if (["Shift", "Control", "Alt", "AltGraph", "Meta"].includes(event.key)) return;
      event.preventDefault();
      const key = keyName(event), why = taken(keys, name, key, page.flagKeys);
      note.textContent = why && key !== "Escape" ? `${key}: ${why}.` : "";
      if (!why) keys.set({ map: { ...keys.chosen.map, [name]: key } });
      input.onblur = null;
      draw();
      [...rows.querySelectorAll(".key")].find((b) => b.ariaLabel === input.ariaLabel)?.focus();
    };
  };
  const single = h("input", { type: "checkbox", checked: keys.single });
  single.addEventListener("change", () => keys.set({ single: single.checked }));
  draw();
  const root = dialog("help", "Keys",
    h("label", { class: "check" }, single,
      "Single keys. Without them only arrows, Backspace and Ctrl+Enter work."),
    h("table", { class: "keys" },
      h("thead", {}, h("tr", {}, h("th", { scope: "col" }, "Key"), h("th", { scope: "col" }, "Does"))),
      rows),
    note,
    h("div", { class: "actions" },
      button("Reset keys", { class: "quiet", onclick: () => { keys.set({ map: {} }); draw(); } }),
      button("Close", { class: "primary", onclick: () => root.close() })));
}

function fixed(page) {
  const most = page.assignment.schema.rating_max, last = page.letters.at(-1);
  const flags = [["q w e …", "Answer a question with yes"], ["Shift+q …", "Answer it with no"]];
  return {
    rate: [[`1–${most}`, "Overall quality"], ...flags],
    rank: [[`1–${page.letters.length}`, "Put the reply at that rank"],
      [`a–${last?.toLowerCase()}`, "Go to a reply"]],
    compare: [["1 2", "A is better, B is better"], ["3 4", "Tie, both bad"], ...flags],
    write: [],
  }[page.view.state] ?? [];
}

// The draft as lines of text, so that two of them can be compared.
function asText({ payload = {}, ui = {} }, assignment) {
  const name = Object.fromEntries(assignment.replies.map((reply) => [reply.id, reply.letter]));
  const list = (values) => Object.entries(values ?? {}).filter(([, v]) => v !== null && v !== "");
  const flags = (given) =>
    list(given).map(([id, value]) => `${id.replaceAll("_", " ")} ${value ? "yes" : "no"}`).join(", ");
  return [
    ui.slots && `Ranking: ${summary(ui.slots) || "none"}`,
    payload.both_bad && "Both bad",
    payload.strength && `Strength: ${payload.strength}`,
    ...list(payload.ratings).map(([id, value]) => `Reply ${name[id]}: ${value}`),
    ...list(payload.flags).map(([id, given]) => `Reply ${name[id]}: ${flags(given)}`),
    ...list(payload.notes).map(([id, text]) => `Note on ${name[id]}: ${text}`),
    flags(payload.prompt_flags) && `Prompt: ${flags(payload.prompt_flags)}`,
    payload.note && `Note: ${payload.note}`,
    payload.prompt && `Prompt written: ${payload.prompt}`,
    payload.text,
  ].filter(Boolean).join("\n");
}

export function showConflict({ mine, theirs }, assignment, choose) {
  const [left, right] = differences(asText(mine, assignment), asText(theirs, assignment));
  const pane = (title, text) => h("section", { class: "pane" }, h("header", {}, h("h3", {}, title)),
    h("div", { class: "pane-text", tabindex: "0", role: "region", "aria-label": title }, text));
  let chosen = false;
  const act = (id, label, which, kind) => button(label, { id, class: kind, onclick: () => {
    chosen = true;
    root.close(); // first, so that the focus can go where it belongs
    choose(which);
  } });
  const root = dialog("conflict", "This item was also changed in another tab",
    h("p", { class: "help" }, "Choose the version to go on with. The other one stays in the record."),
    h("div", { class: "panes" }, pane("This tab", left), pane("The other tab", right)),
    h("div", { class: "actions" }, act("use-theirs", "Use the other tab's", "theirs", ""),
      act("use-mine", "Use this tab's", "mine", "primary")));
  // Nothing is saved before the choice. A browser lets Escape be prevented only once.
  root.addEventListener("cancel", (event) => event.preventDefault());
  root.addEventListener("close", () => {
    if (chosen) return;
    document.body.append(root);
    root.showModal();
  });
}
