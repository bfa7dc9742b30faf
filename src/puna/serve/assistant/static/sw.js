// Keeps the page's own files, so that it opens at once and without a network. Conversations are never kept here: what is
// asked under /app and /v1 goes to the server and nowhere else.
const CACHE = "puna-@VERSION@";
const KEPT = (url) => url.origin === location.origin && (url.pathname === "/" || url.pathname.startsWith("/static/"));

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
  if (event.request.method !== "GET" || !KEPT(url)) return;
  event.respondWith(fromServer(event.request, url.pathname));
});

// The server first: an upgrade is seen at once. What it gave last is for when it does not answer.
async function fromServer(request, path) {
  const cache = await caches.open(CACHE);
  try {
    const response = await fetch(request);
    if (response.ok) await cache.put(path, response.clone());
    return response;
  } catch (error) {
    const kept = await cache.match(path);
    if (kept) return kept;
    throw error;
  }
}
