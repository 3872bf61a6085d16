// The two images with their points. Python sends `pictures` (rarely) and `value` (after every action).
// Points are pixels of the original images; a pixel's centre lies half a pixel inside its corner.
const stage = element.querySelector(".stage");
const frames = { source: stage.querySelector(".source"), target: stage.querySelector(".target") };
const sizes = [...stage.querySelectorAll(".size")];
const status = stage.querySelector(".status");
const note = stage.querySelector(".note");
const list = stage.querySelector(".list");
const form = stage.querySelector("form");
const heatControl = stage.querySelector("[name=heat]");
const cursor = { x: 0, y: 0 };
let shown = -1; // revision of the state on the screen
let session = null; // its name
let prepared = null; // the pictures that the server was asked to prepare
let clicks = []; // [x, y, time] of points that the server has not answered yet

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function pictureOf(side) {
  return props.pictures ? props.pictures[side] : null;
}

function putAt(node, side, x, y) {
  const picture = pictureOf(side);
  node.style.left = `${(100 * (x + 0.5)) / picture.width}%`;
  node.style.top = `${(100 * (y + 0.5)) / picture.height}%`;
}

function drawFrame(side) {
  const frame = frames[side];
  const picture = pictureOf(side);
  frame.replaceChildren();
  frame.classList.toggle("empty", !picture);
  sizes[side === "source" ? 0 : 1].textContent = picture ? `${picture.width} × ${picture.height} px` : "";
  if (!picture) {
    frame.style.removeProperty("--ratio");
    frame.append(make("span", "placeholder", `Drop or paste the ${side} image, or choose it`));
    return;
  }
  frame.style.setProperty("--ratio", picture.width / picture.height);
  const image = make("img");
  image.alt = "";
  image.draggable = false;
  image.src = picture.url;
  frame.append(image);
  if (side === "target") {
    const heat = make("img", "heat");
    heat.alt = "";
    heat.hidden = true;
    frame.append(heat);
  } else {
    frame.append(make("span", "cursor"));
    moveCursor(picture.width / 2, picture.height / 2);
    form.elements.x.max = picture.width - 1;
    form.elements.y.max = picture.height - 1;
  }
}

function drawMarker(side, number, x, y, selected, text) {
  const marker = make("button", `marker colour-${(number - 1) % 7}${selected ? " selected" : ""}`);
  marker.type = "button";
  marker.tabIndex = side === "source" ? 0 : -1;
  marker.dataset.number = number;
  marker.setAttribute("aria-label", text);
  marker.title = text;
  marker.append(make("span", "dot"), make("span", "badge", String(number)));
  marker.addEventListener("click", (event) => {
    event.stopPropagation();
    trigger("choose", { number });
  });
  marker.classList.toggle("low", y < 0.08 * pictureOf(side).height);
  marker.classList.toggle("left", x > 0.92 * pictureOf(side).width);
  putAt(marker, side, x, y);
  frames[side].append(marker);
}

const round = (value) => Math.round(10 * value) / 10;
const place = (x, y) => `(${round(x)}, ${round(y)})`;
const percent = (value) => `${Math.round(100 * value)} %`;

function drawPoints(value) {
  for (const node of stage.querySelectorAll(".marker")) node.remove();
  if (!props.pictures || !props.pictures.source || !props.pictures.target) return;
  for (const point of value.points) {
    const selected = point.number === value.selected;
    const name = `Point ${point.number}`;
    drawMarker("source", point.number, point.x, point.y, selected, `${name} at ${place(point.x, point.y)}`);
    if (point.found) {
      const text = `${name} found at ${place(...point.found)}, confidence ${percent(point.confidence)}`;
      drawMarker("target", point.number, ...point.found, selected, text);
    }
  }
}

function drawHeat(value) {
  const heat = frames.target.querySelector(".heat");
  if (!heat) return;
  const on = Boolean(value.heat) && Number(heatControl.value) > 0;
  heat.hidden = !on;
  frames.target.classList.toggle("grey", on);
  if (value.heat) heat.src = value.heat.url;
  heat.style.opacity = heatControl.value / 100;
}

