// <draw-digit>: a board to draw on, and what the model makes of the drawing while it grows.
import {openModel} from './model.js';
import {SIDE, toPixels, trace} from './strokes.js';

const BOARD = 280; // side of the board in its own units; on the screen it is as wide as there is room
const METHODS = ['m1', 'm2'];

const markup = `
  <div class="board">
    <canvas class="drawing" aria-label="Board: draw a digit with a mouse, a pen or a finger"></canvas>
    <div class="tools">
      <button type="button" disabled>Clear</button>
      <span class="seen"><canvas width="${SIDE}" height="${SIDE}" aria-hidden="true"></canvas>what the model sees</span>
    </div>
  </div>
  <div class="answers">
    <p role="status">Loading the model.</p>
    <table>
      <thead><tr><th scope="col">label</th><th scope="col">M1, cosine</th><th scope="col">M2, cosine</th></tr></thead>
      <tbody></tbody>
    </table>
  </div>`;

class DrawDigit extends HTMLElement {
  strokes = [];
  pen = null;      // identifier of the pointer that draws
  changed = false; // since the last answer
  busy = false;    // the model is at work

  connectedCallback() {
    this.innerHTML = markup;
    [this.drawing, this.seen] = this.querySelectorAll('canvas');
    [this.clearButton, this.status] = [this.querySelector('button'), this.querySelector('[role=status]')];
    const sharp = Math.max(1, window.devicePixelRatio || 1);
    this.drawing.width = this.drawing.height = BOARD * sharp;
    this.context = this.drawing.getContext('2d');
    this.context.scale(sharp, sharp);
    this.listen();
    this.clear();
    this.ready = this.open();
  }

  async open() {
    try { this.model = await openModel(); }
    catch (error) {
      this.classList.add('failed');
      this.say(`The model cannot run here: ${error.message}. It needs WebAssembly and the files of this site.`);
      return;
    }
    const bars = METHODS.map(m => `<td class="${m}"><i></i><b></b></td>`).join('');
    const row = name => `<tr><th scope="row">${name}</th>${bars}</tr>`;
    this.querySelector('tbody').innerHTML = this.model.classes.map(row).join('');
    this.cells = METHODS.map(m => [...this.querySelectorAll(`td.${m}`)]);
    this.show(null);
    this.answer();
  }

  listen() {
    const board = this.drawing;
    board.addEventListener('pointerdown', event => {
      if (this.pen !== null || event.button) return;
      event.preventDefault();
      board.setPointerCapture(event.pointerId);
      this.pen = event.pointerId;
      this.strokes.push([]);
      this.draw(event);
    });
    board.addEventListener('pointermove', event => { if (event.pointerId === this.pen) this.draw(event); });
    for (const end of ['pointerup', 'pointercancel']) {
      board.addEventListener(end, event => { if (event.pointerId === this.pen) this.pen = null; });
    }
    board.addEventListener('touchstart', event => event.preventDefault(), {passive: false}); // no scrolling, no zoom
    this.clearButton.addEventListener('click', () => this.clear());
  }

  // Where the pointer has been since the last event, in units of the board.
  draw(event) {
    const box = this.drawing.getBoundingClientRect(), unit = BOARD / box.width;
    const passed = event.getCoalescedEvents?.() ?? [];
    for (const e of passed.length ? passed : [event]) {
      this.strokes.at(-1).push([(e.clientX - box.left) * unit, (e.clientY - box.top) * unit]);
    }
    this.clearButton.disabled = false;
    this.paint();
    this.changed = true;
    this.answer();
  }

  paint() {
    this.context.clearRect(0, 0, BOARD, BOARD);
    this.context.strokeStyle = getComputedStyle(this.drawing).color;
    this.context.lineWidth = BOARD / 16;
    trace(this.context, this.strokes, point => point);
  }

  clear() {
    this.strokes = [];
    this.changed = false;
    this.clearButton.disabled = true;
    this.paint();
    this.preview(new Uint8Array(SIDE ** 2));
    if (this.model) this.show(null);
  }

  // One answer after the other, for the drawing as it is then.
  async answer() {
    if (this.busy || !this.model) return;
    this.busy = true;
    try {
      while (this.changed && this.strokes.length) {
        this.changed = false;
        const start = performance.now(), strokes = this.strokes, pixels = toPixels(strokes, BOARD);
        this.preview(pixels);
        const found = await this.model.read(pixels);
        if (strokes === this.strokes) this.show(found, performance.now() - start); // not cleared meanwhile
        await new Promise(requestAnimationFrame);
      }
    } finally { this.busy = false; }
  }

  preview(pixels) {
    const image = new ImageData(SIDE, SIDE);
    pixels.forEach((v, i) => image.data.set([v, v, v, 255], 4 * i));
    this.seen.getContext('2d').putImageData(image, 0, 0);
  }

  say(text) { this.status.textContent = text; }

  // Bars of one answer, which took some milliseconds; none of null.
  show(found, milliseconds) {
    const best = METHODS.map(m => found && found[m][0].indexOf(Math.max(...found[m][0])));
    this.cells.forEach((cells, j) => cells.forEach((cell, i) => {
      const value = found ? found[METHODS[j]][0][i] : null;
      cell.style.setProperty('--length', Math.max(0, value ?? 0));
      cell.classList.toggle('best', best[j] === i);
      cell.lastChild.textContent = value === null ? '' : value.toFixed(2);
    }));
    if (!found) return this.say('Draw a digit.');
    const [a, b] = best.map(i => this.model.classes[i]);
    const time = `${Math.max(1, Math.round(milliseconds))} ms`;
    this.say(a === b ? `M1 and M2 say ${a} (${time}).` : `M1 says ${a}, M2 says ${b} (${time}).`);
  }
}

customElements.define('draw-digit', DrawDigit);
