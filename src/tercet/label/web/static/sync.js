// Brings what the labeler does to the server, and nothing of it gets lost on the way.
//
// A change goes to the journal at once and to the server at most 150 ms later, with the revision it
// builds on. An answer is put into the journal's queue, then the next assignment is shown; the queue
// is sent in order, each entry under one key for ever, so that a repeated request counts once.
//
// Every draft carries a stamp {page, n}: the n-th change of one open page. It tells "the server has
// my own earlier change" (a lost reply: go on) from "another tab wrote" (a conflict: ask).

import { ApiError, NetworkError } from "./api.js";
import { randomId } from "./journal.js";

const PUT_EVERY_MS = 150;
const BEAT_EVERY_MS = 45000;
const IDLE_MS = 60000;
const DRAFT_KEPT_MS = 30 * 86400000;

const INPUTS = ["keydown", "pointerdown", "pointermove", "wheel", "input", "scroll"];

/** Will the same request work later? Then it is kept and repeated. */
const passing = (error) =>
  error instanceof NetworkError ||
  (error instanceof ApiError &&
    (error.status >= 500 || [401, 403, 408, 423, 425, 429].includes(error.status)));

/**
 * Events, each with `detail`:
 *   status   {state, pending, message}: saved | saving | queued | offline | error
 *   conflict {mine, theirs, choose}: another tab saved first; `choose("mine" | "theirs")` -> draft
 *   late     {assignment, counted?}: the lease ran out (while working, or at the submit)
 *   refused  {what: "draft" | "answer", assignment, status, code, message, errors, payload, discard}:
 *            the server will not take it as it is; a refused answer stays in the journal until the
 *            assignment is answered again or `discard()` is called
 *   resumed  {}: the server is back, or work came in, while no assignment is open; call `next()`
 */
export class Sync extends EventTarget {
  /** The open assignment, or null. */
  current = null;
  #api;
  #journal;
  #project;
  #only;
  #started = false;
  #held = []; // events that came before there was a page to show them
  #ahead = []; // fetched and not yet opened
  #renewedAt = 0; // when the server last renewed the leases
  #none = {}; // why there are no more
  #gone = new Set(); // answered here; the server may not know yet
  #draft = null;
  #rev = 0;
  #n = 0;
  #seen = {}; // page -> its newest change that our draft contains
  #continues = null; // the page whose journal entry our draft continues
  #dirty = false; // the server does not have #draft
  #flying = null; // the draft that is on its way
  #putting = Promise.resolve(); // until it is there: an answer must not overtake it
  #sentAt = -Infinity;
  #putTimer = 0;
  #clash = false;
  #late = ""; // the assignment whose lease ran out, once that was told
  #refusal = null; // {draft, message} that the server will not store
  #keeping = false;
  #keepAgain = false;
  #trouble = "";
  #pending = 0;
  #draining = null;
  #drainAgain = false;
  #leaving = null;
  #nexting = null;
  #unsent = null;
  #failures = 0;
  #retryTimer = 0;
  #failure = "";
  #shown = "";
  #active = { total: 0, last: performance.now(), watching: !document.hidden };

  /** `assignment`: work on this one only (to amend it). */
  constructor({ api, journal, project, assignment = null }) {
    super();
    this.#api = api;
    this.#journal = journal;
    this.#project = project;
    this.#only = assignment;
    this.#trouble = journal.trouble;
  }

