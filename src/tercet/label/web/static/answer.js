// What the labeler has said about one assignment: values by path, with undo, and the two forms
// that leave the page (draft and payload). No page in here.
import { bins, fromBins, none } from "./rankstate.js";

const STEPS_BACK = 50;

export class Answer {
  constructor(assignment) {
    this.assignment = assignment;
    this.letters = assignment.replies.map((reply) => reply.letter).join("");
    this.ids = Object.fromEntries(assignment.replies.map((reply) => [reply.letter, reply.id]));
    this.past = [];
    this.future = [];
    this.value = {
      slots: none(this.letters.length), ratings: {}, flags: {}, notes: {}, prompt_flags: {},
      note: "", both_bad: false, strength: null, arranged: false, swapped: false,
      text: "", prompt: "",
    };
    const draft = assignment.draft ?? (assignment.amending && { payload: assignment.amending.payload });
    this.ui = draft?.ui ?? {};
    if (draft) this.#restore(draft);
  }

  get(path) {
    return path.split(".").reduce((at, name) => at?.[name], this.value);
  }

  // Without undo: text fields have their own.
  type(path, value) {
    const names = path.split("."), last = names.pop();
    let at = this.value;
    for (const name of names) at = at[name] ??= {};
    if (value === undefined) delete at[last];
    else at[last] = value;
  }

  // One step of undo for all of `changes`, an object {path: value}; false if nothing changes.
  change(changes) {
    const step = Object.entries(changes)
      .map(([path, after]) => [path, this.get(path) ?? null, after])
      .filter(([, before, after]) => JSON.stringify(before) !== JSON.stringify(after));
    if (!step.length) return false;
    for (const [path, , after] of step) this.type(path, after);
    this.past = [...this.past, step].slice(-STEPS_BACK);
    this.future = [];
    return true;
  }

  // -> the paths that changed, or null
  undo(again = false) {
    const step = (again ? this.future : this.past).pop();
    if (!step) return null;
    for (const [path, before, after] of step) this.type(path, again ? after : before);
    (again ? this.past : this.future).push(step);
    return step.map(([path]) => path);
  }

  draft() {
    const { slots, ...rest } = this.value;
    const asIds = (values) => this.#byId(values);
    return {
      payload: {
        ...rest, bins: this.#bins(), ratings: asIds(rest.ratings), flags: asIds(rest.flags),
        notes: asIds(rest.notes),
      },
      ui: { ...this.ui, slots },
      undo: [this.past, this.future],
    };
  }

  payload() {
    const { schema, settings, project } = this.assignment, { value } = this;
    const asked = (flags, given = {}) =>
      Object.fromEntries(flags.map(({ id }) => [id, given[id] ?? null]));
    const prompt_flags = settings.ask_prompt_flags
      ? asked(schema.prompt_flags, value.prompt_flags) : {};
    if (project.kind === "demonstration") {
      const prompt = settings.open_prompt ? { prompt: value.prompt } : {};
      return { text: value.text, ...prompt, prompt_flags, note: value.note };
    }
    const each = (of) => Object.fromEntries([...this.letters].map((l) => [this.ids[l], of(l)]));
    const flagged = settings.rate || Object.keys(value.flags).length > 0;
    const decided = this.letters.length === 2 && bins(value.slots).length === 2;
    return {
      bins: this.#bins(),
      ratings: settings.rate ? each((l) => value.ratings[l] ?? null) : {},
      flags: flagged ? each((l) => asked(schema.reply_flags, value.flags[l])) : {},
      notes: Object.fromEntries(Object.entries(this.#byId(value.notes)).filter(([, t]) => t)),
      prompt_flags, note: value.note, both_bad: value.both_bad,
      strength: decided ? value.strength : null, arranged: value.arranged, swapped: value.swapped,
    };
  }

  #restore({ payload = {}, ui = {}, undo = [] }) {
    const letterOf = Object.fromEntries(Object.entries(this.ids).map(([l, id]) => [id, l]));
    const byLetter = (values) =>
      Object.fromEntries(Object.entries(values ?? {}).map(([id, v]) => [letterOf[id], v]));
    for (const name of Object.keys(this.value))
      if (payload[name] !== undefined && payload[name] !== null) this.value[name] = payload[name];
    for (const name of ["ratings", "flags", "notes"]) this.value[name] = byLetter(payload[name]);
    const lists = (payload.bins ?? []).map((bin) => bin.map((id) => letterOf[id]));
    this.value.slots = ui.slots ?? fromBins(lists, this.letters.length);
    [this.past = [], this.future = []] = undo;
  }

  #bins() {
    return bins(this.value.slots).map((bin) => bin.map((letter) => this.ids[letter]));
  }

  #byId(values) {
    return Object.fromEntries(Object.entries(values).map(([l, v]) => [this.ids[l], v]));
  }
}
