// Two replies: which is better, or a tie. The answer is a ranking like any other.
import { button, h, kbd, moveTo } from "./dom.js";
import { FlagList } from "./flags.js";

const VERDICTS = [
  ["A", "A is better", { slots: ["A", "B"], both_bad: false }],
  ["B", "B is better", { slots: ["B", "A"], both_bad: false }],
  ["tie", "Tie", { slots: ["AB", ""], both_bad: false }],
  ["bad", "Both bad", { slots: ["AB", ""], both_bad: true }],
];
const NONE = { slots: ["", ""], both_bad: false, strength: null };

export class View {
  state = "compare";

  constructor(page) {
    this.page = page;
    const { settings, schema } = page.assignment;
    this.verdicts = VERDICTS.filter(([id]) => id !== "bad" || settings.both_bad);
    this.buttons = this.verdicts.map(([id, label], i) => button(`${label} `, {
      class: "verdict", "data-verdict": id, onclick: () => this.decide(i + 1),
    }, kbd(`${i + 1}`)));
    this.strengths = ["slightly", "clearly"].map((value) => button(value, {
      class: "quiet", "data-strength": value, onclick: () => this.setStrength(value),
    }));
    this.strength = h("div", { class: "strength", role: "group", "aria-label": "How much better" },
      this.strengths);
    this.flags = settings.rate || !schema.reply_flags.length ? {} : this.#questions(schema);
    this.panes = h("div", { class: "pair" });
    this.undoButton = button("Undo ", { class: "quiet", onclick: () => page.undo() }, kbd("z"));
    this.root = h("section", { "aria-label": "Compare the replies" },
      h("div", { class: "toolbar" }, this.undoButton,
        button("Swap sides ", { class: "quiet", onclick: () => this.swap() }, kbd("v")),
        button("Mark differences", { class: "quiet", onclick: () => page.compare() }),
        page.viewButton()),
      this.panes);
    this.controls = h("div", { class: "verdicts", role: "group", "aria-label": "Your verdict" },
      this.buttons, settings.strength ? this.strength : null);
    this.keys = {
      digit: (digit) => this.decide(digit), unrank: () => this.decide(0),
      compare: () => this.swap(), letter: (letter) => "AB".includes(letter) && page.focus(letter),
      next: () => scrollBy(0, 120), prev: () => scrollBy(0, -120),
      flag: (key, shift) => this.flags[page.current]?.list.toggle(key, shift) ?? false,
    };
  }

  #questions(schema) {
    return Object.fromEntries([...this.page.letters].map((letter) => {
      const list = new FlagList(this.page, `flags.${letter}`, schema.reply_flags, true);
      const count = h("span", { class: "count" });
      const root = h("details", { class: "questions" },
        h("summary", {}, `Questions about reply ${letter} `, count), list.root);
      return [letter, { list, count, root }];
    }));
  }

  enter() {
    for (const [letter, { root }] of Object.entries(this.flags))
      this.page.cards[letter].root.append(root);
  }

  decide(number) {
    const [, label, change] = this.verdicts[number - 1] ?? [];
    if (!change && number) return;
    const keep = change?.slots[1] ? {} : { strength: null };
    this.page.change({ ...(change ?? NONE), ...keep }, change ? label : "No verdict");
  }

  setStrength(value) {
    if (!this.page.answer.value.slots[1]) return;
    const next = this.page.answer.value.strength === value ? null : value;
    this.page.change({ strength: next }, next ? `${value} better` : "No strength");
  }

  swap() {
    const ui = this.page.answer.ui;
    ui.swapped = !ui.swapped;
    this.page.answer.type("swapped", true); // a record, nothing to undo
    this.page.refresh();
    this.page.save();
    this.page.say(`Reply ${ui.swapped ? "B" : "A"} is on the left`);
  }

  verdict() {
    const { slots, both_bad } = this.page.answer.value;
    const at = this.verdicts.findIndex(([, , change]) =>
      change.slots.join() === slots.join() && change.both_bad === both_bad);
    return at < 0 ? null : this.verdicts[at];
  }

  update() {
    const { page } = this, { value, ui, past } = page.answer;
    const order = ui.swapped ? "BA" : "AB";
    [...order].forEach((letter, i) => {
      const { root } = page.cards[letter];
      if (this.panes.children[i] !== root) moveTo(this.panes, root, this.panes.children[i] ?? null);
      page.cards[letter].update({
        rating: value.ratings[letter], most: page.assignment.schema.rating_max, rank: 0,
        where: "", current: letter === page.current,
      });
    });
    const given = this.verdict()?.[0];
    for (const each of this.buttons)
      each.setAttribute("aria-pressed", each.dataset.verdict === given);
    this.strength.hidden = !value.slots[1];
    for (const each of this.strengths)
      each.setAttribute("aria-pressed", each.dataset.strength === value.strength);
    for (const { list, count } of Object.values(this.flags)) {
      list.update();
      count.textContent = `${list.answered()} of ${list.flags.length} answered`;
    }
    this.undoButton.disabled = !past.length;
  }

  summary() {
    const verdict = this.verdict();
    return { text: "", left: verdict ? 0 : 1 };
  }

  missing() {
    if (this.verdict()) return null;
    return { message: "There is no verdict yet: choose the better reply, or a tie.",
      focus: () => this.buttons[0].focus() };
  }
}
