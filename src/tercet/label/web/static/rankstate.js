// The rank of each reply, without a page: `slots` is a list of K strings, best first; each holds
// the letters of the replies that stand there. Two letters in one slot are a tie, an empty slot
// means nothing. Every function returns new slots.

export const none = (count) => Array(count).fill("");
export const rankOf = (slots, letter) => slots.findIndex((slot) => slot.includes(letter)) + 1;
export const unranked = (slots, letters) => [...letters].filter((l) => !rankOf(slots, l));
export const bins = (slots) => slots.filter(Boolean).map((slot) => [...slot]);
export const summary = (slots) => bins(slots).map((bin) => bin.join(" = ")).join(" > ");

export function fromBins(lists, count) {
  const filled = lists.map((list) => [...list].sort().join(""));
  return [...filled, ...none(count)].slice(0, count);
}

export const unrank = (slots, letter) => slots.map((slot) => slot.replace(letter, ""));

export function place(slots, letter, rank) {
  if (rank < 1 || rank > slots.length) return slots;
  const next = unrank(slots, letter);
  next[rank - 1] = [...next[rank - 1], letter].sort().join("");
  return next;
}

// One slot up (-1) or down (+1). A reply without a rank goes up to the end of the ranking.
export function move(slots, letter, by) {
  const rank = rankOf(slots, letter);
  if (rank) return place(slots, letter, rank + by);
  return by < 0 ? insert(slots, letter, slots.findLastIndex(Boolean) + 1) : slots;
}

// To the nearest filled slot above; a tie with what stands there.
export function tie(slots, letter) {
  const rank = rankOf(slots, letter);
  if (!rank || slots[rank - 1].indexOf(letter) > 0) return slots;
  for (let above = rank - 1; above >= 1; above -= 1)
    if (slots[above - 1]) return place(slots, letter, above);
  return slots;
}

// Out of a tie, to a slot of its own just below.
export function split(slots, letter) {
  const rank = rankOf(slots, letter);
  return rank && slots[rank - 1].length > 1 ? insert(slots, letter, rank) : slots;
}

// A slot of its own after slot number `gap` (0: before the first). One slot is always free,
// because the other replies are fewer than the slots: those between it and the gap make room.
export function insert(slots, letter, gap) {
  const next = unrank(slots, letter);
  const below = next.indexOf("", gap);
  next.splice(below >= 0 ? below : next.lastIndexOf("", gap - 1), 1);
  next.splice(below >= 0 ? gap : gap - 1, 0, letter);
  return next;
}

// By rating, highest first; equal ratings tie, replies without one stay unranked.
export function arrange(letters, ratings) {
  const rated = [...letters].filter((letter) => ratings[letter]);
  const values = [...new Set(rated.map((letter) => ratings[letter]))].sort((a, b) => b - a);
  return fromBins(values.map((v) => rated.filter((l) => ratings[l] === v)), letters.length);
}

export function describe(slots, letters, letter) {
  const rank = rankOf(slots, letter), left = unranked(slots, letters).length;
  const others = rank ? [...slots[rank - 1]].filter((other) => other !== letter) : [];
  const where = rank ? `rank ${rank}` : "unranked";
  const tied = others.length ? `, tied with ${others.join(" and ")}` : "";
  return `Reply ${letter}, ${where}${tied}; ${left ? `${left} unranked` : "all ranked"}`;
}
