// Two replies side by side: scrolled together, with the words they do not share marked.
import { $, button, h, kbd } from "./dom.js";
import { diff } from "./diff.js";
import { parts, plain } from "./text.js";

export class CompareDialog {
  constructor(page) {
    this.page = page;
    this.sides = [this.#side(0), this.#side(1)];
    this.mark = h("input", { type: "checkbox", checked: true, id: "diff" });
    this.mark.addEventListener("change", () => this.show());
    this.note = h("span", { class: "count", role: "status" });
    this.root = h("dialog", { id: "compare", class: "wide", "aria-labelledby": "compare-title" },
      h("header", { class: "dialog-head" },
        h("h2", { id: "compare-title" }, "Compare"),
        h("label", { class: "check" }, this.mark, "Mark different words"), this.note,
        button("Close ", { class: "quiet close", onclick: () => this.root.close() }, kbd("Esc"))),
      h("div", { class: "panes" }, this.sides.map((side) => side.root)));
    this.root.addEventListener("close", () => {
      this.root.remove();
      document.body.dataset.state = page.view.state;
    });
  }

  #side(index) {
    const select = h("select", { "aria-label": index ? "Right reply" : "Left reply" },
      [...this.page.letters].map((letter) => h("option", { value: letter }, `Reply ${letter}`)));
    const where = h("span", { class: "count" });
    const text = h("div", { class: "pane-text", tabindex: "0", role: "region" });
    select.addEventListener("change", () => this.show());
    text.addEventListener("scroll", () => this.#together(index), { passive: true });
    return { select, where, text,
      root: h("section", { class: "pane" }, h("header", {}, select, where), text) };
  }

  open(left, right) {
    this.sides[0].select.value = left;
    this.sides[1].select.value = right;
    document.body.append(this.root);
    document.body.dataset.state = "compare";
    this.root.showModal();
    this.show();
    for (const { text } of this.sides) text.scrollTop = 0;
    this.sides[0].text.focus();
  }

  show() {
    const letters = this.sides.map((side) => side.select.value);
    const sources = letters.map((letter) => this.page.cards[letter].source);
    const result = this.mark.checked ? diff(...sources) : null;
    this.sides.forEach((side, i) => {
      const other = ["del", "ins"][i];
      const content = result
        ? h("div", { class: "text", dir: "auto" }, [result.a, result.b][i].map(([text, changed]) =>
            changed ? h(other, {}, parts(text)) : parts(text)).flat())
        : plain(sources[i]);
      side.text.replaceChildren(content);
      side.text.setAttribute("aria-label", `Reply ${letters[i]}`);
      side.where.textContent = this.page.where(letters[i]);
    });
    this.note.textContent = result && !result.exact ? "Too different to match word by word." : "";
  }

  // The other side goes to the same share of its height.
  #together(index) {
    if (this.following === index) {
      this.following = null;
      return;
    }
    const from = this.sides[index].text, to = this.sides[1 - index].text;
    const room = from.scrollHeight - from.clientHeight;
    const top = Math.round((room ? from.scrollTop / room : 0) * (to.scrollHeight - to.clientHeight));
    if (Math.abs(to.scrollTop - top) < 1) return;
    this.following = 1 - index;
    to.scrollTop = top;
  }
}

// Any two texts in the same manner, for the conflict of two tabs.
export function differences(mine, theirs) {
  const { a, b } = diff(mine, theirs);
  const side = (tag, list) => h("div", { class: "text", dir: "auto" },
    list.map(([text, changed]) => (changed ? h(tag, {}, parts(text)) : parts(text))).flat());
  return [side("ins", a), side("ins", b)];
}
