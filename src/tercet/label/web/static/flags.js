// Yes/no questions with a third answer, "not answered", which is where each one starts.
import { h, kbd } from "./dom.js";

const CHOICES = [[true, "Yes"], [false, "No"], [null, "–"]];

// `path` is where the answers stand, "flags.A" or "prompt_flags".
export class FlagList {
  constructor(page, path, flags, withKeys = false) {
    Object.assign(this, { page, path, flags });
    this.inputs = new Map();
    this.root = h("div", { class: "flags" }, flags.map((flag) => this.#row(flag, withKeys)));
  }

  #row(flag, withKeys) {
    const name = `${this.path}.${flag.id}`, id = `q-${name.replaceAll(".", "-")}`;
    return h("div", { class: "flag", role: "radiogroup", "aria-labelledby": id },
      h("span", { class: "flag-label", id, title: flag.help || null }, flag.label),
      withKeys && flag.key ? kbd(flag.key) : null,
      h("span", { class: "segments" }, CHOICES.map(([value, label]) => {
        const input = h("input", {
          type: "radio", name, value: String(value), "data-flag": flag.id,
          "data-value": String(value), "aria-label": value === null ? "Not answered" : label,
        });
        input.addEventListener("change", () => this.set(flag, value));
        this.inputs.set(`${flag.id} ${value}`, input);
        return h("label", { class: `segment ${value}` }, input, h("span", {}, label));
      })));
  }

  set(flag, value) {
    const words = value === null ? "not answered" : value ? "yes" : "no";
    this.page.change({ [`${this.path}.${flag.id}`]: value }, `${flag.label}: ${words}`);
  }

  // The key says yes, with Shift no; the same key again takes the answer back.
  toggle(key, shift) {
    const flag = this.flags.find((other) => other.key === key);
    if (!flag) return false;
    const now = this.page.answer.get(`${this.path}.${flag.id}`) ?? null;
    this.set(flag, now === !shift ? null : !shift);
    return true;
  }

  answered() {
    const given = this.page.answer.get(this.path) ?? {};
    return this.flags.filter(({ id }) => (given[id] ?? null) !== null).length;
  }

  update() {
    const given = this.page.answer.get(this.path) ?? {};
    for (const { id } of this.flags) {
      const input = this.inputs.get(`${id} ${given[id] ?? null}`);
      if (!input.checked) input.checked = true;
    }
  }
}
