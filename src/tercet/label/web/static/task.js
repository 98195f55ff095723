// The task page: one assignment at a time, its steps, and what the labeler changes in it.
import { Answer } from "./answer.js";
import { Api } from "./api.js";
import { Card } from "./card.js";
import { $, button, h, kbd, say } from "./dom.js";
import { openJournal } from "./journal.js";
import { Keys, listen } from "./keys.js";
import { Notices, nothing, showStatus } from "./notices.js";
import { expect, load, loadRest, stepsOf } from "./parts.js";
import { About, PromptPanel } from "./prompt.js";
import { rankOf } from "./rankstate.js";
import { Sync } from "./sync.js";

const main = $("#task");
const STEP_NAMES = { rate: "Rate", rank: "Rank", compare: "Compare", write: "Write" };
const SETTLE_MS = 400; // a second click on Submit belongs to the item before

class Page {
  view = null;
  assignment = null;
  notices = new Notices(() => this.restoreFocus());

  constructor(sync, api, preferences) {
    Object.assign(this, { sync, api, preferences, say });
    this.keys = {
      undo: () => this.undo(), redo: () => this.undo(true), raw: () => this.toggleView(),
      skip: () => this.leave("skip"), report: () => this.leave("report"),
      help: () => this.help(), submit: () => this.forward(),
    };
  }

  // One assignment

  async show(assignment) {
    if (!assignment.id) return this.nothing(assignment);
    const steps = stepsOf(assignment);
    const parts = await Promise.all(steps.map(load));
    this.assignment = assignment;
    this.answer = new Answer(assignment);
    this.letters = this.answer.letters;
    this.flagKeys = assignment.schema.reply_flags.map((flag) => flag.key).filter(Boolean);
    this.trees = null;
    this.rich = false;
    this.makeCards();
    this.views = parts.map(({ View }) => new View(this));
    const { ui } = this.answer;
    this.current = ui.focus = this.letters.includes(ui.focus) ? ui.focus : this.letters[0];
    this.build();
    this.enter(this.views[Math.max(steps.indexOf(ui.step), 0)]);
    this.shownAt = performance.now();
    if (ui.markdown) this.setView(true, true);
    scrollTo(0, 0);
  }

  makeCards() {
    const act = (...what) => (letter) => {
      this.current = letter;
      this.view.act(...what);
    };
    const on = {
      place: (letter, to) => this.view.place(letter, to), up: act("move", -1), down: act("move", 1),
      compare: (letter) => this.compare(letter),
    };
    this.cards = Object.fromEntries(this.assignment.replies.map((reply) =>
      [reply.letter, new Card(reply, this.letters, on)]));
  }

  build() {
    this.prompt?.watch.disconnect();
    this.prompt = new PromptPanel(this.assignment);
    this.about = new About(this);
    this.stage = h("div", { class: "stage" });
    this.notices.turn();
    if (this.assignment.amending)
      this.tell("You are changing an answer that you gave before. It is kept; this becomes a new version.");
    if (this.assignment.state === "expired") this.late({ assignment: this.assignment.id });
    main.inert = false;
    main.replaceChildren(this.prompt.root, this.about.root, this.stage, this.makeBar());
  }

  makeBar() {
    const { amending } = this.assignment;
    this.summary = h("p", { class: "summary", id: "summary" });
    this.controls = h("div", { class: "controls" });
    this.tabs = this.views.map((view) => button(STEP_NAMES[view.state], {
      class: "tab", onclick: () => this.goTo(view),
    }));
    this.next = button("Next", { id: "next", class: "primary", onclick: () => this.forward() });
    this.left = h("span", { class: "left" });
    this.submitButton = button(amending ? "Save the change" : "Submit", {
      id: "submit", class: "primary", title: "Ctrl+Enter", onclick: () => this.submit(),
    }, this.left);
    const leaving = amending ? [] : [
      button("Skip ", { class: "quiet", onclick: () => this.leave("skip") }, kbd("s")),
      button("Report ", { class: "quiet", onclick: () => this.leave("report") }, kbd("!")),
    ];
    this.bar = h("div", { class: "bar", role: "region", "aria-label": "Your answer" },
      this.notices.root, this.tabs.length > 1 ? h("div", { class: "tabs" }, this.tabs) : null,
      this.summary, this.controls,
      h("div", { class: "bar-actions" }, leaving, this.next, this.submitButton));
    return this.bar;
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
    view.enter?.();
    this.refresh();
    this.restoreFocus();
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
    const { root } = this.cards[letter];
    const moved = letter !== this.current || this.answer.ui.focus !== letter;
    this.current = this.answer.ui.focus = letter;
    if (moved) this.refresh();
    if (!keep || !root.contains(document.activeElement)) root.focus({ preventScroll: true });
    if (reveal) this.reveal(root);
    if (moved) this.save();
  }

