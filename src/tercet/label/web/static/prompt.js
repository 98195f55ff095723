// The head of an item: its prompt, which stays in view, and what is asked about it.
import { button, h } from "./dom.js";
import { FlagList } from "./flags.js";
import { markdown, plain } from "./text.js";

export class PromptPanel {
  constructor({ prompt, project, settings }) {
    this.source = prompt.text;
    this.text = plain(prompt.text);
    this.expand = button("Expand", {
      class: "quiet small", "aria-expanded": "false", onclick: () => this.#toggle(),
    });
    this.body = h("div", { class: "prompt-text", tabindex: "0", role: "region",
      "aria-label": "Text of the prompt" }, this.text);
    this.root = h("section", {
      class: "prompt", "aria-label": "Prompt", hidden: !prompt.text && settings.open_prompt,
    }, h("header", {}, h("h2", {}, "Prompt"),
      prompt.tags?.map((tag) => h("span", { class: "tag" }, tag.replaceAll("_", " "))),
      project.criterion ? h("span", { class: "criterion" }, project.criterion) : null, this.expand),
    this.body);
    this.watch = new ResizeObserver(() => this.#measure());
    this.watch.observe(this.root);
  }

  // The text as it is, or the tree of nodes that the server made of it.
  show(nodes) {
    const text = nodes ? markdown(nodes) : plain(this.source);
    this.text.replaceWith(text);
    this.text = text;
  }

  // How much of the top of the window it covers.
  height() {
    return getComputedStyle(this.root).position === "sticky" ? this.root.offsetHeight : 0;
  }

  #toggle() {
    const open = this.root.classList.toggle("open");
    this.expand.textContent = open ? "Shrink" : "Expand";
    this.expand.setAttribute("aria-expanded", open);
  }

  #measure() {
    const { scrollHeight, clientHeight } = this.body;
    this.expand.hidden = scrollHeight <= clientHeight && !this.root.classList.contains("open");
    document.documentElement.style.setProperty("--pinned", `${this.height()}px`);
  }
}

export class About {
  constructor(page) {
    const { settings, schema } = page.assignment;
    this.page = page;
    this.note = h("textarea", { name: "note", rows: "2", dir: "auto", maxlength: "4000",
      oninput: () => page.type("note", this.note.value) });
    this.flags = settings.ask_prompt_flags
      ? new FlagList(page, "prompt_flags", schema.prompt_flags) : null;
    this.count = h("span", { class: "count" });
    this.root = h("details", { class: "about", open: page.answer.ui.about },
      h("summary", {}, this.flags ? "Questions about the prompt, and a note " : "Note ", this.count),
      this.flags?.root, h("label", { class: "field" }, "Note about this item (optional)", this.note));
    this.root.addEventListener("toggle", () => this.#toggled());
  }

  update() {
    const { note } = this.page.answer.value;
    this.flags?.update();
    if (this.note.value !== note) this.note.value = note;
  }

  counted() {
    this.count.textContent = [
      this.flags && `${this.flags.answered()} of ${this.flags.flags.length} answered`,
      this.page.answer.value.note && "with a note",
    ].filter(Boolean).join(", ");
  }

  #toggled() {
    const { ui } = this.page.answer;
    if (Boolean(ui.about) === this.root.open) return;
    ui.about = this.root.open;
    this.page.save();
  }
}
