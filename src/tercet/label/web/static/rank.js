// The rank step: unranked replies, and the ranking in bins 1..K.
import { button, h, kbd, moveTo, plural } from "./dom.js";
import { load } from "./parts.js";
import * as rank from "./rankstate.js";

export class View {
  state = "rank";

  constructor(page) {
    this.page = page;
    this.pool = h("section", { class: "pool", "data-rank": "0", role: "group" });
    this.bins = [...page.letters].map((_, i) => {
      const cards = h("div", { class: "bin-cards" });
      const note = h("span", { class: "bin-note" });
      const group = h("div", { class: "bin", "data-rank": i + 1, role: "group" },
        h("div", { class: "bin-head" }, h("span", { class: "bin-rank" }, `${i + 1}`), note), cards);
      return { item: h("li", {}, group), group, cards, note };
    });
    this.poolCount = h("span", { class: "count" });
    this.arrangeButton = button("Arrange by my ratings", {
      class: "quiet", onclick: () => this.arrange(),
    });
    this.undoButton = button("Undo ", { class: "quiet", onclick: () => page.undo() }, kbd("z"));
    this.redoButton = button("Redo", { class: "quiet", onclick: () => page.undo(true) });
    this.poolSide = h("div", { class: "side" },
      h("h2", {}, "Unranked ", this.poolCount), this.pool);
    this.ranking = h("div", { class: "side ranking" },
      h("h2", {}, "Your ranking ", h("span", { class: "count" }, "best first, ties allowed")),
      h("ol", { class: "bins", role: "list" }, this.bins.map((bin) => bin.item)));
    this.board = h("div", { class: "board" }, this.poolSide, this.ranking);
    this.root = h("section", { "aria-label": "Rank the replies" },
      h("div", { class: "toolbar" },
        this.undoButton, this.redoButton,
        button("Compare ", { class: "quiet", onclick: () => page.compare() }, kbd("v")),
        page.assignment.settings.rate ? this.arrangeButton : null, page.viewButton()),
      this.board);
    this.keys = {
      next: () => page.step(1), prev: () => page.step(-1),
      up: () => this.act("move", -1), down: () => this.act("move", 1),
      tie: () => this.act("tie"), split: () => this.act("split"), unrank: () => this.act("unrank"),
      compare: () => page.compare(),
      letter: (letter) => page.letters.includes(letter) && page.focus(letter),
      digit: (digit) => this.place(page.current, digit, true),
    };
  }

  begin() {
    return rank.unranked(this.page.answer.value.slots, this.page.letters)[0];
  }

  enter() {
    this.drag ??= load("drag").then(({ Drag }) => new Drag(this, this.page));
  }

  act(name, ...rest) {
    const { page } = this, letter = page.current;
    this.set(rank[name](page.answer.value.slots, letter, ...rest), letter);
  }

  // By key, the focus goes on to the next reply without a rank; else it stays with this one.
  place(letter, to, onward = false) {
    const { page } = this, { slots } = page.answer.value;
    if (to > slots.length) return page.say(`There are ${slots.length} ranks`);
    const before = rank.rankOf(slots, letter);
    const next = to ? rank.place(slots, letter, to) : rank.unrank(slots, letter);
    this.set(next, letter, onward && !before ? this.nextUnranked(next, letter) : letter);
  }

  nextUnranked(slots, letter) {
    const left = rank.unranked(slots, this.page.letters);
    return left.find((other) => other > letter) ?? left[0] ?? letter;
  }

  set(slots, letter, focus = letter) {
    const { page } = this;
    const message = rank.describe(slots, page.letters, letter);
    page.change({ slots, both_bad: false }, message, focus);
  }

  arrange() {
    const { page } = this;
    const slots = rank.arrange(page.letters, page.answer.value.ratings);
    if (!slots.some(Boolean)) return page.say("No reply has a rating yet");
    const left = rank.unranked(slots, page.letters);
    page.change({ slots, arranged: true },
      `Arranged by your ratings; ${left.length ? `${left.length} unranked` : "all ranked"}`,
      left[0] ?? slots.find(Boolean)[0]);
  }

  update() {
    const { page } = this, { answer } = page, { slots } = answer.value;
    const left = rank.unranked(slots, page.letters);
    this.fill(this.pool, left);
    this.bins.forEach((bin, i) => {
      const count = slots[i].length;
      this.fill(bin.cards, [...slots[i]]);
      bin.group.classList.toggle("empty", !count);
      bin.note.textContent = count > 1 ? "tie" : count ? "" : "empty";
      const size = count ? plural(count, "reply", "replies") : "empty";
      bin.group.setAttribute("aria-label", `Rank ${i + 1}, ${size}${count > 1 ? ", tied" : ""}`);
    });
    this.poolCount.textContent = `${left.length} of ${page.letters.length}`;
    this.pool.setAttribute("aria-label", `Unranked, ${plural(left.length, "reply", "replies")}`);
    this.board.classList.toggle("done", !left.length);
    for (const letter of page.letters) {
      const at = rank.rankOf(slots, letter);
      page.cards[letter].update({
        rating: answer.value.ratings[letter], most: page.assignment.schema.rating_max, rank: at,
        where: rank.describe(slots, page.letters, letter).replace(/^Reply .,|;.*$/g, ""),
        current: letter === page.current,
      });
    }
    this.undoButton.disabled = !answer.past.length;
    this.redoButton.disabled = !answer.future.length;
  }

  fill(parent, letters) {
    let at = parent.firstElementChild;
    for (const letter of letters) {
      const { root } = this.page.cards[letter];
      if (root === at) at = at.nextElementSibling;
      else moveTo(parent, root, at);
    }
  }

  // What the strip at the bottom says.
  summary() {
    const { slots } = this.page.answer.value;
    const left = rank.unranked(slots, this.page.letters).length;
    return { text: rank.summary(slots), left };
  }

  missing() {
    const left = rank.unranked(this.page.answer.value.slots, this.page.letters);
    if (!left.length) return null;
    return {
      message: `${plural(left.length, "reply has", "replies have")} no rank yet: ${left.join(", ")}.`,
      focus: () => this.page.focus(left[0]),
    };
  }
}
