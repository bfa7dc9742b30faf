// Requests to the server: JSON, and event streams that are resumed when the connection breaks.

import { address } from "./address.js";

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
    response = await fetch(address(path), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: "", code: "unreachable" });
  }
  if (response.ok) return response;
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // A proxy answered instead of the server; only the status is known.
  }
  if (response.status === 401) window.dispatchEvent(new Event("puna:signin"));
  throw new ApiError(response.status, error);
}

const json = (method) => async (path, body) => (await send(method, path, body)).json();

export const get = json("GET");
export const post = json("POST");
export const patch = json("PATCH");
export const remove = json("DELETE");

/** The events of a response as they come: {id, event, data}. */
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

/** Send a request whose response is a stream; handle(event, data) is called for each event. */
export async function stream(path, body, handle, signal) {
  const response = await send("POST", path, body, signal);
  for await (const { event, data } of events(response)) handle(event, data);
}

/**
 * The same, but resumed where it was when the connection breaks. request: {path, body} starts a stream, {follow: id}
 * joins one. started(data): the id of what is written, from the `start` event. eventsOf(id): where it can be resumed.
 */
export async function resumable(request, { started, eventsOf }, handle, signal) {
  let id = request.follow ?? null;
  let seen = 0;
  let over = false;
  let broken = 0;
  const read = async (response) => {
    for await (const found of events(response)) {
      broken = 0;
      if (found.id !== null) seen = found.id;
      if (found.event === "start") id = started(found.data);
      over = found.event === "done" || found.event === "failed";
      handle(found.event, found.data);
    }
  };
  while (!over) {
    try {
      const response = id
        ? await send("GET", `${eventsOf(id)}?after=${seen}`, null, signal)
        : await send("POST", request.path, request.body, signal);
      await read(response);
      if (!over && !id) throw new ApiError(0, { code: "unreachable" });
    } catch (error) {
      const lost = error.status === 0 || error instanceof TypeError;
      if (error.name === "AbortError" || !lost || !id || ++broken > 5) throw error;
      await new Promise((resolve) => setTimeout(resolve, 300 * 2 ** broken));
    }
  }
}
