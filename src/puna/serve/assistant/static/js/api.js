// The server: JSON, and streams of events that are taken up again when the line breaks.

export class ApiError extends Error {
  constructor(status, error) {
    super(error.message ?? String(status));
    this.status = status;
    this.code = error.code ?? null;
  }
}

async function send(method, path, body, signal) {
  const options = { method, signal, credentials: "same-origin", headers: {} };
  if (method !== "GET") {
    options.headers["content-type"] = "application/json";
    options.body = JSON.stringify(body ?? {});
  }
  let response;
  try {
    response = await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "", code: "unreachable" });
  }
  if (response.ok) return response;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // Whatever stands before the server answered; the status must do.
  }
  if (response.status === 401) window.dispatchEvent(new Event("puna:signin"));
  throw new ApiError(response.status, error);
}

const json = (method) => async (path, body) => (await send(method, path, body)).json();

export const get = json("GET");
export const post = json("POST");
export const patch = json("PATCH");
export const remove = json("DELETE");

/** Events of a response, one after the other: {id, event, data}. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const found = { id: null, event: "", data: null };
      for (const line of part.split("\n")) {
        if (line.startsWith("id: ")) found.id = Number(line.slice(4));
        else if (line.startsWith("event: ")) found.event = line.slice(7);
        else if (line.startsWith("data: ")) found.data = JSON.parse(line.slice(6));
      }
      if (found.event) yield found;
    }
  }
}

/** Ask for something that is streamed; handle(event, data) for each event. */
export async function stream(path, body, handle, signal) {
  const response = await send("POST", path, body, signal);
  for await (const { event, data } of events(response)) handle(event, data);
}

/** An answer: as `stream`, but when the line breaks it is taken up where it was. base: path of the conversation. */
export async function answer(base, ask, handle, signal) {
  let message = ask.follow ?? null;
  let seen = 0;
  let over = false;
  let broken = 0;
  const take = async (response) => {
    for await (const { id, event, data } of events(response)) {
      broken = 0;
      if (id !== null) seen = id;
      if (event === "start") message = data.messages.at(-1).id;
      over = event === "done" || event === "failed";
      handle(event, data);
    }
  };
  while (!over) {
    try {
      const response = message
        ? await send("GET", `${base}/messages/${message}/events?after=${seen}`, null, signal)
        : await send("POST", ask.path, ask.body, signal);
      await take(response);
      if (!over && !message) throw new ApiError(0, { code: "unreachable" });
    } catch (error) {
      const lost = error.status === 0 || error instanceof TypeError;
      if (error.name === "AbortError" || !lost || !message || ++broken > 5) throw error;
      await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** broken));
    }
  }
}
