// node test.mjs model.onnx photo.jpg [screenshot.png]: opens the page in headless Chromium, drops the photograph on it,
// and prints the boxes of its table as JSON. CHROMIUM=... names the browser. Status 1 where anything fails.
import { spawn } from "node:child_process";
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { basename, join, resolve } from "node:path";
import { serve } from "./serve.mjs";

const TIMEOUT = 180_000; // milliseconds for everything

/** Opens a page of the browser and returns `ask(method, params)`, which sends a DevTools command through its pipes. */
async function connect(child) {
  const waiting = new Map(), problems = [];
  let count = 0, sessionId, text = "";
  const hear = ({ id, result, error, method, params }) => {
    if (method === "Runtime.exceptionThrown") problems.push(params.exceptionDetails.exception?.description);
    if (method === "Network.requestWillBeSent" && foreign(params.request.url)) problems.push(`it asked for ${params.request.url}`);
    if (error) waiting.get(id)?.no(new Error(error.message)); else waiting.get(id)?.yes(result);
  };
  child.stdio[4].setEncoding("utf8").on("data", (part) => {
    const messages = (text + part).split("\0");
    text = messages.pop();
    for (const message of messages) hear(JSON.parse(message));
  });
  child.stdio[3].on("error", () => {}); // it ended, which `main` reports
  const ask = (method, params = {}) => new Promise((yes, no) => {
    waiting.set(++count, { yes, no });
    child.stdio[3].write(`${JSON.stringify({ id: count, method, params, sessionId })}\0`);
  });
  const { targetId } = await ask("Target.createTarget", { url: "about:blank" });
  ({ sessionId } = await ask("Target.attachToTarget", { targetId, flatten: true }));
  return { ask, problems };
}

const foreign = (url) => !/^(http:\/\/127\.0\.0\.1|data:|blob:)/.test(url);

async function drive({ ask, problems }, address, photo, screenshot) {
  const evaluate = async (expression) => {
    const { result, exceptionDetails } = await ask("Runtime.evaluate", { expression, awaitPromise: true, returnByValue: true });
    if (exceptionDetails) throw new Error(exceptionDetails.exception?.description ?? exceptionDetails.text);
    return result.value;
  };
  const status = async (wanted) => {
    for (;;) {
      const { text, error } = await evaluate(`({ text: document.querySelector("#status")?.textContent ?? "",
        error: document.querySelector("#status")?.className })`);
      if (error || problems.length) throw new Error(problems[0] ?? text);
      if (wanted.test(text)) return text;
      await new Promise((done) => setTimeout(done, 100));
    }
  };
  for (const domain of ["Page", "Runtime", "Network"]) await ask(`${domain}.enable`);
  await ask("Emulation.setDeviceMetricsOverride", { width: 1000, height: 1100, deviceScaleFactor: 1, mobile: false });
  await ask("Page.navigate", { url: address });
  await status(/^Ready/);
  const bytes = readFileSync(photo).toString("base64");
  await evaluate(`(async () => {
    const bytes = await (await fetch("data:application/octet-stream;base64,${bytes}")).arrayBuffer();
    const dataTransfer = new DataTransfer();
    dataTransfer.items.add(new File([bytes], ${JSON.stringify(basename(photo))}, { type: "image/*" }));
    document.querySelector("#drop").dispatchEvent(new DragEvent("drop", { dataTransfer, bubbles: true, cancelable: true }));
  })()`);
  console.error(await status(/box/));
  if (screenshot) {
    const { data } = await ask("Page.captureScreenshot", { format: "png" });
    writeFileSync(screenshot, Buffer.from(data, "base64"));
  }
  return evaluate(`[...document.querySelectorAll("tbody tr")].map((row) => [...row.cells].map((cell) => cell.textContent))`);
}

async function main([model, photo, screenshot]) {
  if (!model || !photo) throw new Error("usage: node test.mjs model.onnx photo.jpg [screenshot.png]");
  const server = await serve(0, { "/model.onnx": resolve(model) });
  const profile = mkdtempSync(join(tmpdir(), "chromium-"));
  const browser = process.env.CHROMIUM ?? "chromium";
  const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", `--user-data-dir=${profile}`];
  const child = spawn(browser, flags, { stdio: ["ignore", "ignore", "ignore", "pipe", "pipe"] });
  const ended = new Promise((done) => {
    child.on("exit", () => done(new Error(`${browser} ended before the page was done (${TIMEOUT / 1000} s at most)`)));
    child.on("error", () => done(new Error(`cannot start ${browser}; name a browser in CHROMIUM`)));
  });
  const timer = setTimeout(() => child.kill("SIGKILL"), TIMEOUT);
  try {
    const address = `http://127.0.0.1:${server.address().port}/`;
    const work = connect(child).then((page) => drive(page, address, photo, screenshot));
    const rows = await Promise.race([work, ended.then((error) => { throw error; })]);
    console.log(JSON.stringify(rows.map(([name, ...numbers]) => [name, ...numbers.map(Number)])));
  } finally {
    clearTimeout(timer);
    child.kill("SIGKILL");
    await ended;
    server.close();
    server.closeAllConnections();
    rmSync(profile, { recursive: true, force: true, maxRetries: 5 });
  }
}

main(process.argv.slice(2)).catch((error) => {
  console.error(`test: error: ${error.message}`);
  process.exitCode = 1;
});
