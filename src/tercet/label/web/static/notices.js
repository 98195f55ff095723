// What the page says in its own words: notices above the buttons, the state of saving, and the
// page without an item.
import { $, button, h, plural } from "./dom.js";

const STATES = {
  saved: "Saved", saving: "Saving…", queued: "Sending…", offline: "Kept on this device",
  error: "Not saved",
};
const REASONS = {
  finished: ["Nothing to do now", "Every item of this project is done. Thank you."],
  leased: ["Nothing to do now",
    "Other labelers have all the remaining items. They come back if they are not finished."],
  paused: ["This project is paused", "An administrator stopped it for now. What you did is saved."],
  offline: ["No connection",
    "Your answers are kept on this device. The page goes on when the server can be reached."],
  amended: ["Your change is kept", "It is a new version of your answer."],
  unamended: ["Your change was not accepted", "Your answer is as it was before."],
};

export class Notices {
  root = h("div", { class: "notices" });

  // `restore` gives the focus back to the item when the notice that had it is gone.
  constructor(restore) {
    this.restore = restore;
  }

  // `about` says how long it stays: "answer" until it is closed, "item" as long as the item,
  // "draft" until that is stored, "missing" until the next change.
  tell(message, { bad = false, about = "item", more = null } = {}) {
    const root = h("div", {
      class: bad ? "notice bad" : "notice", role: bad ? "alert" : "status", "data-about": about,
    }, h("p", {}, message), more,
      button("Close", { class: "quiet small", onclick: () => this.#remove(root) }));
    if (!more) this.clear(about, message);
    this.root.append(root);
    return () => this.#remove(root);
  }

  // Those about something; all of them, or those that say just this.
  clear(about, message = null) {
    for (const each of [...this.root.querySelectorAll(`[data-about=${about}]`)])
      if (message === null || each.firstChild.textContent === message) each.remove();
  }

  // The next item comes.
  turn() {
    for (const about of ["item", "draft", "missing"]) this.clear(about);
  }

  refused({ message, errors = [], what, discard }) {
    const words = errors.map((error) => error.message).join("; ") || message;
    if (what === "draft")
      return this.tell(`The server did not store this: ${words}.`, { bad: true, about: "draft" });
    const drop = button("Discard it", { class: "quiet small", onclick: () => {
      discard();
      close();
    } });
    const close = this.tell(
      `The server did not accept an answer: ${words}. It is kept on this device.`,
      { bad: true, about: "answer", more: drop });
  }

  #remove(root) {
    const focused = root.contains(document.activeElement);
    root.remove();
    if (focused) this.restore();
  }
}

export function showStatus({ state, pending, message }) {
  const save = $("#save"), banner = $("#banner");
  save.dataset.state = state;
  save.textContent = state === "queued" && pending > 1 ? `Sending ${pending} answers…` : STATES[state];
  banner.hidden = !message;
  const waiting = `${plural(pending, "answer waits", "answers wait")} to be sent.`;
  banner.textContent = pending && message ? `${message} ${waiting}` : message;
}

// The page without an item.
export function nothing(reason, again) {
  const [title, text] = REASONS[reason] ?? ["Nothing to do now", "There is no item for you."];
  const amended = /amended$/.test(reason);
  return h("section", { class: "nothing" }, h("h2", {}, title), h("p", {}, text),
    h("div", { class: "actions" }, h("a", { class: "button", href: "/" }, "Home"),
      amended ? h("a", { class: "button primary", href: "/history" }, "History")
        : button("Look again", { class: "primary", onclick: again })));
}
