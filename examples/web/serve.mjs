// Serves this folder on http://127.0.0.1:8000; `node serve.mjs 9000` on another port, 0 for any free one.
import { createReadStream, lstatSync, realpathSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, sep } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = realpathSync(fileURLToPath(new URL(".", import.meta.url)));
const TYPES = {
  ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
  ".jpg": "image/jpeg", ".png": "image/png",
};
const HEADERS = {
  "x-content-type-options": "nosniff",
  "content-security-policy": "default-src 'self'; connect-src 'self' blob: data:; img-src 'self' blob: data:; "
    + "script-src 'self' 'wasm-unsafe-eval' blob:; worker-src 'self' blob:; style-src 'self' 'unsafe-inline'",
};

/** Returns the path of the plain file that a request asks for; undefined where there is none, or a link leads to it. */
function fileOf(url, extra) {
  try {
    const name = decodeURIComponent(new URL(url, "http://localhost").pathname);
    if (Object.hasOwn(extra, name)) return extra[name];
    const parts = (name.endsWith("/") ? `${name}index.html` : name).split("/").filter(Boolean);
    if (parts.some((part) => part.startsWith(".") || /[\\:\0]/.test(part))) return undefined;
    const file = join(ROOT, ...parts);
    return lstatSync(file).isFile() && realpathSync(file) === file && file.startsWith(ROOT + sep) ? file : undefined;
  } catch { // an address that cannot be decoded, or no such file
    return undefined;
  }
}

/** Starts a server of this folder, and of the files in `extra`: { "/model.onnx": path }; resolves once it listens. */
export function serve(port = 0, extra = {}) {
  const server = createServer((request, response) => {
    const refuse = (status, text) => response.writeHead(status, HEADERS).end(text);
    // another name for this machine could be that of a web page, which would then read the answers
    const host = (request.headers.host ?? "").replace(/:\d+$/, "");
    if (!["127.0.0.1", "localhost"].includes(host)) return refuse(403, "the host must be 127.0.0.1 or localhost");
    if (!["GET", "HEAD"].includes(request.method)) return refuse(405, "only GET and HEAD");
    const file = fileOf(request.url, extra);
    if (!file) return refuse(404, "no such file");
    const stream = createReadStream(file);
    stream.once("open", () => {
      response.writeHead(200, { ...HEADERS, "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
      if (request.method === "HEAD") response.end(() => stream.destroy()); else stream.pipe(response);
    });
    stream.on("error", () => { if (response.headersSent) response.destroy(); else refuse(404, "no such file"); });
    response.on("close", () => stream.destroy());
  });
  return new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(server)));
}

if (process.argv[1] && realpathSync(process.argv[1]) === realpathSync(fileURLToPath(import.meta.url))) {
  const server = await serve(Number(process.argv[2] ?? 8000));
  console.log(`http://127.0.0.1:${server.address().port}`);
}
