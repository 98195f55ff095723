// The rate step: one reply at a time, overall quality and the questions about it.
import { $, button, h, kbd, moveTo } from "./dom.js";
import { FlagList } from "./flags.js";

export class View {
  state = "rate";

  constructor(page) {
    this.page = page;
    this.forms = {};
    this.marks = {};
    this.steps = Object.fromEntries([...page.letters].map((letter) => {
      this.marks[letter] = h("span", { class: "step-mark" });
      return [letter, button(letter, { class: "step", onclick: () => page.focus(letter) },
        this.marks[letter])];
    }));
    this.reading = h("div", { class: "reading" });
    this.asking = h("div", { class: "asking" });
    this.root = h("section", { "aria-label": "Rate the replies" },
      h("div", { class: "toolbar" },
        h("nav", { class: "steps", "aria-label": "Replies" }, Object.values(this.steps)),
        page.viewButton()),
      h("div", { class: "rate" }, this.reading, this.asking));
    this.keys = {
      next: () => this.#group(1), prev: () => this.#group(-1), unrank: () => this.rate(null),
      digit: (digit) => digit <= page.assignment.schema.rating_max && this.rate(digit),
      flag: (key, shift) => this.form().flags.toggle(key, shift),
    };
  }

  begin() {
    return [...this.page.letters].find((letter) => !this.page.answer.value.ratings[letter]);
  }

  enter() {
    for (const letter of this.page.letters) moveTo(this.reading, this.page.cards[letter].root);
  }

  form() {
    return (this.forms[this.page.current] ??= this.#build(this.page.current));
  }

  rate(value) {
    const letter = this.page.current;
    this.page.change({ [`ratings.${letter}`]: value },
      value ? `Reply ${letter}: ${value} of ${this.page.assignment.schema.rating_max}`
        : `Reply ${letter}: rating removed`);
  }

  #build(letter) {
    const { schema, replies } = this.page.assignment, { page } = this;
    const { id } = replies.find((reply) => reply.letter === letter);
    const inputs = Array.from({ length: schema.rating_max }, (_, i) => {
      const input = h("input", { type: "radio", name: `rating-${id}`, value: i + 1 });
      input.addEventListener("change", () => this.rate(i + 1));
      return input;
    });
    const flags = new FlagList(page, `flags.${letter}`, schema.reply_flags, true);
    const note = h("textarea", { name: `note-${id}`, rows: "2", dir: "auto", maxlength: "2000" });
    note.addEventListener("input", () => page.type(`notes.${letter}`, note.value));
    const root = h("div", { class: "form" },
      h("fieldset", { class: "likert" },
        h("legend", {}, `Overall quality of reply ${letter}`),
        h("div", { class: "scale" },
          inputs.map((input, i) => h("label", { class: "point" }, input, h("span", {}, `${i + 1}`)))),
        h("div", { class: "scale-words" },
          h("span", {}, `1 ${schema.rating_low}`),
          h("span", {}, `${schema.rating_max} ${schema.rating_high}`))),
      schema.reply_flags.length
        ? h("fieldset", {},
            h("legend", {}, "Questions ",
              h("small", {}, "key: yes, ", kbd("Shift"), " + key: no")), flags.root)
        : null,
      h("label", { class: "field" }, `Note about reply ${letter} (optional)`, note));
    return { root, inputs, flags, note };
  }

  update() {
    const { page } = this, { ratings, notes } = page.answer.value;
    for (const letter of page.letters) {
      const current = letter === page.current, rating = ratings[letter];
      page.cards[letter].root.hidden = !current;
      page.cards[letter].update({ rating: null, rank: 0, where: "", current });
      const step = this.steps[letter];
      step.setAttribute("aria-current", current ? "step" : "false");
      step.setAttribute("aria-label", `Reply ${letter}, ${rating ? `rated ${rating}` : "not rated"}`);
      step.classList.toggle("rated", Boolean(rating));
      this.marks[letter].textContent = rating ?? "";
    }
    const form = this.form();
    if (this.asking.firstChild !== form.root) this.asking.replaceChildren(form.root);
    const rating = ratings[page.current];
    for (const input of form.inputs) input.checked = Number(input.value) === rating;
    form.flags.update();
    const note = notes[page.current] ?? "";
    if (form.note.value !== note) form.note.value = note;
  }

  leave() {
    for (const letter of this.page.letters) this.page.cards[letter].root.hidden = false;
  }

  // The focus goes to the chosen (else first) button of the next group of this form.
  #group(by) {
    const groups = [...this.asking.querySelectorAll(".scale, .flag, textarea")];
    const at = groups.findIndex((group) => group.contains(document.activeElement));
    const to = groups[at < 0 ? (by > 0 ? 0 : groups.length - 1) : at + by];
    (to && ($(":checked", to) ?? $("input", to) ?? to))?.focus();
  }

  summary() {
    const { ratings } = this.page.answer.value;
    const rated = [...this.page.letters].filter((letter) => ratings[letter]);
    return { text: `${rated.length} of ${this.page.letters.length} rated`, left: 0 };
  }
}
