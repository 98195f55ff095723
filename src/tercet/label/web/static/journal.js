// The browser's own copy of everything that the server has not confirmed yet: IndexedDB with strict
// durability, because localStorage is written seconds later and is lost when the browser is killed.
// Each labeler has a database of their own: two people on one computer never see or send each
// other's work. A draft is kept once for every page that is open on it; the newest one counts.

const OPEN_WITHIN_MS = 5000;

/** A name that cannot be guessed (`crypto.randomUUID` is missing on plain http). */
export const randomId = () =>
  Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, "0"))
    .join("");

/** The journal of the labeler named in the page; a `NoJournal` where the browser refuses storage. */
export async function openJournal(
  labeler = document.querySelector('meta[name="labeler"]').content,
) {
  const journal = new Journal(`tercet-${labeler}`);
  try {
    const late = new Promise((_, no) => setTimeout(no, OPEN_WITHIN_MS, new Error("no answer")));
    await Promise.race([journal.queue(), late]);
    return journal;
  } catch (error) {
    return new NoJournal(error);
  }
}

class Journal {
  /** Names the drafts of this page among those of other tabs. */
  page = randomId();
  trouble = "";
  #name;
  #opening = null;

  constructor(name) {
    this.#name = name;
  }

  #open() {
    return (this.#opening ??= new Promise((resolve, reject) => {
      const request = indexedDB.open(this.#name, 1);
      request.onupgradeneeded = () => {
        const db = request.result;
        db.createObjectStore("drafts", { keyPath: ["assignment", "page"] });
        db.createObjectStore("queue", { keyPath: "order", autoIncrement: true })
          .createIndex("assignment", "assignment");
        db.createObjectStore("assignments");
      };
      request.onerror = () => reject(request.error);
      request.onsuccess = () => {
        // Cleared site data closes it; the next use opens a new one.
        request.result.onclose = () => (this.#opening = null);
        resolve(request.result);
      };
    }).catch((error) => {
      this.#opening = null;
      throw error;
    }));
  }

  async #run(names, mode, work, durability = "strict") {
    const db = await this.#open();
    return new Promise((resolve, reject) => {
      const transaction = db.transaction(names, mode, { durability });
      const request = work(...names.map((name) => transaction.objectStore(name)));
      // A page that is left now would take an open transaction with it.
      if (names.length === 1) transaction.commit?.();
      transaction.oncomplete = () => resolve(request?.result);
      transaction.onabort = () => reject(transaction.error);
    });
  }

  /** The newest draft of an assignment: {rev, draft, at, active_ms, saved, page}, or undefined. */
  async draft(assignment) {
    const all = await this.#run(["drafts"], "readonly", (drafts) => drafts.getAll(of(assignment)));
    return all.sort((a, b) => b.at - a.at)[0];
  }

  drafts() {
    return this.#run(["drafts"], "readonly", (drafts) => drafts.getAll());
  }

  /** `replaces`: the page whose draft this one continues. */
  saveDraft(assignment, record, replaces = null) {
    const work = (drafts) => {
      if (replaces) drafts.delete([assignment, replaces]);
      return drafts.put({ ...record, assignment, page: this.page });
    };
    return this.#run(["drafts"], "readwrite", work, record.saved ? "relaxed" : "strict");
  }

  dropDraft(assignment, page) {
    const which = page ? [assignment, page] : of(assignment);
    return this.#run(["drafts"], "readwrite", (drafts) => drafts.delete(which));
  }

  /** Entries {key, path, body, assignment, project, refused?} wait here for the server, in order. */
  enqueue(entry) {
    return this.#run(["queue"], "readwrite", (queue) => queue.add(entry));
  }

  queue() {
    return this.#run(["queue"], "readonly", (queue) => queue.getAll());
  }

  update(entry) {
    return this.#run(["queue"], "readwrite", (queue) => queue.put(entry));
  }

  /** The server has it: the entry goes, with the drafts and refused tries of its assignment. */
  dequeue({ order, assignment }) {
    return this.#run(["queue", "drafts"], "readwrite", (queue, drafts) => {
      queue.delete(order);
      drafts.delete(of(assignment));
      const tries = queue.index("assignment").getAll(assignment);
      tries.onsuccess = () =>
        tries.result.filter((e) => e.refused && e.order < order)
          .forEach((e) => queue.delete(e.order));
    });
  }

  /** Lets go of a refused entry, when the labeler says so. */
  discard({ order }) {
    return this.#run(["queue"], "readwrite", (queue) => queue.delete(order));
  }

  keepAssignments(project, list) {
    return this.#run(["assignments"], "readwrite", (kept) => kept.put(list, project), "relaxed");
  }

  async assignments(project) {
    return (await this.#run(["assignments"], "readonly", (kept) => kept.get(project))) ?? [];
  }
}

const of = (assignment) => IDBKeyRange.bound([assignment], [assignment, []]);

/** Stands in where storage is refused: nothing is kept here, so every answer waits for the server. */
class NoJournal {
  page = randomId();

  constructor(error) {
    this.trouble = `This browser keeps no copy of your work (${error?.message || error?.name}).`;
  }

  async draft() {}
  async drafts() {
    return [];
  }
  async saveDraft() {}
  async dropDraft() {}
  async enqueue() {
    throw new Error(this.trouble);
  }
  async queue() {
    return [];
  }
  async keepAssignments() {}
  async assignments() {
    return [];
  }
}
