// The task page: one assignment at a time, its steps, and what the sync has to tell.
import { Answer } from "./answer.js";
import { Api } from "./api.js";
import { Card } from "./card.js";
import { CompareDialog } from "./compare.js";
import * as dialogs from "./dialogs.js";
import { $, button, h, kbd, plural, say } from "./dom.js";
import { FlagList } from "./flags.js";
import { openJournal } from "./journal.js";
import { Keys, listen } from "./keys.js";
import { PairView } from "./pair.js";
import { RankView } from "./rank.js";
import * as rank from "./rankstate.js";
import { RateView } from "./rate.js";
import { Sync } from "./sync.js";
import { markdown, plain } from "./text.js";
import { WriteView } from "./write.js";

const main = $("#task");
const STEP_NAMES = { rate: "Rate", rank: "Rank", compare: "Compare", write: "Write" };
const STATES = {
  saved: "Saved", saving: "Saving…", queued: "Sending…", offline: "Kept on this device",
  error: "Not saved",
};
const SETTLE_MS = 400; // a second click on Submit belongs to the item before

class Page {
  constructor(sync, api, keys) {
    Object.assign(this, { sync, api, preferences: keys, say });
    this.keys = {
      undo: () => this.undo(), redo: () => this.undo(true), raw: () => this.toggleView(),
      skip: () => this.leave("skip"), report: () => this.leave("report"),
      help: () => dialogs.showHelp(this, keys), submit: () => this.forward(),
    };
  }

  // One assignment

  show(assignment) {
    if (!assignment.id) return this.nothing(assignment);
    this.assignment = assignment;
    this.answer = new Answer(assignment);
    this.letters = this.answer.letters;
    this.flagKeys = assignment.schema.reply_flags.map((flag) => flag.key).filter(Boolean);
    this.trees = null;
    const act = (name, ...rest) => (letter) => {
      this.current = letter;
      this.view.act(name, ...rest);
    };
    const on = {
      place: (letter, to) => this.view.place(letter, to), up: act("move", -1), down: act("move", 1),
      compare: (letter) => this.compare(letter),
    };
    this.cards = Object.fromEntries(assignment.replies.map((reply) =>
      [reply.letter, new Card(reply, this.letters, on)]));
    const { settings, project } = assignment;
    this.views = project.kind === "demonstration" ? [new WriteView(this)] : [
      ...(settings.rate ? [new RateView(this)] : []),
      this.letters.length === 2 ? new PairView(this) : new RankView(this),
    ];
    const { focus } = this.answer.ui;
    this.current = this.answer.ui.focus = this.letters.includes(focus) ? focus : this.letters[0];
    this.build();
    const step = this.views.findIndex((view) => view.state === this.answer.ui.step);
    this.enter(this.views[Math.max(step, 0)]);
    this.shownAt = performance.now();
    if (this.answer.ui.markdown) this.toggleView(true);
    scrollTo(0, 0);
  }

  build() {
    const { assignment } = this, { settings, schema } = assignment;
    this.promptText = plain(assignment.prompt.text);
    const expand = button("Expand", { class: "quiet small", "aria-expanded": "false" });
    expand.addEventListener("click", () => {
      const open = this.prompt.classList.toggle("open");
      expand.textContent = open ? "Shrink" : "Expand";
      expand.setAttribute("aria-expanded", open);
    });
    this.expand = expand;
    this.promptBody = h("div", { class: "prompt-text", tabindex: "0", role: "region",
      "aria-label": "Text of the prompt" }, this.promptText);
    this.prompt = h("section", { class: "prompt", "aria-label": "Prompt" },
      h("header", {}, h("h2", {}, "Prompt"),
        assignment.prompt.tags?.map((tag) => h("span", { class: "tag" }, tag.replaceAll("_", " "))),
        assignment.project.criterion
          ? h("span", { class: "criterion" }, assignment.project.criterion) : null, expand),
      this.promptBody);
    this.prompt.hidden = !assignment.prompt.text && settings.open_prompt;
    this.note = h("textarea", { name: "note", rows: "2", dir: "auto", maxlength: "4000" });
    this.note.addEventListener("input", () => this.type("note", this.note.value));
    this.promptFlags = settings.ask_prompt_flags
      ? new FlagList(this, "prompt_flags", schema.prompt_flags) : null;
    this.aboutCount = h("span", { class: "count" });
    this.about = h("details", { class: "about" },
      h("summary", {}, this.promptFlags ? "Questions about the prompt, and a note " : "Note ",
        this.aboutCount),
      this.promptFlags?.root, h("label", { class: "field" }, "Note about this item (optional)", this.note));
    this.about.open = Boolean(this.answer.ui.about);
    this.about.addEventListener("toggle", () => {
      if (Boolean(this.answer.ui.about) === this.about.open) return;
      this.answer.ui.about = this.about.open;
      this.save();
    });
    this.stage = h("div", { class: "stage" });
    this.notice = this.notices();
    if (assignment.amending)
      this.tell("You are changing an answer that you gave before. It is kept; this becomes a new version.");
    if (assignment.state === "expired") this.late();
    main.replaceChildren(this.prompt, this.about, this.stage, this.bar());
    this.watch?.disconnect();
    this.watch = new ResizeObserver(() => this.pin());
    this.watch.observe(this.prompt);
  }

