// Requests to our own server: JSON both ways, the session's CSRF token on every one that changes
// something. Two kinds of failure: the server said no (ApiError), or nobody knows (NetworkError).

const TIMEOUT_MS = 20000;
const KEEPALIVE_BYTES = 20000; // browsers refuse more than 64 KB in all that are under way

export class ApiError extends Error {
  constructor(status, body, retryAfter = 0) {
    super(body.message || `The server answered ${status}.`);
    this.status = status;
    this.code = body.code || "";
    this.body = body;
    this.retryAfter = retryAfter;
  }
}

export class NetworkError extends Error {}

export class Api {
  #csrf;

  constructor(csrf = document.querySelector('meta[name="csrf"]').content) {
    this.#csrf = csrf;
  }

  get(path) {
    return this.#request("GET", path);
  }

  /** `headers`: Idempotency-Key and the like. */
  post(path, body = {}, headers = {}) {
    return this.#request("POST", path, body, headers);
  }

  put(path, body, headers = {}) {
    return this.#request("PUT", path, body, headers);
  }

  async #request(method, path, body, headers = {}) {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const short = text && new TextEncoder().encode(text).length < KEEPALIVE_BYTES;
    let response, answer;
    try {
      response = await fetch(path, {
        method,
        body: text,
        headers: text === undefined
          ? headers
          : { "Content-Type": "application/json", "X-CSRF-Token": this.#csrf, ...headers },
        credentials: "same-origin",
        cache: "no-store",
        redirect: "error",
        keepalive: Boolean(short), // it may outlive the page
        signal: AbortSignal.timeout(TIMEOUT_MS),
      });
      answer = await response.text();
    } catch (error) {
      throw new NetworkError(error.message);
    }
    const json = parse(answer);
    if (!response.ok) {
      const wait = Number(response.headers.get("Retry-After")) || 0;
      throw new ApiError(response.status, json ?? {}, wait);
    }
    // A network's sign-in page answers 200 for everything.
    if (json === undefined) throw new NetworkError("The answer is not this server's.");
    return json;
  }
}

function parse(text) {
  if (text === "") return null;
  try {
    return JSON.parse(text);
  } catch {
    return undefined;
  }
}