function drawList(value) {
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren();
  if (!value.points.length) return;
  const table = make("table");
  table.append(make("caption", "", "Points (x, y) in pixels of the original images"));
  const head = make("tr");
  for (const title of ["", "Source", "Target", "Confidence", ""]) head.append(make("th", "", title));
  const body = make("tbody");
  for (const point of value.points) {
    const row = make("tr", point.number === value.selected ? "selected" : "");
    const choose = make("button", `choose colour-${(point.number - 1) % 7}`, String(point.number));
    choose.setAttribute("aria-label", `Show the heat map of point ${point.number}`);
    choose.setAttribute("aria-pressed", String(point.number === value.selected));
    choose.dataset.key = `choose ${point.number}`;
    choose.addEventListener("click", () => trigger("choose", { number: point.number }));
    const drop = make("button", "drop", "✕");
    drop.title = `Remove point ${point.number}`;
    drop.setAttribute("aria-label", `Remove point ${point.number}`);
    drop.dataset.key = `drop ${point.number}`;
    drop.addEventListener("click", () => trigger("remove", { number: point.number }));
    const confidence = make("td", "confidence", point.found ? percent(point.confidence) : "…");
    const meter = make("span", "meter");
    meter.append(make("span"));
    meter.firstChild.style.width = percent(point.found ? point.confidence : 0).replace(" ", "");
    confidence.append(meter);
    const cells = [make("td"), make("td", "", place(point.x, point.y))];
    cells.push(make("td", "", point.found ? place(...point.found) : "…"), confidence, make("td"));
    cells[0].append(choose);
    cells[4].append(drop);
    row.append(...cells);
    body.append(row);
  }
  const top = make("thead");
  top.append(head);
  table.append(top, body);
  list.append(table);
  if (focused) {
    const again = list.querySelector(`[data-key="${focused}"]`) || list.querySelector(".choose");
    if (again) again.focus();
  }
}

function drawState() {
  const value = props.value;
  if (!value) return;
  if (value.session !== session) shown = -1; // the server forgot this page and counts from the beginning
  if (value.revision < shown) return; // an answer that was overtaken by a later one
  session = value.session;
  shown = value.revision;
  const refocus = document.activeElement && document.activeElement.closest(".marker");
  drawPoints(value);
  drawHeat(value);
  drawList(value);
  if (refocus) frames.source.focus({ preventScroll: true });
  status.textContent = value.message;
  status.classList.toggle("problem", Boolean(value.problem));
  note.textContent = value.note;
  note.hidden = !value.note;
  const both = pictureOf("source") && pictureOf("target");
  for (const name of ["undo", "clear", "json"]) button(name).disabled = !value.points.length;
  for (const name of ["swap", "picture"]) button(name).disabled = !both;
  stage.dataset.revision = value.revision;
  stage.dataset.ready = Boolean(value.ready);
  const waiting = value.points.filter((point) => !point.found).map((point) => point.number);
  const key = `${stage.picturesKey}/${waiting}`;
  if (both && !value.ready && prepared !== key) trigger("prepare");
  if (both) prepared = key;
  const answered = clicks.filter(([x, y]) => value.points.some((p) => p.found && near(p.x, x) && near(p.y, y)));
  if (answered.length) stage.dataset.latencyMs = Math.round(performance.now() - answered[answered.length - 1][2]);
  clicks = clicks.filter((click) => !answered.includes(click) && performance.now() - click[2] < 60000);
}

const button = (name) => stage.querySelector(`[data-do=${name}]`);
const near = (a, b) => Math.abs(a - b) < 0.01;

function ask(x, y) {
  const picture = pictureOf("source");
  if (!picture) return;
  x = round(Math.min(Math.max(x, 0), picture.width - 1));
  y = round(Math.min(Math.max(y, 0), picture.height - 1));
  clicks.push([x, y, performance.now()]);
  const waiting = make("span", "waiting");
  putAt(waiting, "source", x, y);
  frames.source.append(waiting);
  setTimeout(() => waiting.remove(), 600);
  moveCursor(x, y);
  trigger("place", { x, y });
}

function moveCursor(x, y) {
  const picture = pictureOf("source");
  const node = frames.source.querySelector(".cursor");
  if (!picture || !node) return;
  cursor.x = Math.min(Math.max(x, 0), picture.width - 1);
  cursor.y = Math.min(Math.max(y, 0), picture.height - 1);
  putAt(node, "source", cursor.x, cursor.y);
}

frames.source.addEventListener("click", (event) => {
  const picture = pictureOf("source");
  if (!picture) return;
  const box = frames.source.getBoundingClientRect();
  ask(
    ((event.clientX - box.left) / box.width) * picture.width - 0.5,
    ((event.clientY - box.top) / box.height) * picture.height - 0.5,
  );
});

const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
frames.source.addEventListener("keydown", (event) => {
  const picture = pictureOf("source");
  if (!picture || event.target !== frames.source) return;
  if (event.key in ARROWS) {
    const step = event.shiftKey ? 1 : Math.max(1, Math.max(picture.width, picture.height) / 50);
    const [dx, dy] = ARROWS[event.key];
    moveCursor(cursor.x + step * dx, cursor.y + step * dy);
    status.textContent = `Cursor at ${place(cursor.x, cursor.y)}`;
  } else if (event.key === "Enter" || event.key === " ") {
    ask(cursor.x, cursor.y);
  } else if (event.key === "Delete" || event.key === "Backspace") {
    if (props.value && props.value.selected) trigger("remove", { number: props.value.selected });
  } else {
    return;
  }
  event.preventDefault();
});

