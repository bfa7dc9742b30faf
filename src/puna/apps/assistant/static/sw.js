// Caches the page's own files, so that it opens without a network. Conversations are never cached: requests under /app
// and /v1 always go to the server.
const CACHE = "puna-@VERSION@";
const ROOT = new URL("./", location).pathname; // the page's own address
const CACHED = (url) =>
  url.origin === location.origin && (url.pathname === ROOT || url.pathname.startsWith(`${ROOT}static/`));

self.addEventListener("install", (event) => {
  event.waitUntil(self.skipWaiting());
});

self.addEventListener("activate", (event) => {
  const old = async () => {
    for (const name of await caches.keys()) if (name.startsWith("puna-") && name !== CACHE) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(old());
});

self.addEventListener("fetch", (event) => {
  const url = new URL(event.request.url);
  if (event.request.method !== "GET" || !CACHED(url)) return;
  event.respondWith(fromServer(event.request, url.pathname));
});

// The server first, so that an upgrade takes effect at once; the cache when the server does not answer.
async function fromServer(request, path) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(path, response.clone());
    return response;
  } catch (error) {
    const cached = await cache.match(path);
    if (cached) return cached;
    throw error;
  }
}
