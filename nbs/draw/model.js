// The exported model in this browser: onnxruntime-web on one thread, from the files of this site alone.
import {SIDE} from './strokes.js';

const here = new URL('.', import.meta.url);

async function fetched(url) {
  const answer = await fetch(url);
  if (!answer.ok) throw new Error(`${url.pathname}: ${answer.status} ${answer.statusText}`);
  return answer;
}

// A function `read` from bytes of n digits to {m1, m2}, n rows of cosines with each class; and what is known of the model.
export async function openModel(folder = new URL('mnist/', here)) {
  const [ort, about, graph] = await Promise.all([
    import(new URL('ort/ort.wasm.bundle.min.mjs', here)),
    fetched(new URL('metadata.json', folder)).then(answer => answer.json()),
    fetched(new URL('model.onnx', folder)).then(answer => answer.arrayBuffer())]);
  ort.env.wasm.numThreads = 1; // more of them need headers that a static site doesn't send
  ort.env.wasm.wasmPaths = {wasm: new URL('ort/ort-wasm-simd-threaded.wasm', here).href};
  const session = await ort.InferenceSession.create(graph, {executionProviders: ['wasm']});
  const classes = about.classes;
  const rows = data => Array.from({length: data.length / classes.length},
    (_, i) => Array.from(data.subarray(i * classes.length, (i + 1) * classes.length)));
  async function read(pixels) {
    const image = new ort.Tensor('uint8', pixels, [pixels.length / SIDE ** 2, 1, SIDE, SIDE]);
    const {m1, m2} = await session.run({image}, ['m1', 'm2']);
    return {m1: rows(m1.data), m2: rows(m2.data)};
  }
  await read(new Uint8Array(SIDE ** 2)); // the first answer takes longer than the others
  return {read, classes, about};
}
