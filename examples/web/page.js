import { openDetector } from "./detector.js";

const COLOURS = ["#d55e00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#e69f00", "#cc79a7"];
const WHITE_ON = "#0072b2"; // on the other colours black text has more contrast
const $ = (selector) => document.querySelector(selector);
const drop = $("#drop"), canvas = $("canvas"), table = $("table");

function say(text, error = false) {
  $("#status").textContent = text;
  $("#status").classList.toggle("error", error);
}

function draw(image, boxes) {
  const scale = Math.max(1, 640 / Math.max(image.width, image.height)); // a small image is enlarged, then drawn on
  canvas.width = Math.round(image.width * scale);
  canvas.height = Math.round(image.height * scale);
  const pen = canvas.getContext("2d"), line = Math.max(2, Math.round((canvas.width + canvas.height) / 600));
  pen.drawImage(image, 0, 0, canvas.width, canvas.height);
  pen.lineWidth = line;
  pen.font = `${6 * line + 4}px system-ui, sans-serif`;
  pen.textBaseline = "top";
  const colours = new Map();
  for (const box of boxes) if (!colours.has(box.name)) colours.set(box.name, COLOURS[colours.size % COLOURS.length]);
  for (const box of [...boxes].reverse()) { // the most confident box on top
    pen.strokeStyle = colours.get(box.name);
    pen.strokeRect(box.x1 * scale, box.y1 * scale, (box.x2 - box.x1) * scale, (box.y2 - box.y1) * scale);
  }
  const placed = [];
  for (const box of boxes) { // after all outlines, so that none crosses a text
    const text = `${box.name} ${box.score.toFixed(2)}`, height = 6 * line + 8, width = pen.measureText(text).width + 8;
    const x = Math.max(Math.min(box.x1 * scale, canvas.width - width), 0), top = box.y1 * scale;
    const y = top >= height ? top - height : top;
    // one that would hide the caption of a more confident box is left out
    if (placed.some((other) => x < other.right && other.left < x + width && Math.abs(y - other.y) < height)) continue;
    placed.push({ left: x, right: x + width, y });
    pen.fillStyle = colours.get(box.name);
    pen.fillRect(x, y, width, height);
    pen.fillStyle = colours.get(box.name) === WHITE_ON ? "white" : "black";
    pen.fillText(text, x + 4, y + 3);
  }
  const rows = boxes.map((box) => {
    const row = document.createElement("tr");
    const numbers = [box.x1, box.y1, box.x2, box.y2].map((v) => v.toFixed(1));
    for (const text of [box.name, box.score.toFixed(4), ...numbers]) row.insertCell().textContent = text;
    return row;
  });
  table.tBodies[0].replaceChildren(...rows);
  canvas.hidden = false;
  table.hidden = !boxes.length;
}

async function show(file) {
  try {
    say("Detecting …");
    const { detect } = await detector;
    const image = await createImageBitmap(file).catch(() => { throw new Error(`${file.name} is not an image that this browser can read`); });
    const start = performance.now(), boxes = await detect(image);
    draw(image, boxes);
    say(`${boxes.length || "No"} ${boxes.length === 1 ? "box" : "boxes"} in ${Math.round(performance.now() - start)} ms`);
    return boxes;
  } catch (error) {
    say(error.message, true);
    throw error;
  }
}

async function load() {
  ort.env.wasm.wasmPaths = new URL("node_modules/onnxruntime-web/dist/", location.href).href;
  ort.env.wasm.numThreads = 1; // more threads need a page that is cross-origin isolated
  const name = new URLSearchParams(location.search).get("model") ?? "model.onnx";
  const address = new URL(name, location.href); // a link to this page must not choose a file of another server
  if (address.origin !== location.origin) throw new Error("the model must be a file of this server");
  const answer = await fetch(address, { mode: "same-origin", redirect: "error" });
  if (!answer.ok) throw new Error(`there is no ${name}; copy an ONNX file of export.py to this folder under that name`);
  return openDetector(ort, await answer.arrayBuffer());
}

const detector = load();
detector.then(
  ({ meta }) => say(`Ready: ${meta.names.length} classes, image size ${meta.imgsz.join(" x ")}`),
  (error) => say(error.message, true),
);

drop.addEventListener("dragover", (event) => { event.preventDefault(); drop.classList.add("over"); });
drop.addEventListener("dragleave", () => drop.classList.remove("over"));
drop.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  if (event.dataTransfer.files[0]) show(event.dataTransfer.files[0]).catch(console.error);
});
$("input").addEventListener("change", (event) => {
  if (event.target.files[0]) show(event.target.files[0]).catch(console.error);
  event.target.value = ""; // so that the same file can be chosen again
});