  bar() {
    this.summary = h("p", { class: "summary", id: "summary" });
    this.controls = h("div", { class: "controls" });
    this.tabs = this.views.map((view) => button(STEP_NAMES[view.state], {
      class: "tab", onclick: () => this.goTo(view),
    }));
    this.next = button("Next", { id: "next", class: "primary", onclick: () => this.forward() });
    this.left = h("span", { class: "left" });
    this.submitLabel = this.assignment.amending ? "Save the change" : "Submit";
    this.submitButton = button(this.submitLabel, {
      id: "submit", class: "primary", title: "Ctrl+Enter", onclick: () => this.submit(),
    }, this.left);
    const leaving = this.assignment.amending ? [] : [
      button("Skip ", { class: "quiet", onclick: () => this.leave("skip") }, kbd("s")),
      button("Report ", { class: "quiet", onclick: () => this.leave("report") }, kbd("!")),
    ];
    return h("div", { class: "bar", role: "region", "aria-label": "Your answer" }, this.notice,
      this.tabs.length > 1 ? h("div", { class: "tabs" }, this.tabs) : null, this.summary,
      this.controls, h("div", { class: "bar-actions" }, leaving, this.next, this.submitButton));
  }

  // Steps

  goTo(view) {
    if (view === this.view) return;
    this.view.leave?.();
    // A step begins where something is left to do.
    this.current = this.answer.ui.focus = view.begin?.() ?? this.letters[0];
    this.enter(view);
    this.save();
    scrollTo(0, 0);
  }

  enter(view) {
    this.view = view;
    this.answer.ui.step = view.state;
    this.stage.replaceChildren(view.root);
    this.controls.replaceChildren(view.controls ?? "");
    document.body.dataset.state = view.state;
    document.body.dataset.assignment = this.assignment.id;
    view.enter();
    this.refresh();
    if (view.focus) view.focus();
    else this.focus(this.current, false);
  }

  forward() {
    const at = this.views.indexOf(this.view);
    if (at === this.views.length - 1) return this.submit();
    const after = this.letters[this.letters.indexOf(this.current) + 1];
    if (after) this.focus(after);
    else this.goTo(this.views[at + 1]);
  }

  // The focus

  // With `keep`, a control of the card that has the focus keeps it.
  focus(letter, reveal = true, keep = false) {
    const { root } = this.cards[letter] ?? {};
    if (!root) return;
    const moved = letter !== this.current || this.answer.ui.focus !== letter;
    this.current = letter;
    this.answer.ui.focus = letter;
    if (moved) this.refresh();
    if (!keep || !root.contains(document.activeElement)) root.focus({ preventScroll: true });
    if (reveal) this.reveal(root);
    if (moved) this.save();
  }

  step(by) {
    const order = [...main.querySelectorAll("article")].map((card) => card.dataset.letter);
    const next = order[order.indexOf(this.current) + by];
    if (next) this.focus(next);
  }

  reveal(root) {
    const { top, bottom } = root.getBoundingClientRect();
    const from = this.pinnedHeight(), to = innerHeight - this.barHeight();
    if (top >= from && bottom <= to) return;
    if (top < from || bottom - top > to - from) root.scrollIntoView({ block: "start" });
    else root.scrollIntoView({ block: "end" });
  }

  pinnedHeight() {
    const pinned = getComputedStyle(this.prompt).position === "sticky";
    return pinned ? this.prompt.offsetHeight : 0;
  }

  barHeight() {
    return $(".bar").offsetHeight;
  }

  pin() {
    const { scrollHeight, clientHeight } = this.promptBody;
    this.expand.hidden = scrollHeight <= clientHeight && !this.prompt.classList.contains("open");
    document.documentElement.style.setProperty("--pinned", `${this.pinnedHeight()}px`);
  }

  where(letter) {
    const at = rank.rankOf(this.answer.value.slots, letter);
    return at ? `rank ${at}` : "unranked";
  }

  // Changes

  change(changes, message, focus = this.current) {
    const changed = this.answer.change(changes);
    this.current = focus;
    if (changed) this.settled();
    if (changed || this.answer.ui.focus !== focus) {
      this.answer.ui.focus = focus;
      this.refresh();
      this.save();
    }
    if (message) say(message);
    // Last, because it asks for positions: everything before it is laid out once.
    if (this.view.state === "rank") this.focus(focus, true, true);
  }

