// Texts of models and people, shown as text: invisible characters get a visible marker, and the
// element's textContent stays exactly the text.
import { h } from "./dom.js";

const INVISIBLE =
  /([\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u00ad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|[\u{e0000}-\u{e007f}])\1*/gu;
const NAMES = {
  "\u00ad": "soft hyphen", "\u200b": "zero-width space", "\u200c": "zero-width non-joiner",
  "\u200d": "zero-width joiner", "\u200e": "left-to-right mark", "\u200f": "right-to-left mark",
  "\u202a": "left-to-right embedding", "\u202b": "right-to-left embedding",
  "\u202c": "end of a direction", "\u202d": "left-to-right override",
  "\u202e": "right-to-left override", "\u2060": "word joiner", "\u2066": "left-to-right isolate",
  "\u2067": "right-to-left isolate", "\u2068": "isolate", "\u2069": "end of an isolate",
  "\ufeff": "byte order mark",
};
// A joiner after these is part of an emoji or of ordinary spelling.
// (No `$` after these classes: V8 builds exist where it never matches beyond U+FFFF.)
const JOINS = /[\u00a9\u00ae\u203c-\u3299\ufe0f\u{1f000}-\u{1faff}]/u;
const SPELLS = /[\u0600-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc\p{M}]/u; // Arabic to Khmer
const TAGS_FOLLOW = /[\u{1f3f4}\u{e0020}-\u{e007f}]/u;
const MOST_MARKERS = 4000;

function harmless(run, before) {
  if (run === "\u200d") return JOINS.test(before) || SPELLS.test(before);
  if (run === "\u200c") return SPELLS.test(before);
  return run >= "\u{e0020}" && TAGS_FOLLOW.test(before);
}

function lastCharacter(text, end) {
  return [...text.slice(Math.max(0, end - 2), end)].at(-1) ?? "";
}

export function parts(text) {
  const nodes = [];
  let from = 0;
  for (const match of text.matchAll(INVISIBLE)) {
    if (nodes.length > MOST_MARKERS) break;
    const run = match[0];
    if (harmless(run, lastCharacter(text, match.index))) continue;
    if (match.index > from) nodes.push(text.slice(from, match.index));
    const code = `U+${run.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}`;
    const times = run.length > match[1].length ? ` ×${run.length / match[1].length}` : "";
    const title = `${NAMES[match[1]] ?? "control character"}, ${code}${times}`;
    nodes.push(h("span", { class: "mark", "data-code": code + times, title }, run));
    from = match.index + run.length;
  }
  if (from < text.length) nodes.push(text.slice(from));
  return nodes;
}

export function plain(text, props = {}) {
  return h("div", { class: "text", dir: "auto", ...props }, parts(text));
}

const TAGS = {
  p: "p", ul: "ul", ol: "ol", li: "li", code: "code", quote: "blockquote", em: "em",
  strong: "strong", br: "br", hr: "hr",
};

// The server's tree of allowed nodes; whatever is not known is shown as its text.
export function markdown(nodes) {
  const build = (node) => {
    const inside = () => (node.c ?? []).map(build).flat();
    if (node.t === "text") return parts(node.v ?? "");
    if (node.t === "pre") return h("pre", {}, h("code", { dir: "auto" }, parts(node.v ?? ""), inside()));
    if (node.t === "h") return h("p", { class: "heading", dir: "auto" }, inside());
    if (node.t === "link") return h("span", { class: "link" }, inside(), address(node));
    if (TAGS[node.t]) return h(TAGS[node.t], { dir: "auto" }, parts(node.v ?? ""), inside());
    return [...parts(node.v ?? ""), ...inside()];
  };
  return h("div", { class: "text rich", dir: "auto" }, nodes.map(build).flat());
}

function address(node) {
  return node.v ? h("span", { class: "address" }, " (", parts(node.v), ")") : null;
}