  /** The first assignment with its newest draft, or {reason, retry_at}. */
  async start() {
    const touch = () => this.#touch();
    for (const name of INPUTS) addEventListener(name, touch, { capture: true, passive: true });
    addEventListener("online", () => this.#kick());
    addEventListener("pagehide", () => this.#flush());
    document.addEventListener("visibilitychange", () => {
      this.#touch();
      if (document.hidden) this.#flush();
      else if (this.#failures) this.#kick();
    });
    addEventListener("beforeunload", (event) => {
      if (this.#trouble && (this.#dirty || this.#leaving)) event.preventDefault();
    });
    setInterval(() => this.#beat(), BEAT_EVERY_MS);
    for (const entry of await this.#journal.queue()) {
      if (entry.refused) this.#tellRefused(entry);
      else this.#gone.add(entry.assignment);
    }
    await this.#drain();
    const first = await this.next();
    setTimeout(() => {
      this.#started = true;
      for (const [type, detail] of this.#held) this.#tell(type, detail);
    });
    this.#sendOtherDrafts().catch((error) => this.#troubled(error));
    return first;
  }

  /** The next assignment, fetched ahead where possible, or {reason, retry_at}. */
  next() {
    return (this.#nexting ??= this.#next().finally(() => (this.#nexting = null)));
  }

  async #next() {
    if (this.#only) return this.#open(await this.#api.get(`/api/assignments/${this.#only}`));
    const age = performance.now() - this.#renewedAt;
    this.#ahead = this.#ahead.filter((a) => this.#failures || age < a.lease_until - a.server_now);
    if (!this.#ahead.length) await this.#refill();
    return this.#ahead.length ? this.#open(this.#ahead[0]) : { ...this.#none };
  }

  /** Call on every change, with the whole draft {payload, ui, undo}. */
  change(draft) {
    if (!this.current) return;
    this.#n += 1;
    this.#seen[this.#journal.page] = this.#n;
    this.#draft = structuredClone({ ...draft, stamp: { page: this.#journal.page, n: this.#n } });
    this.#dirty = true;
    this.#keep();
    this.#pump();
    this.#status();
  }

  /** Each keeps the answer, then returns as `next()` does. A second call meanwhile is the first. */
  submit(payload) {
    return this.#finish("submit", { payload });
  }

  amend(payload) {
    return this.#finish("amend", { payload });
  }

  skip(reason) {
    return this.#finish("skip", { reason });
  }

  report(reason) {
    return this.#finish("report", { reason });
  }

  // Assignments

  async #refill() {
    try {
      this.#take(await this.#api.post(`/api/projects/${this.#project}/next`));
      this.#worked();
    } catch (error) {
      if (!passing(error)) throw error;
      this.#failed(error);
      this.#take({ assignments: await this.#journal.assignments(this.#project).catch(() => []) });
      this.#none = { reason: "offline", retry_at: null };
    }
  }

  #take({ assignments, reason = null, retry_at = null }) {
    this.#renewedAt = performance.now();
    this.#ahead = assignments.filter((a) => a.id !== this.current?.id && !this.#gone.has(a.id));
    this.#none = { reason, retry_at };
    const all = this.current ? [this.current, ...this.#ahead] : this.#ahead;
    this.#journal.keepAssignments(this.#project, all).catch((error) => this.#troubled(error));
  }

  async #open(assignment) {
    const kept = await this.#journal.draft(assignment.id).catch((error) => this.#troubled(error));
    this.#ahead = this.#ahead.filter((a) => a.id !== assignment.id);
    this.#refusal = null;
    this.#clash = false;
    this.#continues = null;
    this.#rev = assignment.rev;
    const [ours, theirs] = [kept?.draft.stamp, assignment.draft?.stamp];
    this.#seen = theirs ? { [theirs.page]: theirs.n } : {};
    const together = ours && ours.page === theirs?.page;
    const newer = kept && (together ? ours.n > theirs.n : !kept.saved || kept.rev > this.#rev);
    if (newer) {
      assignment = { ...assignment, draft: kept.draft };
      this.#rev = together ? Math.max(this.#rev, kept.rev) : kept.rev;
      this.#seen = { [ours.page]: ours.n };
      this.#continues = kept.page;
    } else if (together) {
      // The reply was lost, not the draft. Later it would look like another tab's.
      this.#journal.dropDraft(assignment.id, kept.page).catch((error) => this.#troubled(error));
    }
    this.#draft = assignment.draft;
    this.#dirty = Boolean(newer && !kept.saved);
    const total = Math.max(assignment.active_ms, kept?.active_ms ?? 0);
    this.#active = { total, last: performance.now(), watching: !document.hidden };
    this.current = assignment;
    if (!this.#only) this.#beat();
    this.#pump();
    this.#status();
    return assignment;
  }

  async #beat() {
    const current = this.current;
    const idle = performance.now() - this.#active.last > IDLE_MS;
    if (!current || this.#only || document.hidden || idle) return;
    const body = { active_ms: this.#activeMs(), opened: true };
    try {
      const { state } = await this.#api.post(`/api/assignments/${current.id}/beat`, body);
      this.#leased(current, state);
    } catch {
      // Leases and minutes are worth no alarm; drafts and answers report for themselves.
    }
  }

  #leased({ id }, state) {
    this.#renewedAt = performance.now();
    if (state !== "expired" || this.#late === id) return;
    this.#late = id;
    this.#tell("late", { assignment: id });
  }

  // Drafts

  get #draftPath() {
    return `/api/assignments/${this.current.id}/draft`;
  }

  async #keep() {
    if (this.#keeping) {
      this.#keepAgain = true;
      return;
    }
    this.#keeping = true;
    do {
      this.#keepAgain = false;
      await this.#keepNow();
    } while (this.#keepAgain && this.current);
    this.#keeping = false;
    this.#status();
  }

  async #keepNow() {
    const record = {
      rev: this.#rev,
      draft: this.#draft,
      at: Date.now(),
      active_ms: this.#activeMs(),
      saved: !this.#dirty,
    };
    try {
      await this.#journal.saveDraft(this.current.id, record, this.#continues);
      this.#continues = null;
      this.#trouble = this.#journal.trouble;
    } catch (error) {
      this.#troubled(error);
    }
  }

  #pump() {
    if (!this.current || !this.#dirty || this.#flying || this.#clash) return;
    if (this.#retryTimer || this.#refusal?.draft === this.#draft) return;
    const wait = this.#sentAt + PUT_EVERY_MS - performance.now();
    if (wait <= 0) this.#putting = this.#put();
    else {
      clearTimeout(this.#putTimer);
      this.#putTimer = setTimeout(() => this.#pump(), wait);
    }
  }

  async #put() {
    const current = this.current;
    const draft = (this.#flying = this.#draft);
    const body = { draft, active_ms: this.#activeMs() };
    this.#sentAt = performance.now();
    let answer = null;
    let failure = null;
    try {
      const headers = { "If-Match": String(this.#rev) };
      answer = await this.#api.put(this.#draftPath, body, headers);
      this.#worked();
    } catch (error) {
      failure = error;
      if (passing(error)) this.#failed(error);
    }
    this.#flying = null;
    if (this.current === current) {
      if (answer) {
        this.#leased(current, answer.state);
        this.#rev = answer.rev;
        this.#dirty = this.#draft !== draft;
        this.#keep();
      } else if (failure.status === 412) this.#clashed(failure.body);
      else if (!passing(failure)) {
        this.#refusal = { draft, message: failure.message };
        this.#tell("refused", { what: "draft", assignment: current.id, ...words(failure) });
      }
    }
    this.#pump();
    this.#status();
  }

  #clashed({ rev, draft: theirs }) {
    const { page, n } = theirs?.stamp ?? {};
    if (!theirs || this.#seen[page] >= n) {
      this.#rev = rev;
      return;
    }
    this.#clash = true;
    const { current } = this;
    const choose = (which) => {
      if (this.current !== current) return this.#draft; // it was answered meanwhile
      this.#clash = false;
      this.#rev = rev;
      this.#seen[page] = n;
      this.#dirty = which === "mine";
      if (which !== "mine") this.#draft = theirs;
      this.#keep();
      this.#pump();
      this.#status();
      return this.#draft;
    };
    this.#tell("conflict", { mine: this.#draft, theirs, choose });
  }

  #flush() {
    if (!this.#dirty || !this.current) return;
    this.#keepNow();
    if (this.#clash || this.#flying === this.#draft) return;
    if (!this.#flying) this.#putting = this.#put();
    else {
      // The page may be gone before the reply comes: build on the revision that it will name.
      const body = { draft: this.#draft, active_ms: this.#activeMs() };
      const headers = { "If-Match": String(this.#rev + 1) };
      this.#api.put(this.#draftPath, body, headers).catch(() => {});
    }
  }

  /** Drafts of other assignments, left by a page that was closed while offline. */
  async #sendOtherDrafts() {
    for (const { assignment, page, rev, draft, active_ms, saved, at } of await this.#journal.drafts()) {
      if (assignment === this.current?.id || this.#gone.has(assignment)) continue;
      let settled = saved || Date.now() - at > DRAFT_KEPT_MS;
      if (!settled) {
        const headers = { "If-Match": String(rev) };
        settled = await this.#api
          .put(`/api/assignments/${assignment}/draft`, { draft, active_ms }, headers)
          .catch(({ body }) => has(body?.draft?.stamp, draft.stamp));
      }
      if (settled) await this.#journal.dropDraft(assignment, page);
    }
  }

  // Answers

  #finish(verb, body) {
    return (this.#leaving ??= this.#leave(verb, body).finally(() => (this.#leaving = null)));
  }

  async #leave(verb, body) {
    const { id } = this.current;
    const path = `/api/assignments/${id}/${verb}`;
    const same = path + JSON.stringify(body);
    if (this.#unsent?.same !== same) this.#unsent = { same, key: randomId() };
    const entry = {
      key: this.#unsent.key,
      path,
      body: { ...body, active_ms: this.#activeMs() },
      assignment: id,
      project: this.#project,
    };
    try {
      await this.#journal.enqueue(entry);
      this.#pending += 1;
    } catch (error) {
      this.#troubled(error);
      await this.#sendNow(entry); // throws: the assignment stays open and the page says why
    }
    this.#unsent = null;
    this.#gone.add(id);
    this.current = null;
    this.#dirty = false;
    this.#refusal = null;
    const sent = this.#putting.then(() => this.#drain());
    if (this.#only || !this.#ahead.length) await sent;
    return this.#only ? {} : this.next();
  }

  async #sendNow(entry) {
    try {
      await this.#putting;
      this.#settled(entry, await this.#send(entry));
      this.#worked();
    } catch (error) {
      if (passing(error)) this.#failed(error);
      throw error;
    }
  }

  #send({ key, path, body }) {
    return this.#api.post(path, body, { "Idempotency-Key": key });
  }

  #settled(entry, answer) {
    if (answer?.counted === false) {
      this.#tell("late", { assignment: entry.assignment, counted: false });
    }
    if (answer?.next && entry.project === this.#project) this.#take(answer.next);
  }

  /** Sends the queue, one tab at a time; without locks the keys alone prevent doubles. */
  #drain() {
    this.#drainAgain = true;
    const locked = (work) =>
      navigator.locks ? navigator.locks.request("tercet-queue", work) : work();
    const work = async () => {
      while (this.#drainAgain) {
        this.#drainAgain = false;
        await locked(() => this.#sendQueue());
      }
    };
    return (this.#draining ??= work()
      .catch((error) => this.#troubled(error))
      .finally(() => {
        this.#draining = null;
        this.#status();
      }));
  }

  async #sendQueue() {
    let refill = false;
    for (;;) {
      const waiting = (await this.#journal.queue()).filter((entry) => !entry.refused);
      this.#pending = waiting.length;
      this.#status();
      const entry = waiting[0];
      if (!entry) break;
      await this.#putting; // this loop may meet an answer before its own draft has arrived
      try {
        const answer = await this.#send(entry);
        this.#worked();
        await this.#journal.dequeue(entry);
        this.#settled(entry, answer);
        refill = !answer?.next;
      } catch (error) {
        if (passing(error)) return this.#failed(error);
        if (!(error instanceof ApiError)) throw error;
        refill = true;
        const handedBack = /(skip|report)$/.test(entry.path) && error.status !== 422;
        if (handedBack) await this.#journal.dequeue(entry);
        else await this.#refused(entry, error);
      }
    }
    if (refill && this.current && !this.#ahead.length) await this.#refill().catch(() => {});
  }

  async #refused(entry, error) {
    entry.refused = words(error);
    await this.#journal.update(entry);
    this.#gone.delete(entry.assignment);
    this.#tellRefused(entry);
  }

  #tellRefused(entry) {
    const { assignment, body, refused } = entry;
    const discard = () => this.#journal.discard(entry);
    this.#tell("refused", {
      what: "answer", assignment, payload: body.payload, ...refused, discard,
    });
  }

  // Trouble

  #worked() {
    if (!this.#failures) return;
    this.#failures = 0;
    this.#kick();
  }

  #failed(error) {
    const signedOut = error.status === 401 || error.status === 403;
    this.#failure = error instanceof NetworkError ? "" : error.message;
    if (signedOut) this.#failure += " Join again with your link, then reload this page.";
    if (!this.#retryTimer) {
      const seconds = 2 ** Math.min(this.#failures, 5) * (0.8 + 0.4 * Math.random());
      const wait = Math.min(30, Math.max(1, seconds, error.retryAfter ?? 0)) * 1000;
      this.#failures += 1;
      this.#retryTimer = setTimeout(() => this.#kick(), wait);
    }
    this.#status();
  }

  async #kick() {
    clearTimeout(this.#retryTimer);
    this.#retryTimer = 0;
    this.#pump();
    await this.#drain();
    const idle = () =>
      this.#started && !this.current && !this.#leaving && !this.#nexting && !this.#only;
    if (idle() && !this.#ahead.length) await this.#refill().catch(() => {});
    if (idle() && !this.#failures) this.#tell("resumed", {});
  }

  #troubled(error) {
    const full = error?.name === "QuotaExceededError";
    const why = full ? "its storage is full" : error?.message || error?.name;
    this.#trouble = `This browser keeps no copy of your work (${why}).`;
    this.#status();
  }

  #status() {
    let state = this.#pending ? "queued" : this.#dirty ? "saving" : "saved";
    let message = this.#trouble;
    if (this.#failures) {
      state = this.#trouble ? "error" : "offline";
      const kept = this.#trouble ? `${this.#trouble} Do not close this page.` : "Kept on this device.";
      message = `Not saved to the server. ${this.#failure} ${kept}`.replace("  ", " ");
    }
    if (this.#refusal || this.#clash) {
      state = "error";
      message = this.#refusal?.message ?? "Another tab saved this first.";
    }
    const detail = { state, pending: this.#pending, message };
    const shown = JSON.stringify(detail);
    if (shown !== this.#shown) this.#tell("status", detail);
    this.#shown = shown;
  }

  #tell(type, detail) {
    if (!this.#started && type !== "status") this.#held.push([type, detail]);
    else this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  // Active time: while the page is visible and the last input is less than a minute ago.

  #activeMs() {
    const { total, last, watching } = this.#active;
    const since = watching ? Math.min(performance.now() - last, IDLE_MS) : 0;
    return Math.round(total + since);
  }

  #touch() {
    const total = this.#activeMs();
    this.#active = { total, last: performance.now(), watching: !document.hidden };
  }
}

/** Does a draft with the stamp `theirs` contain that with the stamp `ours`? */
const has = (theirs, ours) => theirs?.page === ours.page && theirs.n >= ours.n;

const words = ({ status, code, message, body }) => ({
  status, code, message, errors: body?.errors ?? [],
});