  type(path, value) {
    this.answer.type(path, value);
    this.settled();
    this.count();
    this.save();
  }

  // What was missing may be there now.
  settled() {
    $("[data-about=submit]", this.notice)?.remove();
  }

  undo(again = false) {
    const paths = this.answer.undo(again);
    if (!paths) return say(again ? "Nothing to redo" : "Nothing to undo");
    this.refresh();
    this.save();
    if (this.view.state === "rank") this.cards[this.current].root.focus({ preventScroll: true });
    say(`${again ? "Redone" : "Undone"}; ${this.summary.textContent}`);
  }

  save() {
    this.sync.change(this.answer.draft());
  }

  refresh() {
    this.view.update();
    this.promptFlags?.update();
    const { note } = this.answer.value;
    if (this.note.value !== note) this.note.value = note;
    this.count();
  }

  count() {
    const { text, left } = this.view.summary();
    const last = this.view === this.views.at(-1), ranking = this.view.state === "rank";
    this.summary.textContent = !ranking ? text
      : [text, left && `${left} unranked`].filter(Boolean).join(" | ") || "";
    this.next.hidden = last;
    this.submitButton.hidden = !last;
    const onLast = this.letters.at(-1) === this.current;
    this.next.textContent = onLast ? `Next: ${STEP_NAMES[this.views.at(-1).state].toLowerCase()}` : "Next reply";
    this.left.textContent = ranking && left ? `${left} unranked` : "";
    this.submitButton.classList.toggle("waiting", Boolean(left));
    this.views.forEach((view, i) =>
      this.tabs[i].setAttribute("aria-current", view === this.view ? "step" : "false"));
    this.aboutCount.textContent = [
      this.promptFlags && `${this.promptFlags.answered()} of ${this.promptFlags.flags.length} answered`,
      this.answer.value.note && "with a note",
    ].filter(Boolean).join(", ");
  }

  // Texts

  viewButton() {
    return button("Markdown ", { class: "quiet", "data-role": "view", "aria-pressed": "false",
      onclick: () => this.toggleView() }, kbd("m"));
  }

  async toggleView(keep = false) {
    const { assignment, answer } = this;
    if (!this.trees) {
      try {
        const path = `/api/assignments/${assignment.id}/markdown`;
        this.trees = await this.api.get(path);
      } catch {
        return this.tell("The Markdown view cannot be loaded now.");
      }
      if (assignment !== this.assignment) return;
    }
    if (!keep) answer.ui.markdown = !answer.ui.markdown;
    const { trees } = this, rich = answer.ui.markdown;
    for (const card of Object.values(this.cards)) card.show(rich ? trees.replies[card.id] : null);
    const text = rich ? markdown(trees.prompt) : plain(assignment.prompt.text);
    this.promptText.replaceWith(text);
    this.promptText = text;
    for (const each of main.querySelectorAll("[data-role=view]")) each.setAttribute("aria-pressed", rich);
    if (!keep) this.save();
    say(rich ? "Markdown view" : "Text as it is");
  }

  compare(letter = this.current) {
    const order = [...main.querySelectorAll("article")].map((card) => card.dataset.letter);
    const at = order.indexOf(letter), other = order[at + 1] ?? order[at - 1];
    this.comparing = new CompareDialog(this);
    main.append(this.comparing.root);
    this.comparing.open(letter, other);
    document.body.dataset.state = "compare";
  }

  closed() {
    this.comparing.root.remove();
    document.body.dataset.state = this.view.state;
    this.cards[this.current].root.focus({ preventScroll: true });
  }

  // Leaving

  async submit() {
    if (this.busy || performance.now() - this.shownAt < SETTLE_MS) return;
    const missing = this.view.missing();
    if (missing) {
      this.tell(missing.message, "bad").dataset.about = "submit";
      missing.focus();
      return;
    }
    const verb = this.assignment.amending ? "amend" : "submit";
    await this.hand(() => this.sync[verb](this.answer.payload()), "Submitted");
  }

  async leave(kind) {
    const { assignment } = this;
    if (assignment.amending) return;
    const reason = await dialogs.askReason(kind);
    if (reason && assignment === this.assignment)
      await this.hand(() => this.sync[kind](reason), kind === "skip" ? "Skipped" : "Reported");
  }

  async hand(send, done) {
    if (this.busy) return;
    this.busy = true;
    this.submitButton.setAttribute("aria-busy", "true");
    const { amending } = this.assignment;
    try {
      const next = await send();
      this.show(amending ? { reason: "amended" } : next);
      say(done);
    } catch (error) {
      this.tell(`Not sent: ${error.message}`, "bad");
    } finally {
      this.busy = false;
      this.submitButton.removeAttribute("aria-busy");
    }
  }

