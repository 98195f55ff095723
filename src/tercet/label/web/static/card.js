// One reply: its text and the controls that rank it. Built once per assignment, then only moved.
import { button, h } from "./dom.js";
import { markdown, plain } from "./text.js";

export class Card {
  constructor(reply, letters, on) {
    this.id = reply.id;
    this.letter = reply.letter;
    this.source = reply.text;
    this.text = plain(reply.text);
    this.chip = h("span", { class: "chip", title: "Your rating" });
    this.where = h("span", { class: "hidden", id: `where-${reply.letter}` });
    const name = `reply ${reply.letter}`;
    this.select = h("select", { "data-role": "rank", "aria-label": `Rank of ${name}` },
      h("option", { value: "0" }, "Unranked"),
      [...letters].map((_, i) => h("option", { value: i + 1 }, `Rank ${i + 1}`)));
    this.select.addEventListener("change", () => on.place(this.letter, Number(this.select.value)));
    const tool = (role, label, act) => button("", {
      class: "tool", "data-role": role, "aria-label": `${label} ${name}`, title: label,
      onclick: () => act(this.letter),
    });
    this.tools = h("div", { class: "tools" },
      this.select, tool("up", "Move up", on.up), tool("down", "Move down", on.down),
      tool("compare", "Compare", on.compare),
      // The pointer's way only: the select and the buttons do the same.
      h("span", { class: "tool", "data-role": "drag", title: "Drag to a rank" }));
    this.head = h("header", { class: "card-head" },
      h("h3", { class: "letter", id: `name-${reply.letter}` },
        h("span", { class: "hidden" }, "Reply "), reply.letter),
      this.chip, this.where,
      reply.cut ? h("span", { class: "tag" }, "cut at the length limit") : null, this.tools);
    this.root = h("article", {
      class: "card", "data-reply": reply.id, "data-letter": reply.letter, tabindex: "-1",
      "aria-labelledby": `name-${reply.letter}`, "aria-describedby": `where-${reply.letter}`,
    }, this.head, this.text);
    // Long texts are laid out when they come into view; until then their height is a guess.
    const lines = reply.text.length / 70;
    this.root.classList.toggle("long", lines > 30);
    this.root.style.setProperty("--lines", Math.round(lines));
  }

  // The text as it is, or the tree of nodes that the server made of it.
  show(nodes) {
    const text = nodes ? markdown(nodes) : plain(this.source);
    this.text.replaceWith(text);
    this.text = text;
  }

  update({ rating, most, rank, where, current }) {
    this.chip.textContent = rating ? `${rating}/${most}` : "";
    this.select.value = rank;
    this.where.textContent = where;
    this.root.classList.toggle("current", current);
    this.root.tabIndex = current ? 0 : -1;
  }
}
