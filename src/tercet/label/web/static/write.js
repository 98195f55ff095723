// A demonstration: a person writes the reply, and where the task is open the prompt too.
import { h, plural, words } from "./dom.js";

const LIMIT = 64 * 1024;
const bytes = (text) => new TextEncoder().encode(text).length;

export class View {
  state = "write";
  keys = {};

  constructor(page) {
    this.page = page;
    this.fields = [];
    if (page.assignment.settings.open_prompt)
      this.#field("prompt", "open-prompt", "Prompt", "What would a person ask?", 4);
    this.#field("text", "reply", "Your reply", "Write the reply that you would like to get.", 12);
    this.root = h("section", { class: "write", "aria-label": "Write" },
      this.fields.map((field) => field.root));
  }

  #field(path, id, label, help, rows) {
    const count = h("span", { class: "count", id: `${id}-count` });
    const input = h("textarea", { id, rows, dir: "auto", "aria-describedby": `${id}-help ${id}-count` });
    const field = { path, input, count };
    input.addEventListener("input", () => {
      this.page.type(path, input.value);
      this.#count(field);
    });
    field.root = h("div", { class: "field" },
      h("div", { class: "field-head" }, h("label", { for: id }, label), count),
      h("p", { class: "help", id: `${id}-help` }, help), input);
    this.fields.push(field);
  }

  #count({ input, count }) {
    const over = bytes(input.value) - LIMIT;
    count.textContent = `${plural(words(input.value), "word")}, ` +
      `${plural([...input.value].length, "character")}${over > 0 ? `, ${over} bytes too long` : ""}`;
    count.classList.toggle("bad", over > 0);
  }

  update() {
    for (const field of this.fields) {
      const value = this.page.answer.value[field.path] ?? "";
      if (field.input.value !== value) field.input.value = value;
      this.#count(field);
    }
  }

  focus() {
    this.fields[0].input.focus({ preventScroll: true });
  }

  summary() {
    return { text: "", left: this.missing() ? 1 : 0 };
  }

  missing() {
    const names = { prompt: "The prompt", text: "The reply" };
    for (const { path, input } of this.fields) {
      const focus = () => input.focus();
      if (!input.value.trim()) return { message: `${names[path]} is empty.`, focus };
      if (bytes(input.value) > LIMIT) return { message: `${names[path]} is too long.`, focus };
    }
    return null;
  }
}
