const root = element.querySelector(".painting");
const find = (name) => root.querySelector(`[name=${name}]`);
const canvas = root.querySelector("canvas"), pen = canvas.getContext("2d");
const [source, target] = root.querySelectorAll("img");
const text = root.querySelector(".status");
let shown = ""; // the source that is painted on
let last = null; // where the stroke under way was last

function draw() {
  const value = props.value;
  if (!value) return;
  text.textContent = value.message;
  root.dataset.state = value.problem ? (shown ? "problem" : "empty") : "ready";
  if (!value.source) return;
  target.src = value.edited || value.target;
  if (value.source === shown) return;
  source.src = shown = value.source;
  [canvas.width, canvas.height] = [value.width, value.height]; // also clears it
}

function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) / box.width) * canvas.width, ((event.clientY - box.top) / box.height) * canvas.height];
}

function stroke(event) {
  if (!last) return;
  const next = place(event);
  pen.strokeStyle = find("colour").value;
  pen.lineWidth = (find("size").value / canvas.clientWidth) * canvas.width;
  pen.lineCap = "round";
  pen.beginPath();
  pen.moveTo(...last);
  pen.lineTo(...next);
  pen.stroke();
  last = next;
}

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  last = place(event);
  stroke(event);
});
canvas.addEventListener("pointermove", stroke);
for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { last = null; });
find("clear").addEventListener("click", () => pen.clearRect(0, 0, canvas.width, canvas.height));
find("carry").addEventListener("click", () => {
  text.textContent = "The edit is being carried over.";
  trigger("carry", { data: canvas.toDataURL("image/png").split(",")[1], warp: find("warp").value, seen: shown });
});
watch("value", draw);
