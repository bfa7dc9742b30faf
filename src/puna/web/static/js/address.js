// Addresses of this server, which a reverse proxy may publish under a path (puna serve --root-path).
const root = new URL("../../../", import.meta.url).pathname.replace(/\/$/, "");

/** An address of this server, such as /app/models, as the browser reaches it. */
export const address = (path) => root + path;
