// Serves this folder on http://127.0.0.1:8000; `node serve.mjs 9000` on another port, 0 for any free one.
import { createReadStream, statSync } from "node:fs";
import { createServer } from "node:http";
import { extname, join, normalize, sep } from "node:path";
import { fileURLToPath } from "node:url";

const ROOT = fileURLToPath(new URL(".", import.meta.url));
const TYPES = {
  ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript", ".wasm": "application/wasm",
  ".jpg": "image/jpeg", ".png": "image/png",
};

/** Starts a server of this folder, and of the files in `extra`: { "/model.onnx": path }; resolves once it listens. */
export function serve(port = 0, extra = {}) {
  const server = createServer((request, response) => {
    const name = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
    const file = extra[name] ?? normalize(join(ROOT, name.endsWith("/") ? `${name}index.html` : name));
    const mine = name in extra || file.startsWith(ROOT.endsWith(sep) ? ROOT : ROOT + sep);
    if (!mine || !statSync(file, { throwIfNoEntry: false })?.isFile()) {
      response.writeHead(404).end("no such file");
      return;
    }
    response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" });
    createReadStream(file).pipe(response);
  });
  return new Promise((resolve) => server.listen(port, "127.0.0.1", () => resolve(server)));
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const server = await serve(Number(process.argv[2] ?? 8000));
  console.log(`http://127.0.0.1:${server.address().port}`);
}
