// A drawing as MNIST has its digits: 28 by 28 bytes, ink 255 on 0, in a box of 20, the centre of mass in the middle.
export const SIDE = 28;
const BOX = 20;       // side of the box around the ink, pixels
const PEN = 2.6;      // width of a line, pixels, about that of MNIST's digits
const FINE = 8;       // lines are drawn at so many times the size, then averaged
const SMALLEST = .12; // share of the board that counts as a whole digit: a dot stays a dot

const large = document.createElement('canvas');
large.width = large.height = SIDE * FINE;
const ink = large.getContext('2d', {willReadFrequently: true});

// The lines of a digit as a path; `place` moves a point of the board to where it is drawn.
export function trace(context, strokes, place) {
  context.lineCap = context.lineJoin = 'round';
  context.beginPath();
  for (const stroke of strokes) {
    const [first, ...others] = stroke.map(place);
    context.moveTo(...first);
    context.lineTo(first[0] + .01, first[1]); // a single point is a dot
    for (const point of others) context.lineTo(...point);
  }
  context.stroke();
}

// Coverage of each pixel, 0 to 1, with the point `centre` of the board in the middle.
function render(strokes, centre, scale) {
  ink.fillStyle = '#000';
  ink.fillRect(0, 0, large.width, large.height);
  ink.strokeStyle = '#fff';
  ink.lineWidth = PEN * FINE;
  trace(ink, strokes, point => point.map((v, i) => ((v - centre[i]) * scale + SIDE / 2) * FINE));
  const {data} = ink.getImageData(0, 0, large.width, large.height);
  const pixels = new Float32Array(SIDE * SIDE);
  for (let y = 0; y < large.height; y++) {
    const row = Math.floor(y / FINE) * SIDE;
    for (let x = 0; x < large.width; x++) pixels[row + Math.floor(x / FINE)] += data[4 * (y * large.width + x)];
  }
  return pixels.map(v => v / (255 * FINE * FINE));
}

// Centre of mass, as [x, y] from the corner.
export function massCentre(pixels) {
  let total = 0, x = 0, y = 0;
  pixels.forEach((v, i) => {
    total += v;
    x += v * (i % SIDE + .5);
    y += v * (Math.floor(i / SIDE) + .5);
  });
  return [x / total, y / total];
}

// Strokes, lists of points [x, y] on a board of some side, as bytes for the model.
export function toPixels(strokes, board) {
  const points = strokes.flat();
  const low = [0, 1].map(i => Math.min(...points.map(p => p[i])));
  const high = [0, 1].map(i => Math.max(...points.map(p => p[i])));
  const extent = Math.max(high[0] - low[0], high[1] - low[1], SMALLEST * board);
  const scale = (BOX - PEN) / extent, middle = [0, 1].map(i => (low[i] + high[i]) / 2);
  const [x, y] = massCentre(render(strokes, middle, scale));
  const centre = [x, y].map((v, i) => middle[i] + (v - SIDE / 2) / scale);
  return Uint8Array.from(render(strokes, centre, scale), v => Math.round(255 * v));
}
