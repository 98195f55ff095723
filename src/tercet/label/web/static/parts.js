// The parts that not every item needs at once. Each is fetched when the first item that needs it
// comes, or soon after the page was painted, so that a page which goes offline has them all.
const STEPS = {
  rate: () => import("./rate.js"), rank: () => import("./rank.js"),
  compare: () => import("./pair.js"), write: () => import("./write.js"),
};
const EXTRAS = {
  dialogs: () => import("./dialogs.js"), differences: () => import("./compare.js"),
  drag: () => import("./drag.js"),
};
const PARTS = { ...STEPS, ...EXTRAS };
const AGAIN_MS = 2000;
const asked = {};

export const load = (name) => (asked[name] ??= fetched(name));

async function fetched(name) {
  for (;;) {
    try {
      return await PARTS[name]();
    } catch {
      await new Promise((done) => setTimeout(done, AGAIN_MS));
    }
  }
}

// The steps of an item, in order; the page's `data-state` names the one that is open.
export function stepsOf({ project, settings, replies }) {
  if (project.kind === "demonstration") return ["write"];
  return [...(settings.rate ? ["rate"] : []), replies.length === 2 ? "compare" : "rank"];
}

// What the first item of a project most likely takes, before it is known.
export function expect(kind) {
  const names = { demonstration: ["write"], evaluate: ["compare"] }[kind] ?? ["rate", "rank"];
  names.forEach(load);
}

export function loadRest(kind) {
  const names = kind === "demonstration" ? ["dialogs"] : Object.keys(PARTS).filter((n) => n !== "write");
  requestAnimationFrame(() => setTimeout(() => names.forEach(load)));
}
