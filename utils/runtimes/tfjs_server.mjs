// Runs a TensorFlow.js model by the protocol that tensorflow_server.py describes: node tfjs_server.mjs FOLDER MODULES.
// FOLDER holds model.json and the files of its weights; MODULES is the folder node_modules that holds @tensorflow/tfjs.
import { readFileSync, realpathSync, writeSync } from "node:fs";
import { createRequire } from "node:module";
import { isAbsolute, join, relative, resolve } from "node:path";

const [folder, modules] = process.argv.slice(2);
console.log = console.info = console.warn = console.error; // what libraries print must not get between the answers
const tf = createRequire(join(resolve(modules), "x.js"))("@tensorflow/tfjs");
tf.env().set("IS_NODE", true);

function write(bytes) {
  for (let at = 0; at < bytes.length;) {
    try {
      at += writeSync(1, bytes, at);
    } catch (error) {
      if (error.code !== "EAGAIN") throw error; // the pipe is full
    }
  }
}

const say = (head, ...arrays) => {
  write(Buffer.from(`${JSON.stringify(head)}\n`));
  for (const array of arrays) write(Buffer.from(array.buffer, array.byteOffset, array.byteLength));
};

// the file of weights that model.json names; one outside the folder would be any file of the user
const inside = (name) => {
  const file = realpathSync(resolve(folder, name));
  const way = relative(realpathSync(folder), file);
  if (way.startsWith("..") || isAbsolute(way)) throw new Error(`weights must be in the folder of model.json, found ${JSON.stringify(name)}`);
  return file;
};

const { modelTopology, format, generatedBy, convertedBy, signature, weightsManifest } =
  JSON.parse(readFileSync(join(folder, "model.json")));
const weightData = new Uint8Array(Buffer.concat(
  weightsManifest.flatMap(({ paths }) => paths.map((path) => readFileSync(inside(path)))))).buffer;
const model = await tf.loadGraphModel(tf.io.fromMemory({
  modelTopology, format, generatedBy, convertedBy, signature, weightData,
  weightSpecs: weightsManifest.flatMap(({ weights }) => weights),
}));
// outputs in the order of their names in the signature, as tensorflow_server.py returns them
const names = Object.keys(signature.outputs).sort().map((key) => signature.outputs[key].name);
say({
  shape: Object.values(signature.inputs)[0].tensorShape.dim.map(({ size }) => Number(size) > 0 ? Number(size) : null),
  columns: Number(signature.outputs[Object.keys(signature.outputs).sort()[0]].tensorShape.dim.at(-1).size),
  metadata: "",
});

let waiting = Buffer.alloc(0);
let shape = null;
for await (const chunk of process.stdin) {
  waiting = Buffer.concat([waiting, chunk]);
  for (;;) {
    if (!shape) {
      const end = waiting.indexOf(10);
      if (end < 0) break;
      ({ shape } = JSON.parse(waiting.subarray(0, end)));
      waiting = waiting.subarray(end + 1);
    }
    const bytes = 4 * shape.reduce((a, b) => a * b, 1);
    if (waiting.length < bytes) break;
    const values = new Float32Array(waiting.buffer.slice(waiting.byteOffset, waiting.byteOffset + bytes));
    waiting = waiting.subarray(bytes);
    const input = tf.tensor(values, shape, "float32");
    shape = null;
    const outputs = [await model.executeAsync(input, names)].flat();
    say({ shapes: outputs.map((output) => output.shape) }, ...outputs.map((output) => Float32Array.from(output.dataSync())));
    tf.dispose([input, ...outputs]);
  }
}
