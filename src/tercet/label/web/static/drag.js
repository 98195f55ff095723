// Dragging a reply by its handle: mouse, pen and touch alike. A small label follows the pointer;
// the page scrolls when the pointer is near an edge.
import { h } from "./dom.js";
import * as rank from "./rankstate.js";

const EDGE = 56, STEP = 14, SLACK = 4, BETWEEN = 14;

export class Drag {
  constructor(view, page) {
    Object.assign(this, { view, page });
    view.board.addEventListener("pointerdown", (event) => this.down(event));
  }

  down(event) {
    const handle = event.target.closest("[data-role=drag]");
    if (!handle || event.button !== 0 || this.letter) return;
    event.preventDefault();
    this.letter = handle.closest("article").dataset.letter;
    this.id = event.pointerId;
    [this.x, this.y] = [event.clientX, event.clientY];
    this.from = [this.x, this.y];
    this.stop = new AbortController();
    const options = { signal: this.stop.signal };
    addEventListener("pointermove", (e) => e.pointerId === this.id && this.move(e), options);
    addEventListener("pointerup", (e) => e.pointerId === this.id && this.end(true), options);
    addEventListener("pointercancel", (e) => e.pointerId === this.id && this.end(false), options);
    addEventListener("blur", () => this.end(false), options);
    addEventListener("scroll", () => this.label && this.show(), { ...options, capture: true });
    addEventListener("keydown", (e) => {
      if (e.key === "Escape") this.end(false);
      e.preventDefault();
      e.stopImmediatePropagation();
    }, { ...options, capture: true });
  }

  move(event) {
    [this.x, this.y] = [event.clientX, event.clientY];
    if (!this.label) {
      if (Math.hypot(this.x - this.from[0], this.y - this.from[1]) < SLACK) return;
      this.page.focus(this.letter, false);
      this.label = h("div", { class: "drag-label", "aria-hidden": "true" }, this.letter);
      document.body.append(this.label);
      this.view.board.classList.add("dragging");
      this.page.cards[this.letter].root.classList.add("dragged");
      requestAnimationFrame(() => this.scroll());
    }
    this.show();
  }

  scroll() {
    if (!this.label) return;
    const { prompt, bar } = this.page;
    const top = prompt.height() + EDGE, bottom = innerHeight - bar.offsetHeight - EDGE;
    const by = this.y < top ? -STEP : this.y > bottom ? STEP : 0;
    if (by) {
      const { ranking } = this.view, before = ranking.scrollTop;
      if (inside(ranking.getBoundingClientRect(), this)) ranking.scrollTop += by;
      if (ranking.scrollTop === before) scrollBy(0, by);
      this.show();
    }
    requestAnimationFrame(() => this.scroll());
  }

  show() {
    this.label.style.transform = `translate(${this.x + 10}px, ${this.y + 6}px)`;
    const target = this.target();
    const { pool, bins } = this.view;
    pool.classList.toggle("drop", target.rank === 0);
    bins.forEach(({ group }, i) => {
      group.classList.toggle("drop", target.rank === i + 1);
      group.classList.toggle("drop-before", target.gap === i);
      group.classList.toggle("drop-after", target.gap === bins.length && i === bins.length - 1);
    });
  }

  // {rank} to join what stands there (0: unranked), or {gap} for a new place between two ranks.
  target() {
    const { pool, ranking, bins } = this.view;
    const list = ranking.getBoundingClientRect();
    const left = this.x < list.left && this.y > list.top - EDGE;
    if (inside(pool.getBoundingClientRect(), this) || left) return { rank: 0 };
    for (const [i, { group }] of bins.entries()) {
      const { top, bottom } = group.getBoundingClientRect();
      if (this.y > bottom + SLACK) continue;
      if (group.classList.contains("empty")) return { rank: i + 1 };
      if (this.y < top + BETWEEN) return { gap: i };
      if (this.y > bottom - BETWEEN) return { gap: i + 1 };
      return { rank: i + 1 };
    }
    return { gap: bins.length };
  }

  end(drop) {
    const { letter, view, page } = this;
    this.stop.abort();
    this.letter = null;
    if (!this.label) return;
    const target = this.target();
    this.label.remove();
    this.label = null;
    view.board.classList.remove("dragging");
    page.cards[letter].root.classList.remove("dragged");
    for (const node of [view.pool, ...view.bins.map((bin) => bin.group)])
      node.classList.remove("drop", "drop-before", "drop-after");
    if (!drop) return;
    if (target.gap === undefined) view.place(letter, target.rank);
    else view.set(rank.insert(page.answer.value.slots, letter, target.gap), letter);
  }
}

function inside(rect, { x, y }) {
  return x >= rect.left && x <= rect.right && y >= rect.top && y <= rect.bottom;
}