  restoreFocus() {
    if (!this.view) main.focus({ preventScroll: true });
    else if (this.view.focus) this.view.focus();
    else this.focus(this.current, false);
  }

  // A card got the focus by itself: by Tab or a click.
  focused({ target }) {
    const letter = target.closest("article")?.dataset.letter;
    if (!letter || letter === this.current || !this.view) return;
    this.current = this.answer.ui.focus = letter;
    this.refresh();
    this.save();
  }

  order() {
    return [...main.querySelectorAll("article")].map((card) => card.dataset.letter);
  }

  step(by) {
    const order = this.order(), next = order[order.indexOf(this.current) + by];
    if (next) this.focus(next);
  }

  reveal(root) {
    const { top, bottom } = root.getBoundingClientRect();
    const from = this.prompt.height(), to = innerHeight - this.bar.offsetHeight;
    if (top >= from && bottom <= to) return;
    root.scrollIntoView({ block: top < from || bottom - top > to - from ? "start" : "end" });
  }

  where(letter) {
    const at = rankOf(this.answer.value.slots, letter);
    return at ? `rank ${at}` : "unranked";
  }

  // Changes

  change(changes, message, focus = this.current) {
    const changed = this.answer.change(changes);
    this.current = focus;
    if (changed) this.notices.clear("missing");
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
    this.notices.clear("missing");
    this.count();
    this.save();
  }

  undo(again = false) {
    const ranks = () => [...this.letters].map((letter) => rankOf(this.answer.value.slots, letter));
    const before = ranks(), paths = this.answer.undo(again), after = ranks();
    if (!paths) return say(again ? "Nothing to redo" : "Nothing to undo");
    const ranked = [...this.letters].filter((_, i) => before[i] !== after[i]);
    const rated = paths.map((path) => /^(?:ratings|flags)\.(.)/.exec(path)?.[1]);
    const changed = { rank: ranked, rate: rated }[this.view.state] ?? [];
    const elsewhere = changed[0] && !changed.includes(this.current);
    if (elsewhere) this.current = this.answer.ui.focus = changed[0];
    this.refresh();
    this.save();
    if (elsewhere || this.view.state === "rank") this.restoreFocus();
    say(`${again ? "Redone" : "Undone"}; ${this.summary.textContent}`);
  }

  save() {
    this.sync.change(this.answer.draft());
  }

  refresh() {
    this.view.update();
    this.about.update();
    this.count();
  }

  count() {
    const { text, left } = this.view.summary(), { state } = this.view;
    const last = this.view === this.views.at(-1), ranking = state === "rank";
    this.summary.textContent = [text, ranking && left && `${left} unranked`].filter(Boolean).join(" | ");
    this.next.hidden = last;
    this.submitButton.hidden = !last;
    this.next.textContent = this.letters.at(-1) === this.current
      ? `Next: ${STEP_NAMES[this.views.at(-1).state].toLowerCase()}` : "Next reply";
    this.left.textContent = ranking && left ? `${left} unranked` : "";
    this.submitButton.classList.toggle("waiting", Boolean(left));
    this.views.forEach((view, i) =>
      this.tabs[i].setAttribute("aria-current", view === this.view ? "step" : "false"));
    this.about.counted();
  }

  // Texts

  viewButton() {
    return button("Markdown ", { class: "quiet", "data-role": "view", "aria-pressed": "false",
      onclick: () => this.toggleView() }, kbd("m"));
  }

  toggleView() {
    return this.setView(!this.rich);
  }

  // `again`: as the labeler had it before, not by their wish now.
  async setView(rich, again = false) {
    const { assignment, answer } = this;
    if (rich && !this.trees) {
      const trees = await this.api.get(`/api/assignments/${assignment.id}/markdown`).catch(() => null);
      if (assignment !== this.assignment) return;
      if (!trees) return this.tell("The Markdown view cannot be loaded now.");
      this.trees = trees;
    }
    this.rich = rich;
    for (const card of Object.values(this.cards)) card.show(rich && this.trees.replies[card.id]);
    this.prompt.show(rich && this.trees.prompt);
    for (const each of main.querySelectorAll("[data-role=view]")) each.setAttribute("aria-pressed", rich);
    if (again) return;
    answer.ui.markdown = rich;
    this.save();
    say(rich ? "Markdown view" : "Text as it is");
  }

  // Dialogs

  // A part that opens a dialog; null if the item or the page is another one when it is here.
  async dialog(part) {
    const { assignment } = this, module = await load(part);
    return assignment === this.assignment && !this.busy && !$("dialog[open]") ? module : null;
  }

  async compare(letter = this.current) {
    const order = this.order(), at = order.indexOf(letter);
    const dialog = await this.dialog("differences");
    if (dialog) new dialog.CompareDialog(this).open(letter, order[at + 1] ?? order[at - 1]);
  }

