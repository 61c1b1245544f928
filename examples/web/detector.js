// From an image to boxes: frame, network, decoding, suppression. It knows nothing of the page.

export const CONFIDENCE = 0.25, IOU = 0.45, MAX_DETECTIONS = 1000; // the defaults of detect.py
const GREY = "rgb(114, 114, 114)"; // around an image that does not fill its frame

/** Returns the texts of `metadata_props` of an ONNX file by key, which onnxruntime-web does not offer. */
export function readMetadata(bytes) {
  const view = new Uint8Array(bytes), text = new TextDecoder(), texts = {};
  walk(view, (field, part) => {
    if (field !== 14) return; // of ModelProto: metadata_props, of StringStringEntryProto: key 1, value 2
    const entry = {};
    walk(part, (name, value) => { entry[name] = text.decode(value); });
    texts[entry[1]] = entry[2];
  });
  return texts;
}

/** Calls take(field, bytes) for each length-delimited field of a protobuf message, and skips the others. */
function walk(view, take) {
  let at = 0;
  const varint = () => {
    let value = 0, factor = 1, byte;
    do { byte = view[at++]; value += (byte & 127) * factor; factor *= 128; } while (byte & 128);
    return value;
  };
  while (at < view.length) {
    const tag = varint(), field = Math.floor(tag / 8), kind = tag % 8;
    if (kind === 0) varint();
    else if (kind === 1) at += 8;
    else if (kind === 5) at += 4;
    else if (kind === 2) { const length = varint(); take(field, view.subarray(at, at + length)); at += length; }
    else throw new Error("this is not an ONNX file");
  }
}

/** Returns the metadata of the file: { names, imgsz: [height, width] }. Throws where this page cannot run it. */
export function checkedMetadata(bytes) {
  const texts = readMetadata(bytes);
  if (!texts.names) throw new Error("the file has no metadata; export it with this project's export.py");
  const meta = Object.fromEntries(Object.entries(texts).map(([key, value]) => [key, JSON.parse(value)]));
  if (meta.nms || meta.half) throw new Error("this page runs files exported without --nms and --half; export it again");
  return meta;
}

/** Returns an image in the middle of a grey frame: { pixels: Float32Array (3, height, width), gain, left, top }, with
 * left and top not rounded, as in detect.py. */
export function letterbox(image, [height, width]) {
  const gain = Math.min(height / image.height, width / image.width);
  const w = Math.max(Math.round(image.width * gain), 1), h = Math.max(Math.round(image.height * gain), 1);
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = GREY;
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "low"; // bilinear, as in training
  pen.drawImage(image, Math.floor((width - w) / 2), Math.floor((height - h) / 2), w, h);
  const { data } = pen.getImageData(0, 0, width, height), area = width * height;
  const pixels = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) for (let c = 0; c < 3; c++) pixels[c * area + i] = data[4 * i + c] / 255;
  return { pixels, gain, left: (width - image.width * gain) / 2, top: (height - image.height * gain) / 2 };
}

/** Turns rows of x, y, w, h, objectness, class scores into boxes { x1, y1, x2, y2, score, label } in pixels of the frame. */
export function decode(rows, columns) {
  const boxes = [];
  for (let at = 0; at < rows.length; at += columns) {
    if (rows[at + 4] <= CONFIDENCE || rows[at + 2] < 2 || rows[at + 3] < 2) continue;
    let label = 0;
    for (let c = 1; c < columns - 5; c++) if (rows[at + 5 + c] > rows[at + 5 + label]) label = c;
    const score = rows[at + 5 + label] * rows[at + 4];
    if (score <= CONFIDENCE) continue;
    const [x, y, w, h] = rows.subarray(at, at + 4);
    boxes.push({ x1: x - w / 2, y1: y - h / 2, x2: x + w / 2, y2: y + h / 2, score, label });
  }
  return suppress(boxes.sort((a, b) => b.score - a.score));
}

/** Returns the boxes, in descending order of score, that no better box of their class overlaps by more than IOU. */
export function suppress(boxes) {
  const kept = [];
  for (const box of boxes) {
    if (kept.length === MAX_DETECTIONS) break;
    if (!kept.some((other) => other.label === box.label && overlap(other, box) > IOU)) kept.push(box);
  }
  return kept;
}

/** Returns the intersection over union of two boxes. */
export function overlap(a, b) {
  const w = Math.min(a.x2, b.x2) - Math.max(a.x1, b.x1), h = Math.min(a.y2, b.y2) - Math.max(a.y1, b.y1);
  const shared = Math.max(w, 0) * Math.max(h, 0), area = (box) => (box.x2 - box.x1) * (box.y2 - box.y1);
  return shared / (area(a) + area(b) - shared);
}

/** Opens a detector from the bytes of an ONNX file: its `detect(image)` returns boxes in pixels of the image. */
export async function openDetector(ort, bytes) {
  const meta = checkedMetadata(bytes), session = await ort.InferenceSession.create(bytes);
  const [height, width] = meta.imgsz;
  async function detect(image) {
    const { pixels, gain, left, top } = letterbox(image, meta.imgsz);
    const images = new ort.Tensor("float32", pixels, [1, 3, height, width]);
    const output = (await session.run({ [session.inputNames[0]]: images }))[session.outputNames[0]];
    const inside = (v, maximum) => Math.min(Math.max(v, 0), maximum);
    return decode(output.data, output.dims[2]).map((box) => ({
      name: meta.names[box.label], score: box.score,
      x1: inside((box.x1 - left) / gain, image.width), y1: inside((box.y1 - top) / gain, image.height),
      x2: inside((box.x2 - left) / gain, image.width), y2: inside((box.y2 - top) / gain, image.height),
    }));
  }
  return { detect, meta };
}