// An image travels within the event: the server keeps no file and is told no path.
function send(side, file) {
  const most = props.max_mb;
  if (file.size > most * 2 ** 20) {
    status.textContent = `${file.name} has more than ${most} MB; make it smaller first.`;
    status.classList.add("problem");
    return;
  }
  const reader = new FileReader();
  reader.onload = () => trigger("photo", { side, name: file.name, data: reader.result.split(",")[1] || "" });
  reader.readAsDataURL(file);
  status.textContent = `Sending ${file.name} ...`;
  status.classList.remove("problem");
}

for (const input of stage.querySelectorAll(".pick input")) {
  input.addEventListener("change", () => {
    if (input.files.length) send(input.dataset.side, input.files[0]);
    input.value = ""; // so that the same file can be chosen again
  });
}
for (const [side, frame] of Object.entries(frames)) {
  const mark = (event, over) => {
    event.preventDefault();
    frame.classList.toggle("over", over);
  };
  frame.addEventListener("dragover", (event) => mark(event, true));
  frame.addEventListener("dragleave", (event) => mark(event, false));
  frame.addEventListener("drop", (event) => {
    mark(event, false);
    if (event.dataTransfer.files.length) send(side, event.dataTransfer.files[0]);
  });
}
document.addEventListener("paste", (event) => {
  const file = [...event.clipboardData.files].find(({ type }) => type.startsWith("image/"));
  if (file) send(pictureOf("source") && !pictureOf("target") ? "target" : "source", file);
});

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask(Number(form.elements.x.value), Number(form.elements.y.value));
});
button("undo").addEventListener("click", () => trigger("remove", {}));
button("clear").addEventListener("click", () => trigger("clear_points"));
button("swap").addEventListener("click", () => trigger("swap"));
button("picture").addEventListener("click", savePicture);
button("json").addEventListener("click", saveJson);
heatControl.addEventListener("input", () => props.value && drawHeat(props.value));

function save(name, url) {
  const link = make("a");
  link.href = url;
  link.download = name;
  link.click();
}

function saveJson() {
  const { points, settings } = props.value;
  const size = ({ width, height, digest }) => ({ width, height, sha256: digest });
  const content = { settings, source: size(pictureOf("source")), target: size(pictureOf("target")), points };
  save("matches.json", `data:application/json,${encodeURIComponent(JSON.stringify(content, null, 2))}`);
}

// Both frames as they are shown, at the same height.
function savePicture() {
  const tall = 900;
  const gap = 24;
  const widths = ["source", "target"].map((side) => Math.round((tall * pictureOf(side).width) / pictureOf(side).height));
  const canvas = make("canvas");
  canvas.width = widths[0] + gap + widths[1];
  canvas.height = tall;
  const pen = canvas.getContext("2d");
  pen.fillStyle = "white";
  pen.fillRect(0, 0, canvas.width, tall);
  ["source", "target"].forEach((side, index) => {
    const left = index ? widths[0] + gap : 0;
    const [image, heat] = frames[side].querySelectorAll("img");
    const hot = heat && !heat.hidden;
    pen.filter = hot ? "grayscale(1)" : "none";
    pen.drawImage(image, left, 0, widths[index], tall);
    pen.filter = "none";
    pen.globalAlpha = hot ? Number(heat.style.opacity) : 1;
    if (hot) pen.drawImage(heat, left, 0, widths[index], tall);
    pen.globalAlpha = 1;
    for (const point of props.value ? props.value.points : []) {
      const spot = index ? point.found : [point.x, point.y];
      if (spot) paintMarker(pen, point.number, side, left, widths[index], tall, spot);
    }
  });
  save("matches.png", canvas.toDataURL("image/png"));
}

function paintMarker(pen, number, side, left, wide, tall, [x, y]) {
  const picture = pictureOf(side);
  const style = getComputedStyle(stage.querySelector(`.marker.colour-${(number - 1) % 7}`));
  const [px, py] = [left + ((x + 0.5) / picture.width) * wide, ((y + 0.5) / picture.height) * tall];
  const badge = [Math.min(px + 18, left + wide - 14), Math.max(py - 18, 14)];
  for (const [at, size] of [[[px, py], 7], [badge, 13]]) {
    for (const [colour, grow] of [["black", 3.5], ["white", 2], [style.getPropertyValue("--mark"), 0]]) {
      pen.fillStyle = colour;
      pen.beginPath();
      pen.arc(...at, size + grow, 0, 2 * Math.PI);
      pen.fill();
    }
  }
  pen.fillStyle = style.getPropertyValue("--on-mark");
  pen.font = "bold 17px system-ui, sans-serif";
  pen.textAlign = "center";
  pen.textBaseline = "middle";
  pen.fillText(String(number), ...badge);
}

function drawPictures() {
  drawFrame("source");
  drawFrame("target");
  shown = -1;
}

watch(["pictures", "value"], () => {
  const key = JSON.stringify(props.pictures || null);
  if (key !== stage.picturesKey) {
    stage.picturesKey = key;
    drawPictures();
  }
  drawState();
});
drawPictures();
drawState();