  async help() {
    (await this.dialog("dialogs"))?.showHelp(this, this.preferences);
  }

  async conflict(detail) {
    const { assignment } = this, { showConflict } = await load("dialogs");
    if (assignment !== this.assignment) return;
    showConflict(detail, assignment, (which) => {
      const draft = detail.choose(which);
      if (which === "theirs" && assignment === this.assignment) this.show({ ...assignment, draft });
    });
  }

  // Leaving

  async submit() {
    if (this.busy || performance.now() - this.shownAt < SETTLE_MS) return;
    const missing = this.view.missing();
    if (missing) {
      this.tell(missing.message, { bad: true, about: "missing" });
      missing.focus();
      return;
    }
    const verb = this.assignment.amending ? "amend" : "submit";
    await this.hand(() => this.sync[verb](this.answer.payload()), "Submitted");
  }

  async leave(kind) {
    const { assignment } = this;
    if (assignment.amending) return;
    const reason = await (await this.dialog("dialogs"))?.askReason(kind);
    if (reason && assignment === this.assignment)
      await this.hand(() => this.sync[kind](reason), kind === "skip" ? "Skipped" : "Reported");
  }

  // What is done to the item from now on would not be part of the answer: the page stands still.
  async hand(send, done) {
    if (this.busy) return;
    const { amending } = this.assignment, focused = document.activeElement;
    this.busy = main.inert = true;
    this.submitButton.setAttribute("aria-busy", "true");
    try {
      const next = await send();
      await this.show(amending ? { reason: this.turnedDown ? "unamended" : "amended" } : next);
      say(done);
    } catch (error) {
      main.inert = false;
      if (this.sync.current) focused.focus({ preventScroll: true });
      else this.nothing({}); // the answer is on its way, only the next item did not come
      this.tell(this.view ? `Not sent: ${error.message}` : error.message, { bad: true });
    } finally {
      this.busy = false;
      this.submitButton.removeAttribute("aria-busy");
    }
  }

  nothing({ reason, retry_at }) {
    clearTimeout(this.timer);
    if (retry_at)
      this.timer = setTimeout(() => this.again(), Math.min(Math.max(retry_at - Date.now(), 2000), 60000));
    if (document.body.dataset.state === "empty" && this.reason === reason) return;
    Object.assign(this, { reason, view: null, assignment: null });
    this.notices.turn();
    main.inert = false;
    main.replaceChildren(this.notices.root, nothing(reason, () => this.again({ asked: true })));
    document.body.dataset.state = "empty";
    delete document.body.dataset.assignment;
    this.restoreFocus();
  }

  async again({ asked = false } = {}) {
    if (this.view) return;
    try {
      const next = await this.sync.next();
      if (!this.view) await this.show(next);
      if (asked && !this.view) say("Nothing new yet");
    } catch (error) {
      this.tell(error.message, { bad: true });
    }
  }

  // What the page has to say

  tell(message, options) {
    this.notices.tell(message, options);
  }

  late({ assignment, counted }) {
    if (counted === false)
      this.tell("An answer was late: others had finished the item. It is kept as an extra one.",
        { about: "answer" });
    else if (assignment === this.assignment?.id)
      this.tell("This item was open for long and went back to the pool. Go on: your work is kept, " +
        "and your answer will be accepted.");
  }

  refused(detail) {
    this.turnedDown = detail.what === "answer";
    this.notices.refused(detail);
  }

  status(detail) {
    if (detail.state === "saved") this.notices.clear("draft");
    showStatus(detail);
  }

  state() {
    return this.view && {
      assignment: this.assignment.id, payload: this.answer.payload(), step: this.view.state,
      slots: this.answer.value.slots, focus: this.current, undo: this.answer.past.length,
    };
  }
}

async function start() {
  const { project, kind, amend } = main.dataset;
  expect(kind);
  const keys = new Keys(), api = new Api(), journal = await openJournal();
  const sync = new Sync({ api, journal, project, assignment: amend || null });
  const page = new Page(sync, api, keys);
  const shown = Promise.withResolvers();
  sync.addEventListener("status", ({ detail }) => page.status(detail));
  for (const [event, act] of [["conflict"], ["late"], ["refused"], ["resumed", "again"]])
    sync.addEventListener(event, async ({ detail }) => {
      await shown.promise;
      page[act ?? event](detail);
    });
  main.addEventListener("focusin", (event) => page.focused(event));
  $("[data-act=help]").addEventListener("click", () => page.view && page.help());
  listen(page, keys);
  window.tercet = { state: () => page.state() };
  try {
    await page.show(await sync.start());
  } catch (error) {
    page.nothing({});
    page.tell(error.message, { bad: true });
  }
  shown.resolve();
  loadRest(kind);
}

start();