  nothing({ reason, retry_at }) {
    this.view = this.assignment = null;
    const [title, text] = {
      finished: ["Nothing to do now", "Every item of this project is done. Thank you."],
      leased: ["Nothing to do now", "Other labelers have all the remaining items. They come back if they are not finished."],
      amended: ["Your change is kept", "It is a new version of your answer."],
      paused: ["This project is paused", "An administrator stopped it for now. What you did is saved."],
      offline: ["No connection", "Your answers are kept on this device. The page goes on when the server can be reached."],
    }[reason] ?? ["Nothing to do now", "There is no item for you."];
    const again = button("Look again", { class: "primary", onclick: () => this.again() });
    main.replaceChildren(
      (this.notice = this.notices()),
      h("section", { class: "nothing" }, h("h2", {}, title), h("p", {}, text),
        h("div", { class: "actions" }, h("a", { class: "button", href: "/" }, "Home"),
          reason === "amended" ? h("a", { class: "button primary", href: "/history" }, "History") : null,
          ["finished", "amended"].includes(reason) ? null : again)));
    document.body.dataset.state = "empty";
    delete document.body.dataset.assignment;
    clearTimeout(this.timer);
    if (retry_at)
      this.timer = setTimeout(() => this.again(), Math.min(Math.max(retry_at - Date.now(), 2000), 60000));
  }

  async again() {
    if (this.view) return;
    try {
      this.show(await this.sync.next());
    } catch (error) {
      this.tell(error.message, "bad");
    }
  }

  // What the page has to say

  notices() {
    // What is said about answers that were handed in stays when the next item comes.
    const kept = this.notice?.querySelectorAll("[data-about=answer]") ?? [];
    return h("div", { class: "notices" }, ...kept);
  }

  tell(message, kind = "info", ...more) {
    const root = h("div", { class: `notice ${kind}`, role: kind === "bad" ? "alert" : "status" },
      h("p", {}, message), more,
      button("Close", { class: "quiet small", onclick: () => root.remove() }));
    for (const old of [...this.notice.children])
      if (old.firstChild.textContent === message) old.remove();
    this.notice.append(root);
    return root;
  }

  late({ counted } = {}) {
    if (counted === false)
      this.tell("An answer was late: others had finished the item. It is kept as an extra one.")
        .dataset.about = "answer";
    else if (counted === undefined)
      this.tell("This item was open for long and went back to the pool. Go on: your work is kept, " +
        "and your answer will be accepted.");
  }

  conflict(detail) {
    dialogs.showConflict(detail, this.assignment, (which) => {
      const draft = detail.choose(which);
      if (which === "theirs") this.show({ ...this.assignment, draft });
    });
  }

  refused({ message, errors = [], what, discard }) {
    const words = errors.map((error) => error.message).join("; ") || message;
    const drop = discard && button("Discard it", {
      class: "quiet small", onclick: () => { discard(); root.remove(); },
    });
    const root = this.tell(what === "answer"
      ? `The server did not accept an answer: ${words}. It is kept on this device.`
      : `The server did not store this: ${words}.`, "bad", drop ?? []);
    if (what === "answer") root.dataset.about = "answer";
  }

  status({ state, pending, message }) {
    const save = $("#save"), banner = $("#banner");
    save.dataset.state = state;
    save.textContent = state === "queued" && pending > 1 ? `Sending ${pending} answers…` : STATES[state];
    banner.hidden = !message;
    if (message) banner.textContent = pending
      ? `${message} ${plural(pending, "answer waits", "answers wait")} to be sent.` : message;
  }
}

async function start() {
  const keys = new Keys(), api = new Api(), journal = await openJournal();
  const { project, amend } = main.dataset;
  const sync = new Sync({ api, journal, project, assignment: amend || null });
  const page = new Page(sync, api, keys);
  for (const name of ["status", "conflict", "late", "refused"])
    sync.addEventListener(name, ({ detail }) => page[name](detail));
  sync.addEventListener("resumed", () => page.again());
  main.addEventListener("focusin", ({ target }) => {
    const letter = target.closest("article")?.dataset.letter;
    if (letter && letter !== page.current && page.view) {
      page.current = page.answer.ui.focus = letter;
      page.refresh();
      page.save();
    }
  });
  for (const link of document.querySelectorAll("[data-act=help]"))
    link.addEventListener("click", () => page.view && page.keys.help());
  listen(page, keys);
  window.tercet = {
    settling: () => page.view && performance.now() - page.shownAt < SETTLE_MS,
    state: () => page.view && {
      assignment: page.assignment.id, payload: page.answer.payload(), step: page.view.state,
      slots: page.answer.value.slots, focus: page.current, undo: page.answer.past.length,
    },
  };
  try {
    page.show(await sync.start());
  } catch (error) {
    page.nothing({});
    page.tell(error.message, "bad");
  }
}

start();
