// From a picture to boxes: frame, network, decoding, suppression. No page in here.

export const CONFIDENCE = 0.25, OVERLAP = 0.45, MOST = 1000; // as detect.py has them
const GREY = "rgb(114, 114, 114)"; // around a picture that does not fill its frame

/** Text of `metadata_props` of an ONNX file, by key. onnxruntime-web does not give them out. */
export function readMetadata(bytes) {
  const view = new Uint8Array(bytes), text = new TextDecoder(), found = {};
  walk(view, (field, part) => {
    if (field !== 14) return; // of ModelProto: metadata_props, of StringStringEntryProto: key 1, value 2
    const entry = {};
    walk(part, (name, value) => { entry[name] = text.decode(value); });
    found[entry[1]] = entry[2];
  });
  return found;
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
    else throw new Error("this is no ONNX file");
  }
}

/** What the file says of itself: { names, imgsz: [height, width] }. Throws where this page cannot run it. */
export function checkedMetadata(bytes) {
  const texts = readMetadata(bytes);
  if (!texts.names) throw new Error("the file has no metadata; write it with this project's export.py");
  const meta = Object.fromEntries(Object.entries(texts).map(([key, value]) => [key, JSON.parse(value)]));
  if (meta.nms || meta.half) throw new Error("this page decodes on its own, in float32: export without --nms and --half");
  return meta;
}

/** A picture in the middle of a grey frame: { pixels: Float32Array (3, height, width), gain, left, top }, left and
 * top not rounded, as detect.py has them. */
export function letterbox(picture, [height, width]) {
  const gain = Math.min(height / picture.height, width / picture.width);
  const w = Math.max(Math.round(picture.width * gain), 1), h = Math.max(Math.round(picture.height * gain), 1);
  const canvas = new OffscreenCanvas(width, height);
  const pen = canvas.getContext("2d", { willReadFrequently: true });
  pen.fillStyle = GREY;
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "low"; // bilinear, as in training
  pen.drawImage(picture, Math.floor((width - w) / 2), Math.floor((height - h) / 2), w, h);
  const { data } = pen.getImageData(0, 0, width, height), area = width * height;
  const pixels = new Float32Array(3 * area);
  for (let i = 0; i < area; i++) for (let c = 0; c < 3; c++) pixels[c * area + i] = data[4 * i + c] / 255;
  return { pixels, gain, left: (width - picture.width * gain) / 2, top: (height - picture.height * gain) / 2 };
}

/** Rows of x, y, w, h, objectness, class scores -> boxes { x1, y1, x2, y2, score, label } in pixels of the frame. */
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

/** Of boxes in descending order of score those that overlap no better one of their class. */
export function suppress(boxes) {
  const kept = [];
  for (const box of boxes) {
    if (kept.length === MOST) break;
    if (!kept.some((other) => other.label === box.label && overlap(other, box) > OVERLAP)) kept.push(box);
  }
  return kept;
}

/** Intersection over union of two boxes. */
export function overlap(a, b) {
  const w = Math.min(a.x2, b.x2) - Math.max(a.x1, b.x1), h = Math.min(a.y2, b.y2) - Math.max(a.y1, b.y1);
  const shared = Math.max(w, 0) * Math.max(h, 0), area = (box) => (box.x2 - box.x1) * (box.y2 - box.y1);
  return shared / (area(a) + area(b) - shared);
}

/** A detector from the bytes of an ONNX file: its `find(picture)` gives boxes in pixels of the picture. */
export async function openDetector(ort, bytes) {
  const meta = checkedMetadata(bytes), session = await ort.InferenceSession.create(bytes);
  const [height, width] = meta.imgsz;
  async function find(picture) {
    const { pixels, gain, left, top } = letterbox(picture, meta.imgsz);
    const images = new ort.Tensor("float32", pixels, [1, 3, height, width]);
    const output = (await session.run({ [session.inputNames[0]]: images }))[session.outputNames[0]];
    const inside = (v, most) => Math.min(Math.max(v, 0), most);
    return decode(output.data, output.dims[2]).map((box) => ({
      name: meta.names[box.label], score: box.score,
      x1: inside((box.x1 - left) / gain, picture.width), y1: inside((box.y1 - top) / gain, picture.height),
      x2: inside((box.x2 - left) / gain, picture.width), y2: inside((box.y2 - top) / gain, picture.height),
    }));
  }
  return { find, meta };
}
