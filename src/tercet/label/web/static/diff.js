// Which words two texts do not share: Myers' O(ND) difference, with a bound on the work.

const TOKEN = /(?:\p{Script=Han}|[\p{L}\p{M}\p{N}_'’]+|[^\p{L}\p{M}\p{N}\s])\s*|\s+/gu;
const MOST_EDITS = 3000;

export const tokens = (text) => text.match(TOKEN) ?? [];

// -> {a, b, exact}: two lists of [text, changed]; joined they are the texts again. Not exact: the
// texts differ too much, and the whole middle is called changed.
export function diff(left, right, mostEdits = MOST_EDITS) {
  const a = tokens(left), b = tokens(right);
  const keysA = a.map((t) => t.trim()), keysB = b.map((t) => t.trim());
  let start = 0, endA = a.length, endB = b.length;
  while (start < endA && start < endB && keysA[start] === keysB[start]) start += 1;
  while (endA > start && endB > start && keysA[endA - 1] === keysB[endB - 1]) endA -= 1, endB -= 1;
  const same = myers(keysA.slice(start, endA), keysB.slice(start, endB), mostEdits);
  const keptA = new Set(same?.map(([i]) => i + start)), keptB = new Set(same?.map(([, j]) => j + start));
  const mark = (list, kept, end) =>
    runs(list.map((text, i) => [text, i >= start && i < end && !kept.has(i)]));
  return { a: mark(a, keptA, endA), b: mark(b, keptB, endB), exact: same !== null };
}

function runs(list) {
  const out = [];
  for (const [text, changed] of list) {
    const last = out.at(-1);
    if (last && last[1] === changed) last[0] += text;
    else out.push([text, changed]);
  }
  return out;
}

// Pairs [i, j] of a longest common subsequence, or null when more than `most` edits are needed.
function myers(a, b, most) {
  const n = a.length, m = b.length, bound = Math.min(n + m, most);
  const reach = new Int32Array(2 * bound + 3), trace = [];
  const offset = bound + 1;
  for (let d = 0; d <= bound; d += 1) {
    for (let k = -d; k <= d; k += 2) {
      const down = k === -d || (k !== d && reach[offset + k - 1] < reach[offset + k + 1]);
      let x = down ? reach[offset + k + 1] : reach[offset + k - 1] + 1;
      while (x < n && x - k < m && a[x] === b[x - k]) x += 1;
      reach[offset + k] = x;
      if (x >= n && x - k >= m) return path(trace, n, m, d);
    }
    trace.push(reach.slice(offset - d, offset + d + 1));
  }
  return null;
}

function path(trace, n, m, edits) {
  const pairs = [];
  let x = n, y = m;
  for (let d = edits; d > 0; d -= 1) {
    const reach = trace[d - 1], at = (k) => reach[k + d - 1] ?? -1, k = x - y;
    const down = k === -d || (k !== d && at(k - 1) < at(k + 1));
    const before = down ? at(k + 1) : at(k - 1);
    const corner = down ? before : before + 1;
    while (x > corner) pairs.push([(x -= 1), (y -= 1)]);
    x = before;
    y = before - (down ? k + 1 : k - 1);
  }
  while (x > 0) pairs.push([(x -= 1), (y -= 1)]);
  return pairs.reverse();
}
